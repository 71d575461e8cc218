"""Whether what is asked of an engine can wait: bulk work gives way to work that somebody waits for.

It is said once, around the work, and not at each call: checks of the gate call an engine too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# How much later than another call a bulk call may have come and still go first, seconds: it never waits for ever.
_PATIENCE_S = 60.0

_bulk: ContextVar[bool] = ContextVar("bulk", default=False)


@contextmanager
def bulk_work(bulk: bool = True) -> Iterator[None]:
    """Within, and in tasks begun there: calls of engines are bulk work, or are not."""
    token = _bulk.set(bulk)
    try:
        yield
    finally:
        _bulk.reset(token)


def is_bulk() -> bool:
    """Whether a call of an engine made here is bulk work."""
    return _bulk.get()


def due_time() -> float:
    """Where a call made now stands among those that wait, on a clock of this process, seconds; the lowest is first."""
    return time.monotonic() + (_PATIENCE_S if is_bulk() else 0.0)
