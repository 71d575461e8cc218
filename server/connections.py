"""The connections of the service without Ray: HTTP read by h11, and a head that must come within its time.

uvicorn bounds neither the time nor, with its other parser, the size of a head, so clients that send theirs byte by byte
would hold connections for good. h11 refuses heads beyond 16 KiB. Not here: bodies (`server.bodies`), which the
application reads, and Ray Serve, whose proxy has its own connections.
"""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def timed_heads(timeout_s: float) -> type[asyncio.Protocol]:
    """The protocol for `uvicorn.Config(http=...)`.

    Args:
        timeout_s: from the connection, or from the first byte of a further request, to the end of a request's head;
            then the connection is closed.
    """

    class TimedHeads(H11Protocol):
        _patience: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            super().connection_lost(exc)

        def _watch(self) -> None:
            """Count the time while a head is awaited."""
            if self.conn.their_state is not h11.IDLE:
                self._forget()
            elif self._patience is None:
                self._patience = self.loop.call_later(timeout_s, self.timeout_keep_alive_handler)

        def _forget(self) -> None:
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None

    return TimedHeads
