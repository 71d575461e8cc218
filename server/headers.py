"""Headers that protect a browser's user, and the refusal of hosts that are not this machine and of unclear bodies.

Without keys the service is open to this machine only. A page of the web whose name resolves to
loopback (DNS rebinding) would count as this machine, were it not for its Host header; and one that
sends a form to loopback, were it not for its Origin header.
"""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import error_response
from server.exceptions import BadRequestError
from server.settings import is_loopback

_EVERYWHERE = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_SAFE = ("GET", "HEAD", "OPTIONS")
_POLICY = "default-src 'none'; frame-ancestors 'none'"
_POLICY_BY_PATH = {
    "/": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'",
    # FastAPI's page loads its script and style from elsewhere.
    "/docs": "default-src 'none'; style-src https:; script-src https: 'unsafe-inline'; img-src https: data:; "
    "connect-src 'self'",
}


class GuardHeaders:
    """ASGI middleware around the whole application.

    Args:
        app: what is guarded.
        local_only: refuse requests whose Host is not a loopback name, and changes that a page from elsewhere asks for.
    """

    def __init__(self, app: ASGIApp, *, local_only: bool) -> None:
        self._app = app
        self._local_only = local_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _EVERYWHERE.items():
                    headers[name] = value
                headers["Content-Security-Policy"] = _POLICY_BY_PATH.get(scope["path"], _POLICY)
            await send(message)

        headers = Headers(scope=scope)
        if "content-length" in headers and "transfer-encoding" in headers:
            # Two servers in a row may disagree on where such a request ends, and the next one begins.
            error = BadRequestError("a request has a Content-Length or a Transfer-Encoding", code="ambiguous_length")
            answer = error_response(error)
            answer.headers["Connection"] = "close"
            await answer(scope, receive, send_guarded)
            return
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._local_only and not is_loopback(_without_port(host)):
            error = BadRequestError(
                f"without API keys only this machine is served, and {host!r} is not one of its loopback names",
                code="host_not_allowed",
            )
            await error_response(error)(scope, receive, send_guarded)
            return
        if self._local_only and origin is not None and scope["method"] not in _SAFE and not _is_local(origin):
            error = BadRequestError(
                f"without API keys only pages of this machine are served, and {origin[:200]!r} is none",
                code="origin_not_allowed",
            )
            await error_response(error)(scope, receive, send_guarded)
            return
        await self._app(scope, receive, send_guarded)


def _is_local(origin: str) -> bool:
    """Whether a page of `http://localhost:8000` or the like asks; pages of no origin say `null`."""
    scheme, _, host = origin.partition("://")
    return scheme in ("http", "https") and is_loopback(_without_port(host))


def _without_port(host: str) -> str:
    """`localhost:8000` as `localhost`, `[::1]:8000` as `[::1]`."""
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() else host
