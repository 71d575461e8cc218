"""`rewright compare`: methods side by side, by what they gain and what they forget."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.exceptions import SettingsError
from cli import options
from cli.console import fetching, interrupt_when_terminated, say
from cli.exceptions import UsageError
from cli.settings import Settings, load_settings
from trainer.compare.settings import CompareRequest

if TYPE_CHECKING:
    from trainer.compare.results import Comparison
    from trainer.compare.run import Progress

_SHOW_EVERY_S = 5.0


def compare(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder of the units and the report.")
    ] = None,
    config: options.Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON instead of the table.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan of units and stop.")] = False,
) -> None:
    """Compare methods of fine-tuning on one task: rows made, models trained and examined, a report.

    The table [compare] of TOML says what is compared. Interrupted, the same command goes on.
    The exit code is 1 when a unit failed; the others are in the report all the same.
    """
    settings = load_settings(config, os.environ)
    if output is None or settings.compare is None:
        raise UsageError("what to compare and where to put it: rewright compare --config TOML -o DIR, with [compare]")
    request = request_of(settings, output)
    if dry_run:
        _print_plan(request)
        return
    comparison = _run(request)
    if as_json:
        print(comparison.model_dump_json())
    else:
        _print(comparison)
    say(f"report in {output / 'report.html'}, all figures in {output / 'results.json'}")
    if comparison.failures:
        for failure in comparison.failures:
            say(f"failed: {failure.unit}: {failure.error}")
        raise typer.Exit(1)


def request_of(settings: Settings, output: Path) -> CompareRequest:
    """What `settings` ask for. `settings.compare` is there.

    Raises:
        SettingsError: they decide on what each method decides for itself.
    """
    if given := sorted({"kind", "apply_to"} & settings.sft.weights.model_fields_set):
        raise SettingsError(
            f"setting sft.weights.{given[0]}: in a comparison each method decides which tokens have a weight; leave it "
            "out, and choose by compare.methods"
        )
    shared = ("compare", "model", "engine", "gate", "rewrite", "sft", "evaluate")
    return CompareRequest(output=output, **{name: getattr(settings, name) for name in shared})


def _print_plan(request: CompareRequest) -> None:
    """One line a unit: whether it is done, and its folder."""
    from trainer.compare.folder import is_done
    from trainer.compare.inputs import read_inputs
    from trainer.compare.plan import make_plan
    from trainer.devices import with_dtype

    request = request.model_copy(update={"engine": with_dtype(request.engine)})  # as the run does: see its folders
    units = make_plan(request, read_inputs(request))
    for unit in units:
        print(f"{'done' if is_done(request.output, unit) else 'open'}  {unit.folder}")
    say(f"{len(units)} units, {sum(is_done(request.output, unit) for unit in units)} done")


def _run(request: CompareRequest) -> Comparison:
    from agent.models import resolve_model
    from trainer.compare.run import run_comparison

    with fetching(request.model.name) as on_progress:
        resolve_model(request.model, on_progress=on_progress)
    interrupt_when_terminated()
    try:
        return run_comparison(request, on_progress=_progress())
    except KeyboardInterrupt:
        say("interrupted: the same command goes on with the unit that was running")
        raise


def _progress() -> Callable[[Progress], None]:
    """A line when a unit begins or ends, and one every few seconds in between."""
    last = 0.0

    def report(progress: Progress) -> None:
        nonlocal last
        where = f"[{progress.number}/{progress.total}] {progress.unit.folder}"
        now = time.monotonic()
        if not progress.total_part:
            say(f"{where}: {progress.state}{f': {progress.told}' if progress.told else ''}")
        elif now - last < _SHOW_EVERY_S and progress.done_part != progress.total_part:
            return
        else:
            say(f"{where}: {progress.told} {progress.done_part} of {progress.total_part}")
        last = now

    return report


def _print(comparison: Comparison) -> None:
    from trainer.compare.tables import summary
    from trainer.compare.text import markdown

    print("\n\n".join((comparison.headline, *comparison.notes, markdown(summary(comparison)))))
