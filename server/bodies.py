"""The door of a route: who may enter, and a body that is bounded while it streams and strictly JSON.

Not here: what the JSON must contain (`server.schemas`), and what a demonstration is (`agent.rows`).
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any, ClassVar

from fastapi import Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from starlette.requests import ClientDisconnect

from agent.strict_json import JsonValueError, check_json_value, parse_json
from server.auth import authenticate
from server.errors import field_name
from server.exceptions import BadRequestError, BodyTimeoutError, MediaTypeError, TooLargeError, UnavailableError
from server.keys import Scope
from server.rates import Rates
from server.settings import LimitSettings

bearer = HTTPBearer(auto_error=False, description="A key of the service.")

_BODIES_AT_ONCE = 32  # of the longest that are allowed, or as many more as are shorter
_NAMED_LEVELS = 3  # params.sampling.top_p
# Each becomes an object of up to a hundred bytes, so that a short body could take much memory and time.
_PART = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[,\[{]', re.DOTALL)
_PARTS_PER_ROW = 1024  # of a full request on average


def declared_bytes(request: Request) -> int | None:
    """Length of the body as the head of a request says, None where it does not."""
    declared = request.headers.get("content-length", "")
    return int(declared.lstrip("0")[:18] or 0) if declared.isdecimal() else None


class BodyRoom:
    """Bounds the memory of bodies that are being received or checked, and have not been counted as demonstrations yet.

    Args:
        limits: of a body, of which so many find room, and what whoever finds none is told.
    """

    def __init__(self, limits: LimitSettings) -> None:
        self._left = _BODIES_AT_ONCE * limits.body_bytes
        self._retry_after_s = limits.retry_after_s

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Hold room for so many bytes. Raises UnavailableError when there is none."""
        if size > self._left:
            raise UnavailableError(
                "too many bodies are being received: try again later",
                code="too_many_bodies",
                retry_after_s=self._retry_after_s,
            )
        self._left -= size
        try:
            yield
        finally:
            self._left += size


class BoundedRequest(Request):
    """A request whose body is read within the limits in `request.app.state.limits`, as strict JSON."""

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The body in chunks.

        Raises:
            TooLargeError: it is longer than allowed, whatever its Content-Length says.
        """
        limits: LimitSettings = self.app.state.limits
        self._longest()
        received = 0
        async for chunk in super().stream():
            received += len(chunk)
            if received > limits.body_bytes:
                raise self._too_large()
            yield chunk

    async def json(self) -> Any:
        """The body as JSON, read once. Its room is held until `request.state.body_room` is closed.

        Raises:
            ApiError: the body is too long, too slow, not declared as JSON or not strictly JSON, or too many others are
                being received.
        """
        if not hasattr(self, "_json"):
            _require_json(self.headers.get("content-type", ""))
            room: BodyRoom = self.app.state.body_room
            self.state.body_room.enter_context(room.hold(self._longest()))
            limits: LimitSettings = self.app.state.limits
            self._json = await asyncio.to_thread(parse_body, await self._whole(), limits.rows)
        return self._json

    async def _whole(self) -> bytes:
        limits: LimitSettings = self.app.state.limits
        try:
            async with asyncio.timeout(limits.body_timeout_s):
                return await self.body()
        except TimeoutError:
            raise BodyTimeoutError(
                f"the body did not arrive within {limits.body_timeout_s:g} seconds", code="body_timeout"
            ) from None
        except ClientDisconnect:
            raise BadRequestError("the body ended before its time", code="incomplete_body") from None

    def _longest(self) -> int:
        """Bytes that may come: as declared, else what is allowed. Raises TooLargeError."""
        limits: LimitSettings = self.app.state.limits
        declared = declared_bytes(self)
        if declared is None:
            return limits.body_bytes
        if declared > limits.body_bytes:
            raise self._too_large()
        return declared

    def _too_large(self) -> TooLargeError:
        limits: LimitSettings = self.app.state.limits
        return TooLargeError(
            f"the body is longer than {limits.body_bytes} bytes: send the demonstrations in several requests",
            code="body_too_large",
        )


class GuardedRoute(APIRoute):
    """A route that lets keys with one of its scopes in, and reads its body, bounded, before anything looks at it.

    `request.state.caller` is who asks. `request.state.body_room` is closed when the request is answered; a handler
    closes it before, once what it was sent is counted in another way.
    """

    scopes: ClassVar[tuple[Scope, ...]] = ("rewrite",)
    request_class: ClassVar[type[Request]] = BoundedRequest

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            request.state.caller = await authenticate(request, self.scopes)
            rates: Rates = request.app.state.rates
            rates.take_request(request.state.caller)
            _refuse_encoded(request)
            _refuse_ignored(request, self.dependant)
            bounded = self.request_class(request.scope, request.receive)
            with ExitStack() as request.state.body_room:
                if self.body_field is not None:
                    await bounded.json()
                return await handler(bounded)

        return handle


class WorkRoute(GuardedRoute):
    """A route that all kinds of work need; what one kind asks for beyond this is the route's own business."""

    scopes = ("rewrite", "train")


def parse_body(body: bytes, rows: int) -> Any:
    """Decode strict JSON that may have so many demonstrations.

    Raises:
        BadRequestError: with the line of the body, or the field, where it is known.
        TooLargeError: it has more values than that many demonstrations have.
    """
    most = rows * _PARTS_PER_ROW
    if next(islice(_PART.finditer(body), most, None), None) is not None:
        raise TooLargeError(
            f"the body has more than {most} strings, commas and opening brackets: "
            "send the demonstrations in several requests",
            code="too_many_values",
        )
    value = None
    try:
        value = parse_json(body.decode("utf-8-sig"))
        check_json_value(value)
    except UnicodeDecodeError as error:
        raise BadRequestError(
            f"the body is not UTF-8: byte {error.start}",
            code="invalid_utf8",
            line=body.count(b"\n", 0, error.start) + 1,
        ) from None
    except JsonValueError as error:
        syntax = error.__context__
        line = syntax.lineno if isinstance(syntax, json.JSONDecodeError) else None
        field = _field_at_fault(value)
        message = f"{field}: {error}" if field else f"the body cannot be used: {error}"
        raise BadRequestError(message, code="invalid_json", param=field, line=line) from None
    return value


def _field_at_fault(value: Any) -> str | None:
    """The field of a parsed body that is no plain data, as `sampling.top_p`; None when it is the body itself."""
    # Every level is another look at all that is below it.
    location: list[str | int] = ["body"]
    for _ in range(_NAMED_LEVELS):
        if not isinstance(value, dict | list):
            break
        inside = value.items() if isinstance(value, dict) else enumerate(value)
        found = next(((name, item) for name, item in inside if not _is_plain(item)), None)
        if found is None:
            break  # the name of a field itself
        location.append(found[0])
        value = found[1]
    return field_name(tuple(location))


def _is_plain(value: Any) -> bool:
    try:
        check_json_value(value)
    except JsonValueError:
        return False
    return True


def _refuse_encoded(request: Request) -> None:
    """Nothing is unpacked here, so that there is no bomb; taken as it is, the body would be called rubbish."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise MediaTypeError(
            f"the body is declared as {encoding[:40]!r}: send it as it is, without Content-Encoding",
            code="unsupported_encoding",
        )


def _refuse_ignored(request: Request, dependant: Dependant) -> None:
    """Refuse query parameters that the route does not have, and what it has once and is given several times."""
    known = {field.alias for field in dependant.query_params}
    for name in request.query_params:
        if name not in known:
            taken = f"it takes {', '.join(sorted(known))}" if known else "it takes none"
            raise BadRequestError(
                f"there is no query parameter {name[:40]!r} here: {taken}", code="unknown_parameter", param=name[:40]
            )
    for given, names in (
        (request.query_params, known),
        (request.headers, {field.alias for field in dependant.header_params}),
    ):
        for name in sorted(names):
            if len(given.getlist(name)) > 1:
                raise BadRequestError(f"{name} is given more than once", code="duplicate_parameter", param=name)


def _require_json(content_type: str) -> None:
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise MediaTypeError(
            f"the body must be declared as application/json, got {media_type or 'no Content-Type'!r}",
            code="unsupported_media_type",
        )
