"""Many rows through the rewriter at once, in order: the pipeline under the command line and the service.

Not here: reading and writing files (`agent.intake`, `agent.output`), batching (the engine does it).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import Any, TypeVar

from agent.demonstrations import BadRow, Demonstration
from agent.early import EarlyRows
from agent.exceptions import RewrightError
from agent.records import error_row
from agent.rewriter import Rewriter, Usage

T = TypeVar("T")
R = TypeVar("R")

_log = logging.getLogger("rewright.agent")

_WINDOW = 4  # results that may wait for an earlier one, in units of the concurrency


async def map_in_order(
    function: Callable[[T], Awaitable[R]], items: Iterable[T], concurrency: int
) -> AsyncGenerator[R, None]:
    """Apply `function` to every item, `concurrency` at a time, and yield the results in the items' order.

    At most 4 x `concurrency` items are read ahead, so a slow item holds up neither memory nor the
    others. An exception of `function` ends the whole; so does closing the iterator, and both cancel
    what is under way.
    """
    free = asyncio.Semaphore(concurrency)

    async def run(item: T) -> R:
        async with free:
            return await function(item)

    window: deque[asyncio.Task[R]] = deque()
    try:
        for item in items:
            window.append(asyncio.create_task(run(item)))
            if len(window) >= _WINDOW * concurrency:
                yield await window.popleft()
        while window:
            yield await window.popleft()
    finally:
        for task in window:
            task.cancel()
        await asyncio.gather(*window, return_exceptions=True)


def rewrite_rows(
    rewriter: Rewriter,
    rows: Iterable[Demonstration | BadRow],
    *,
    model: str,
    concurrency: int,
    early: EarlyRows | None = None,
) -> AsyncGenerator[tuple[dict[str, Any], Usage], None]:
    """Output rows of `rows`, one each, in their order.

    Args:
        rewriter: answers every demonstration, with a record of status `error` where it must. A defect in it, an
            exception that is neither a RewrightError nor an OSError, is logged and becomes an error row too.
        rows: as `agent.intake` reads them; a row that could not be read passes through as an error row.
        model: name recorded in the error rows.
        concurrency: demonstrations worked on at the same time.
        early: keeps the rows that are finished before an earlier one; those that it holds are not made again.
    """

    async def one(row: Demonstration | BadRow) -> tuple[dict[str, Any], Usage]:
        if isinstance(row, BadRow):
            return error_row(row, model), Usage()
        if early and (finished := early.find(row)):
            return finished, Usage()
        try:
            rewritten = await rewriter.rewrite(row)
        except (RewrightError, OSError):
            raise
        except Exception as error:  # a defect of ours: this row pays for it, the others do not
            _log.error("row %s failed", row.id, exc_info=error)
            message = f"a defect in rewright: {type(error).__name__}, see the log"
            return error_row(BadRow(row.id, row.line or 0, message, source=row.source), model), Usage()
        record = rewritten.record.as_dict()
        if early:
            early.keep(record)
        return record, rewritten.usage

    return map_in_order(one, rows, concurrency)
