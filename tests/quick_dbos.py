"""DBOS without its waits: it looks for queues, and for its own end, once a second."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import dbos._dbos
from dbos import DBOS

_WAIT_S = 0.05


class _Impatient:
    """An event that is never waited for longer than `_WAIT_S`."""

    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, timeout: float) -> bool:
        return self._event.wait(min(timeout, _WAIT_S))


@contextmanager
def quick_dbos() -> Iterator[None]:
    """Within: DBOS starts with short waits, which it keeps: for new queues, for what is in them, and as it stops."""
    make, look = DBOS.__init__, dbos._dbos.queue_thread

    def made(self: DBOS, *, config: Any, **further: Any) -> None:
        make(self, config=config | {"notification_listener_polling_interval_sec": _WAIT_S}, **further)

    def looking(stop: threading.Event, instance: DBOS) -> None:
        look(_Impatient(stop), instance)  # type: ignore[arg-type]

    with patch.object(DBOS, "__init__", made), patch.object(dbos._dbos, "queue_thread", looking):
        yield
