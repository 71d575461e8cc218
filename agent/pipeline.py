"""Many rows through the rewriter at once, in order: the pipeline under the command line and the service.

Not here: reading and writing files (`agent.intake`, `agent.output`), batching (the engine does it).
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

from agent.demonstrations import BadRow, Demonstration
from agent.early import EarlyRows
from agent.exceptions import RewrightError
from agent.records import error_row
from agent.rewriter import Rewriter
from agent.usage import Usage

T = TypeVar("T")
R = TypeVar("R")

_log = logging.getLogger("rewright.agent")

_WINDOW = 4  # results that may wait for an earlier one, in units of the concurrency


async def map_in_order(
    function: Callable[[T], Awaitable[R]], items: Iterable[T], concurrency: int
) -> AsyncGenerator[R, None]:
    """Apply `function` to every item, `concurrency` at a time, and yield the results in the items' order.

    At most 4 x `concurrency` items are read ahead, so a slow item holds up neither memory nor the
    others. What is no sequence may come from a pipe or a network: a thread reads it, every item starts as
    soon as it is there, and nobody waits for the thread at the end. An exception of `function` ends the whole;
    so does closing the iterator, and both cancel what is under way. One of `items` comes after the results
    of those before it.
    """
    free = asyncio.Semaphore(concurrency)
    changed = asyncio.Event()  # an item was read, or a result is there
    ahead = _WINDOW * concurrency
    reader = _Reader(items, ahead, changed)
    window: deque[asyncio.Task[R]] = deque()

    async def run(item: T) -> R:
        async with free:
            return await function(item)

    try:
        while window or not reader.ended:
            while reader.ready and len(window) < ahead:
                window.append(asyncio.create_task(run(reader.ready.popleft())))
                window[-1].add_done_callback(lambda _: changed.set())
            if window and window[0].done():
                yield await window.popleft()
                reader.make_room()
            else:
                await changed.wait()
                changed.clear()
        reader.raise_failure()
    finally:
        reader.stop()
        for task in window:
            task.cancel()
        await asyncio.gather(*window, return_exceptions=True)


class _Reader(Generic[T]):
    """Items, read in a daemon thread: a read may block for as long as a producer likes, even beyond our end.

    Attributes:
        ready: what was read and nobody has taken yet.

    Args:
        items: touched by the thread alone; a sequence needs none.
        ahead: how many may be read before `make_room`.
        changed: set in the running loop after every item, and at the end.
    """

    def __init__(self, items: Iterable[T], ahead: int, changed: asyncio.Event) -> None:
        self.ready: deque[T] = deque()
        self._room = threading.Semaphore(ahead)
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._stopped = self._over = False
        self._failure: BaseException | None = None
        if isinstance(items, Sequence):
            self.ready.extend(items)
            self._over = True
        else:
            threading.Thread(target=self._run, args=(items,), name="reader", daemon=True).start()

    @property
    def ended(self) -> bool:
        """Whether all items were read and taken."""
        return self._over and not self.ready  # in this order: nothing is read once it is over

    def make_room(self) -> None:
        """Let one more be read."""
        self._room.release()

    def stop(self) -> None:
        """Read no more; does not wait for the read that is under way."""
        self._stopped = True
        self._room.release()

    def raise_failure(self) -> None:
        """Raise what reading has ended with, if that was no end of the items."""
        if self._failure:
            raise self._failure

    def _run(self, items: Iterable[T]) -> None:
        try:
            rest = iter(items)
            while self._room.acquire() and not self._stopped:
                self.ready.append(next(rest))
                self._tell()
        except StopIteration:
            pass
        except BaseException as error:  # raised where the results are awaited
            self._failure = error
        self._over = True
        self._tell()

    def _tell(self) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._changed.set)


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
