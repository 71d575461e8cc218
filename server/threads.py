"""Blocking work in threads, for tasks that may be cancelled while a thread of theirs writes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def to_its_end(work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """The result of `work`, which blocks, as `asyncio.to_thread` has it; but who is cancelled ends after it.

    A thread cannot be cancelled. One that is left alone writes on while its place is being cleared up, or while
    the next service has the folder already.
    """
    thread = asyncio.create_task(asyncio.to_thread(work, *arguments, **options))
    cancelled: asyncio.CancelledError | None = None
    while not thread.done():
        try:
            await asyncio.wait({thread})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is None:
        return thread.result()
    if not thread.cancelled():
        thread.exception()  # nobody asks for it any more
    raise cancelled
