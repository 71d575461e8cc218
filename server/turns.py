"""Calls that run together, or one that runs alone: how a call that kills the engine is told from its neighbours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """A lock that many share or one has; who wants to be alone goes before who comes later."""

    def __init__(self) -> None:
        self._inside = 0
        self._wanting = 0
        self._empty, self._open = asyncio.Event(), asyncio.Event()
        self._empty.set()
        self._open.set()
        self._alone = asyncio.Lock()

    @asynccontextmanager
    async def together(self) -> AsyncIterator[None]:
        """Within: nobody is alone."""
        while not self._open.is_set():
            await self._open.wait()
        self._inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Within: nobody else is inside."""
        self._wanting += 1
        self._open.clear()
        try:
            async with self._alone:
                await self._empty.wait()
                yield
        finally:
            self._wanting -= 1
            if not self._wanting:
                self._open.set()
