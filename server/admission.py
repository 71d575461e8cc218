"""How much work is in the house: the bound on it, and waiting until it is done.

Requests are turned away where there is no room, rows of jobs wait for it. So that either goes on beside as much of the
other as there may ever be, an eighth of the room is kept for whichever has less of it: a place that becomes free goes
to a job that waits, until jobs have an eighth; beyond that they take none of the last eighth.
Not here: the order in which work is done; the engine batches whatever is waiting.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from server.exceptions import QueueFullError, UnavailableError

_SHARE = 8


class Admission:
    """Counts the demonstrations of all requests being answered, and of jobs.

    Args:
        capacity: demonstrations in the house at most.
        retry_after_s: told to whoever is turned away, seconds.
    """

    def __init__(self, capacity: int, retry_after_s: int) -> None:
        self._capacity = capacity
        self._retry_after_s = retry_after_s
        self._share = max(1, capacity // _SHARE)
        self._rows = self._job_rows = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._closed = False
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def rows(self) -> int:
        """Demonstrations in the house."""
        return self._rows

    @property
    def closed(self) -> bool:
        return self._closed

    @contextmanager
    def admit(self, rows: int) -> Iterator[None]:
        """Hold room for `rows` demonstrations of a request.

        Raises:
            QueueFullError: there is no room for them now.
            UnavailableError: the service is shutting down.
        """
        if self._closed:
            raise UnavailableError(
                "the service is shutting down", code="shutting_down", retry_after_s=self._retry_after_s
            )
        if self._rows + rows > self._capacity:
            raise QueueFullError(
                f"{self._rows} demonstrations are being worked on and there is room for {self._capacity}: "
                f"try again later, or with fewer than {rows}",
                code="queue_full",
                retry_after_s=self._retry_after_s,
            )
        self._enter(rows)
        try:
            yield
        finally:
            self._leave(rows)

    @asynccontextmanager
    async def job_row(self) -> AsyncIterator[None]:
        """Hold room for one demonstration of a job, once there is some; served in the order of asking."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._let_in()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._job_rows -= 1
                self._leave(1)

    def close(self) -> None:
        """Take no more work."""
        self._closed = True

    async def drained(self) -> None:
        """Return when nothing is left in the house."""
        await self._empty.wait()

    def _enter(self, rows: int) -> None:
        self._rows += rows
        self._empty.clear()

    def _leave(self, rows: int) -> None:
        self._rows -= rows
        self._let_in()
        if not self._rows:
            self._empty.set()

    def _let_in(self) -> None:
        """Give room to rows of jobs at once, so that no request comes between."""
        while self._waiting and not self._closed and self._room_for_a_job():
            turn = self._waiting.popleft()
            if not turn.done():  # else cancelled
                turn.set_result(None)
                self._job_rows += 1
                self._enter(1)

    def _room_for_a_job(self) -> bool:
        kept = 0 if self._job_rows < self._share else self._share
        return self._rows < self._capacity - kept
