"""Entry point of `rewright`: the commands, and how every error becomes one message and an exit code.

Commands import what they need when they run: `--help` loads neither torch nor Ray.
"""

from __future__ import annotations

import io
import sys
from typing import NoReturn

import typer

from agent.exceptions import STOPPED, RewrightError
from cli import (
    adapters,
    check,
    compare,
    demo,
    evaluate,
    jobs,
    keys,
    mismatch,
    models,
    reference,
    rewrite,
    serve,
    sft,
    train,
)
from cli.console import say

app = typer.Typer(
    name="rewright",
    help="Rewrite expert demonstrations so that they fit the model that will learn from them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("rewrite")(rewrite.rewrite)
app.command("mismatch")(mismatch.mismatch)
app.command("check")(check.check)
app.command("serve")(serve.serve)
app.command("train")(train.train)
app.command("sft")(sft.sft)
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("demo")(demo.demo)
app.command("settings")(reference.settings)
app.add_typer(models.app, name="models")
app.add_typer(adapters.app, name="adapters")
app.add_typer(jobs.app, name="jobs")
app.add_typer(keys.app, name="keys")


def main() -> None:
    """Run the command line and exit: 0 done, 1 rows failed, 2 wrong use, 3 stopped by a failure, 130 interrupted.

    With 2, the same input and settings would end so again: a training that diverges is among them.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # results are JSON, whatever the terminal's encoding
    try:
        app()
    except RewrightError as error:
        _fail(error, code=error.exit_code)
    except OSError as error:  # a file that may not be written, a disk that is full
        _fail(error, code=STOPPED)


def _fail(error: Exception, *, code: int) -> NoReturn:
    say(f"error: {error}")
    sys.exit(code)


if __name__ == "__main__":
    main()
