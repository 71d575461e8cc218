"""How much work is in the house: the bound on it, and waiting until it is done.

Not here: the order in which work is done; the engine batches whatever is waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from server.exceptions import QueueFullError, UnavailableError


class Admission:
    """Counts the demonstrations of all requests being answered.

    Args:
        capacity: demonstrations in the house at most.
        retry_after_s: told to whoever is turned away, seconds.
    """

    def __init__(self, capacity: int, retry_after_s: int) -> None:
        self._capacity = capacity
        self._retry_after_s = retry_after_s
        self._rows = 0
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
        """Hold room for `rows` demonstrations.

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
        self._rows += rows
        self._empty.clear()
        try:
            yield
        finally:
            self._rows -= rows
            if not self._rows:
                self._empty.set()

    def close(self) -> None:
        """Take no more work."""
        self._closed = True

    async def drained(self) -> None:
        """Return when nothing is left in the house."""
        await self._empty.wait()
