"""Around every request: its id, how long it took, a line in the log, and a defect that is answered.

Not here: who may enter (`server.bodies`), headers that protect a browser's user (`server.headers`).
"""

from __future__ import annotations

import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import defect_response
from server.logs import about
from server.metrics import UNMATCHED, Metrics

REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_QUIET = ("/healthz", "/readyz", "/metrics")  # asked by machines all the time

_log = logging.getLogger("rewright.requests")


class Requests:
    """ASGI middleware around the whole application.

    Args:
        app: what answers.
        metrics: told of every request.
        proxied: a proxy in front gives every request an id and says it in the answer, so that it is not said twice.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, *, proxied: bool) -> None:
        self._app, self._metrics, self._proxied = app, metrics, proxied

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).getlist("x-request-id")
        request_id = _safe_id(given)
        told = self._proxied and given == [request_id]
        scope.setdefault("state", {})
        started = time.perf_counter()
        status: int | None = None
        seconds = 0.0
        gone = False

        async def receive_noting() -> Message:
            nonlocal gone
            message = await receive()
            gone = gone or message["type"] == "http.disconnect"
            return message

        async def send_with_id(message: Message) -> None:
            nonlocal status, seconds
            if message["type"] == "http.response.start":
                seconds = time.perf_counter() - started
                status = None if gone else message["status"]  # what nobody hears is no answer
                if not told:
                    MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        self._metrics.begin_request()
        with about(request_id=request_id):
            try:
                await self._app(scope, receive_noting, send_with_id)
            finally:
                seconds = seconds or time.perf_counter() - started
                self._metrics.end_request(scope["method"], route_of(scope), status, seconds)
                _tell(scope, status, seconds)


class Defects:
    """ASGI middleware: an exception that nobody expected is logged and becomes an answer with status 500."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def send_noting(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_noting)
        except Exception as error:
            _log.error("a defect: %s %s failed", scope.get("method"), route_of(scope), exc_info=error)
            if begun:  # only the end of the connection tells the client; what the server logs of it says no more
                raise ConnectionAbortedError("an answer was broken off") from None
            await defect_response()(scope, receive, send)


def route_of(scope: Scope) -> str | None:
    """Template of the route that a request matched, `/v1/jobs/{job_id}`; None where it matched none."""
    return getattr(scope.get("route"), "path", None)


def _safe_id(given: list[str]) -> str:
    """The client's own id where it has a safe form, else a new one."""
    return given[0] if len(given) == 1 and REQUEST_ID.fullmatch(given[0]) else f"req_{secrets.token_hex(12)}"


def _tell(scope: Scope, status: int | None, seconds: float) -> None:
    route = route_of(scope) or UNMATCHED
    quiet = route in _QUIET and status is not None and status < 400
    caller = scope["state"].get("caller")
    fields = {
        "method": scope["method"][:16],
        "route": route,
        "status": status,
        "ms": round(seconds * 1000, 1),
        "key": caller.account if caller else "",
    }
    _log.log(logging.DEBUG if quiet else logging.INFO, "request", extra={"fields": fields})
