"""`rewright mismatch`: how surprised the base model is by the expert's completions."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, AsyncExitStack, aclosing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.demonstrations import BadRow, Demonstration
from agent.exceptions import ChatError, EngineMemoryError, MismatchError, PromptTooLongError
from cli import options
from cli.console import console, counting, result_console, say
from cli.exceptions import UsageError
from cli.lines import json_lines, refuse_parquet, refuse_target
from cli.settings import Given, Settings, load_settings

if TYPE_CHECKING:
    from agent.mismatch import Surprisal
    from cli.figures import Figures

_Write = Callable[[dict[str, Any]], None]


def mismatch(
    source: options.Input,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            help="Where to write token by token, replaced if it is there; - for standard output.",
        ),
    ] = None,
    model: options.Model = None,
    revision: options.Revision = None,
    limit: options.Limit = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="PNG", help="Draw the histograms here.")] = None,
    max_errors: options.MaxErrors = 0,
    config: options.Config = None,
    as_json: options.AsJson = False,
    dry_run: options.DryRun = False,
) -> None:
    """Score how surprised the base model is.

    Every expert completion is scored under the base model, given the plain question.
    Prints surprisal in nats per token; -o writes it token by token, one JSON object a row.
    """
    flags = [Given.by_flag("model.name", "--model", model), Given.by_flag("model.revision", "--revision", revision)]
    settings = load_settings(config, os.environ, flags)
    rows_to_stdout = output == options.STANDARD_OUTPUT
    if as_json and rows_to_stdout:
        raise UsageError("--json needs an output file for the rows: -o OUT")
    file = None if rows_to_stdout else output
    refuse_target(source, file, plot)
    refuse_parquet(file)
    if dry_run:
        print(settings.model_dump_json(indent=2))
        return
    figures = asyncio.run(_score_all(settings, source, limit, json_lines(file) if output else nullcontext()))
    if plot and figures.rows > figures.errors:
        figures.draw(plot, settings.model.name)
        say(f"histograms in {plot}")
    if as_json:
        print(json.dumps(figures.as_dict()))
    else:
        figures.print(console if rows_to_stdout else result_console())
    if figures.errors > max_errors:
        raise typer.Exit(1)


async def _score_all(
    settings: Settings, source: Path, limit: int | None, rows_out: AbstractContextManager[_Write | None]
) -> Figures:
    from agent.mismatch import surprisal
    from agent.pipeline import map_in_order
    from cli.engine import engine_of
    from cli.figures import Figures
    from cli.input import count_rows, open_rows

    total = count_rows(source, limit)
    figures = Figures()
    async with AsyncExitStack() as stack:
        engine, chat = await stack.enter_async_context(engine_of(settings))

        async def score(row: Demonstration | BadRow) -> tuple[str, Surprisal | str]:
            if isinstance(row, BadRow):
                return row.id, f"line {row.line}: {row.message}"
            try:
                return row.id, await surprisal(engine, chat, row.prompt, row.expert)
            except (ChatError, PromptTooLongError, EngineMemoryError, MismatchError) as error:
                return row.id, f"line {row.line}: {error}"

        write = stack.enter_context(rows_out)
        show = stack.enter_context(counting("scored", total))
        scored = map_in_order(score, open_rows(source, limit), settings.rewrite.concurrency)
        async for row_id, found in await stack.enter_async_context(aclosing(scored)):
            if isinstance(found, str):
                figures.errors += 1
                say(f"row {row_id}: {found}")
            else:
                figures.add(found)
            if write:
                write(_line(row_id, found))
            show(figures.rows)
    return figures


def _line(row_id: str, found: Surprisal | str) -> dict[str, Any]:
    if isinstance(found, str):
        return {"id": row_id, "error": found, "mismatch": None, "tokens": [], "nats": []}
    nats = [round(value, 5) for value in found.nats]
    return {"id": row_id, "error": None, "mismatch": found.summary().as_dict(), "tokens": found.tokens, "nats": nats}
