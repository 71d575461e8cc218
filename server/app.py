"""The HTTP application: routes over a `Backend`, the same under uvicorn and under Ray Serve.

Not here: reading bodies (`server.bodies`), the shape of errors (`server.errors`), what rewriting
means (`agent.rewriter`), where the engine runs (`server.deployments`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

from fastapi import APIRouter, Body, FastAPI, Request, Security
from fastapi.responses import HTMLResponse, JSONResponse

from agent.demonstrations import BadRow, Demonstration
from agent.engine import EngineInfo
from agent.exceptions import EngineClosedError
from server.admission import Admission
from server.auth import Keys
from server.bodies import BodyRoom, GuardedRoute, bearer
from server.errors import install_error_handlers, unavailable
from server.examples import (
    MISMATCH_ANSWER,
    MISMATCH_REQUESTS,
    REWRITES_ANSWER,
    REWRITES_REQUESTS,
    answer,
    error_responses,
)
from server.exceptions import BadRequestError, TooLargeError, WorkTimeoutError
from server.headers import GuardHeaders
from server.page import PAGE
from server.rates import Rates
from server.requests import Defects, Requests
from server.routes_adapters import AdapterBackend
from server.routes_adapters import routers as adapter_routers
from server.routes_metrics import MetricsBackend, metrics_router
from server.schemas import (
    HealthResponse,
    MismatchBody,
    MismatchResponse,
    ReadyResponse,
    RewriteOptions,
    RewritesBody,
    RewritesResponse,
)
from server.settings import LimitSettings, ServerSettings, require_keys_in_public
from server.uploads import UploadPlaces
from server.work import DurableWork

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

T = TypeVar("T")
B = TypeVar("B", RewritesBody, MismatchBody)

_READY_TIMEOUT_S = 3.0
_WORK_ERRORS = error_responses(400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 500, 503, 504)


class Backend(AdapterBackend, MetricsBackend, Protocol):
    """What the application needs; `server.backend` has the real one."""

    @property
    def tracer(self) -> Tracer | None:
        """Makes spans of what the application does too; None for no traces."""
        ...

    async def rewrite(self, body: RewritesBody) -> dict[str, Any]:
        """The body of the answer. Raises UnknownNameError, ConflictError and EngineClosedError."""
        ...

    async def mismatch(self, body: MismatchBody) -> dict[str, Any]:
        """The body of the answer. Raises EngineClosedError."""
        ...

    async def check_options(self, options: RewriteOptions) -> str | None:
        """The adapter that they mean now, `name@version`; None for the base model alone.

        Raises:
            UnknownNameError: a strategy or an adapter is not there.
        """
        ...

    async def rewrite_row(self, row: Demonstration | BadRow, options: RewriteOptions) -> dict[str, Any]:
        """The record of one row. Raises UnknownNameError and EngineClosedError."""
        ...

    async def ping(self) -> EngineInfo:
        """Ask the engine now. Raises EngineClosedError when none answers."""
        ...


def create_app(
    backend: Backend, settings: ServerSettings, keys: Keys, work: DurableWork, *, proxied: bool = False
) -> FastAPI:
    """The application.

    Args:
        backend: what rewrites and scores.
        settings: its limits are enforced here; host and port are the caller's business, but for the need of a key.
        keys: bearer keys that may pass, those that `work` keeps apart; none at all lets everybody on this machine in.
        work: files, jobs and stored keys. It runs from the application's start to its end.
        proxied: behind the proxy of Ray Serve, which says `X-Request-ID` itself, and holds what is uploaded in memory.

    Raises:
        SettingsError: others can reach the host, and there are no keys here, whatever the one who started this saw.
    """
    keys = keys.with_store(work.keys)
    require_keys_in_public(settings, has_keys=bool(keys))
    admission = Admission(settings.limits.queue_rows, settings.limits.retry_after_s)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            await work.start(backend, admission)
            yield
        finally:
            await work.stop()

    app = FastAPI(
        title="Rewright",
        version=version("rewright"),
        summary="Rewrites expert demonstrations so that they fit the model that will learn from them.",
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.backend = backend
    app.state.limits = settings.limits
    app.state.body_room = BodyRoom(settings.limits)
    app.state.upload_places = UploadPlaces(settings.files, settings.limits, proxied=proxied)
    app.state.keys = keys
    app.state.work = work
    app.state.rates = Rates(settings.limits)
    app.state.admission = admission
    app.add_middleware(Defects)  # innermost: the last one added is the first to see a request
    app.add_middleware(GuardHeaders, local_only=not keys)
    if backend.tracer is not None:
        from server.tracing import TracedRequests

        app.add_middleware(TracedRequests, tracer=backend.tracer)
    app.add_middleware(Requests, metrics=backend.metrics, proxied=proxied)
    install_error_handlers(app)
    app.include_router(_status)
    app.include_router(_work)
    app.include_router(metrics_router(work.job_counts))
    for router in adapter_routers:
        app.include_router(router, dependencies=[Security(bearer)])
    for router in work.routers():
        app.include_router(router)
    return app


_status = APIRouter(tags=["status"])
_work = APIRouter(
    prefix="/v1", tags=["work"], route_class=GuardedRoute, dependencies=[Security(bearer)], responses=_WORK_ERRORS
)


@_status.get("/", include_in_schema=False)
async def page() -> HTMLResponse:
    return HTMLResponse(PAGE)


@_status.get("/healthz", response_model=HealthResponse)
async def health() -> dict[str, str]:
    """Whether this process answers at all."""
    return {"status": "ok"}


@_status.get("/readyz", response_model=ReadyResponse, responses=error_responses(503))
async def ready(request: Request) -> dict[str, Any]:
    """Whether work would be done now: asks the engine, the database and the disk, every time."""
    admission: Admission = request.app.state.admission
    work: DurableWork = request.app.state.work
    if admission.closed:
        raise unavailable(request, "the service is shutting down", "shutting_down")
    try:
        async with asyncio.timeout(_READY_TIMEOUT_S):
            info = await request.app.state.backend.ping()
    except EngineClosedError as error:
        raise unavailable(request, str(error), "engine_unavailable") from error
    except TimeoutError:
        message = f"the engine did not answer within {_READY_TIMEOUT_S:g} seconds"
        raise unavailable(request, message, "engine_unavailable") from None
    try:
        async with asyncio.timeout(_READY_TIMEOUT_S):
            await work.check()
    except TimeoutError:
        message = f"the database or the disk did not answer within {_READY_TIMEOUT_S:g} seconds"
        raise unavailable(request, message, "state_unavailable") from None
    return {"status": "ready", "model": info.model, "max_length": info.max_length, "queue_rows": admission.rows}


@_work.post("/rewrites", responses=answer(REWRITES_ANSWER, RewritesResponse))
async def create_rewrites(
    request: Request, body: Annotated[RewritesBody, Body(openapi_examples=REWRITES_REQUESTS)]
) -> JSONResponse:
    """Rewrite demonstrations: one record each, in their order."""
    backend: Backend = request.app.state.backend
    return await _answer(request, body, backend.rewrite)


@_work.post("/mismatch", responses=answer(MISMATCH_ANSWER, MismatchResponse))
async def create_mismatch(
    request: Request, body: Annotated[MismatchBody, Body(openapi_examples=MISMATCH_REQUESTS)]
) -> JSONResponse:
    """How surprised the base model is by every expert completion, token by token."""
    backend: Backend = request.app.state.backend
    return await _answer(request, body, backend.mismatch)


async def _answer(request: Request, body: B, work: Callable[[B], Coroutine[Any, Any, dict[str, Any]]]) -> JSONResponse:
    """Do `work` within the limits; it is cancelled when the client goes away.

    Raises:
        TooLargeError, RateLimitError, QueueFullError, UnavailableError, WorkTimeoutError: a limit was met.
    """
    limits: LimitSettings = request.app.state.limits
    admission: Admission = request.app.state.admission
    rows = len(body.demonstrations)
    if rows > limits.rows:
        raise TooLargeError(
            f"{rows} demonstrations, and a request may have {limits.rows}: send several requests",
            code="too_many_rows",
            param="demonstrations",
        )
    with admission.admit(rows):
        request.app.state.rates.take_rows(request.state.caller, rows)  # a request that is turned away costs none
        request.state.body_room.close()
        return JSONResponse(await _while_connected(request, work(body), limits.request_timeout_s))


async def _while_connected(request: Request, work: Coroutine[Any, Any, T], timeout_s: float) -> T:
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise BadRequestError("the client closed the connection", code="client_closed")
        raise WorkTimeoutError(f"the work took longer than {timeout_s:g} seconds", code="work_timeout")
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
