"""Every error as the same JSON: `{"error": {"message", "type", "param", "code", "line"?}}`.

Not here: which errors there are (`server.exceptions`).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from agent.exceptions import EngineClosedError, ModelError
from server.exceptions import ApiError, InvalidFieldError, UnavailableError
from server.settings import LimitSettings


def install_error_handlers(app: FastAPI) -> None:
    """Answer whatever is raised while a request is handled in the one shape."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(EngineClosedError, _answer_unavailable("engine_unavailable"))
    app.add_exception_handler(ModelError, _answer_unavailable("model_unavailable"))  # that of `gate.text_model`


def error_response(error: ApiError) -> JSONResponse:
    """The response of one error, with `Retry-After` where trying again makes sense."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status in (408, 411, 413):
        headers["Connection"] = "close"
    body = error_body(str(error), error.type, error.code, param=error.param, line=error.line)
    return JSONResponse(body, error.status, headers)


def defect_response() -> JSONResponse:
    """A defect of ours: the log has what happened, the client only a hint."""
    body = error_body("the service failed on this request; its log says why", "server_error", "internal_error")
    return JSONResponse(body, 500)


def error_body(
    message: str, kind: str, code: str, *, param: str | None = None, line: int | None = None
) -> dict[str, Any]:
    error: dict[str, Any] = {"message": message, "type": kind, "param": param, "code": code}
    if line is not None:
        error["line"] = line
    return {"error": error}


async def _api_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _validation_error(_: Request, error: Exception) -> JSONResponse:
    """The first problem, by the name of its field; the rest are counted."""
    assert isinstance(error, RequestValidationError)
    problems: list[Mapping[str, Any]] = list(error.errors())
    first = problems[0]
    param = field_name(_without_tag(first["loc"], error.body))
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    message = f"{param or 'the body'}: {first['msg']}{more}"
    return error_response(InvalidFieldError(message, code=str(first["type"]), param=param))


def _without_tag(location: tuple[str | int, ...], body: Any) -> tuple[str | int, ...]:
    """Where the body is one of several kinds, pydantic puts its kind before the names of the fields."""
    if len(location) > 2 and isinstance(body, dict) and location[1] == body.get("kind"):
        return (location[0], *location[2:])
    return location


def field_name(location: tuple[str | int, ...]) -> str | None:
    """`('body', 'sampling', 'top_p')` as `sampling.top_p`."""
    parts = location[1:] if location and location[0] in ("body", "query", "path", "header") else location
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return name.removeprefix(".") or None


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    """Starlette's own: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    known = {404: "not_found", 405: "method_not_allowed"}
    message = {
        404: f"there is nothing at {request.url.path}: see /docs",
        405: f"{request.url.path} does not take {request.method}: see /docs",
    }.get(error.status_code, str(error.detail))
    body = error_body(message, "invalid_request_error", known.get(error.status_code, "http_error"))
    return JSONResponse(body, error.status_code, error.headers)


def unavailable(request: Request, message: str, code: str) -> UnavailableError:
    """The error of what may be there again after the time that this service has clients wait."""
    limits: LimitSettings = request.app.state.limits
    return UnavailableError(message, code=code, retry_after_s=limits.retry_after_s)


def _answer_unavailable(code: str) -> Callable[[Request, Exception], Coroutine[Any, Any, JSONResponse]]:
    """A handler: what the work needs is not there, and may be later."""

    async def handle(request: Request, error: Exception) -> JSONResponse:
        return error_response(unavailable(request, str(error), code))

    return handle
