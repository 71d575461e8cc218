"""The rows of a method: made by the rewriter, or those of another method without its fallback rows.

What each row cost is kept beside it, so that a run that was interrupted knows the cost of all of them.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from contextlib import aclosing
from pathlib import Path
from typing import Any, TextIO

from agent.assembly import build_rewriter, load_adapter, open_chat, open_engine
from agent.demonstrations import BadRow, Demonstration
from agent.disk import write_whole
from agent.intake import read_rows
from agent.models import resolve_model
from agent.output import RecordWriter
from agent.pipeline import rewrite_rows
from agent.records import ACCEPTED
from agent.usage import Usage
from trainer.compare.cost import DataCost
from trainer.compare.plan import Unit
from trainer.compare.settings import CompareRequest
from trainer.exceptions import TrainingDataError

ROWS, COSTS = "rows.jsonl", "costs.jsonl"

OnRow = Callable[[int, int], None]


def make_rows(request: CompareRequest, unit: Unit, on_row: OnRow) -> None:
    """Rewrite the expert demonstrations into the folder of `unit`, going on where an earlier run stopped.

    A demonstration that the rewriter cannot handle stays the expert's, so that all methods train on the same questions.

    Args:
        request: which demonstrations and model.
        unit: of kind `data`, with the strategy, the gate and the rewriter.
        on_row: called with rows done and rows in all.

    Raises:
        InputFileError, ModelError, AdapterError: demonstrations, model or adapter cannot be had.
        OutputFileError, ResumeError: as `RecordWriter`.
    """
    folder = request.output / unit.folder
    settings = {"key": folder.name}
    source, limit = request.compare.train, request.compare.train_limit
    with RecordWriter(folder / ROWS, source=source, settings=settings, resume=True) as writer:
        rows = list(writer.remaining(read_rows(source, limit=limit)))
        if rows:
            asyncio.run(_rewrite(request, unit, rows, writer, folder / COSTS, on_row))


async def _rewrite(
    request: CompareRequest,
    unit: Unit,
    rows: list[Demonstration | BadRow],
    writer: RecordWriter,
    costs: Path,
    on_row: OnRow,
) -> None:
    assert unit.rewrite, "a unit that filters rows makes none"
    assert unit.gate, "what makes rows says what they must pass"
    files = resolve_model(request.model)
    engine = await open_engine(files, request.engine)
    try:
        adapter = request.compare.adapters[unit.adapter] if unit.adapter else None
        name = await load_adapter(engine, adapter, files) if adapter else None
        rewriter = build_rewriter(engine, open_chat(files), unit.gate, unit.rewrite, adapter=name)
        try:
            results = rewrite_rows(rewriter, rows, model=files.name, concurrency=unit.rewrite.concurrency)
            asked = iter(rows)
            done, total, last = writer.done, writer.done + len(rows), time.monotonic()
            with open_costs(costs) as kept:
                async with aclosing(results):
                    async for row, usage in results:
                        now = time.monotonic()
                        # Before the row: a row that is written has its cost, and one that is not is made again.
                        kept.write(f"{json.dumps(_cost(row['id'], usage, now - last))}\n")
                        kept.flush()
                        writer.write(or_fallback(row, next(asked)))
                        done, last = done + 1, now
                        on_row(done, total)
        finally:
            await rewriter.aclose()
    finally:
        await engine.close()


def or_fallback(row: dict[str, Any], asked: Demonstration | BadRow) -> dict[str, Any]:
    """The output row of `asked`: in place of an error the expert's text, with the error kept for people.

    A row that could not be read stays an error: no method can train on it.
    """
    if row["status"] != "error" or isinstance(asked, BadRow):
        return row
    return {
        **row,
        "prompt": [{"role": turn.role, "content": turn.content} for turn in asked.prompt],
        "completion": [{"role": "assistant", "content": asked.expert}],
        "status": "fallback",
    }


def open_costs(path: Path) -> TextIO:
    """The costs to add lines to; a line that a killed run cut off is ended, so that it does not swallow the next."""
    file = path.open("a", encoding="utf-8")
    file.write("\n")
    return file


def _cost(row: str, usage: Usage, seconds: float) -> dict[str, Any]:
    cost = DataCost(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        scored_tokens=usage.scored_tokens,
        seconds=round(seconds, 3),
    )
    return {"row": row, **cost.model_dump()}


def read_cost(folder: Path) -> DataCost:
    """What the rows in `folder` cost together."""
    return sum_costs((folder / COSTS).read_text(encoding="utf-8").splitlines())


def sum_costs(lines: Iterable[str]) -> DataCost:
    """The sum over rows; of a row that was made again only the last counts, a line that was cut off does not."""
    by_row: dict[str, DataCost] = {}
    for line in lines:
        try:
            fields = json.loads(line)
            row = fields.pop("row")
            by_row[row] = DataCost(**fields)
        except ValueError:
            continue
    total = DataCost()
    for cost in by_row.values():
        total = DataCost(**{name: getattr(total, name) + value for name, value in cost.model_dump().items()})
    return total


def keep_accepted(source: Path, folder: Path) -> None:
    """Copy the rows of the unit in `source` that have an accepted rewrite.

    Raises:
        TrainingDataError: there are none.
    """
    lines = (source / ROWS).read_text(encoding="utf-8").split("\n")
    kept = [line for line in lines if line and json.loads(line)["status"] in ACCEPTED]
    if not kept:
        raise TrainingDataError(f"{source / ROWS}: no row has an accepted rewrite; there is nothing to train on")
    write_whole(folder / ROWS, "".join(f"{line}\n" for line in kept))
