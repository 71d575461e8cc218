"""`rewright mismatch`: how surprised the base model is by the expert's completions."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.demonstrations import BadRow, Demonstration
from agent.exceptions import ChatError, EngineMemoryError, PromptTooLongError
from cli import options
from cli.console import counting, say
from cli.lines import json_lines, refuse_target
from cli.settings import Given, Settings, load_settings

if TYPE_CHECKING:
    from agent.mismatch import Surprisal
    from cli.figures import Figures


def mismatch(
    source: options.Input,
    output: options.Output = None,
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
    if dry_run:
        print(settings.model_dump_json(indent=2))
        return
    refuse_target(source, output, plot)
    figures = asyncio.run(_score_all(settings, source, limit, output))
    if plot and figures.rows > figures.errors:
        figures.draw(plot, settings.model.name)
        say(f"histograms in {plot}")
    if as_json:
        print(json.dumps(figures.as_dict()))
    else:
        figures.print()
    if figures.errors > max_errors:
        raise typer.Exit(1)


async def _score_all(settings: Settings, source: Path, limit: int | None, output: Path | None) -> Figures:
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
            except (ChatError, PromptTooLongError, EngineMemoryError) as error:
                return row.id, f"line {row.line}: {error}"

        write = stack.enter_context(json_lines(output)) if output else None
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
