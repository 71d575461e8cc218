"""`GET /metrics`, for Prometheus: how things stand, beside what was counted.

Not here: what is counted, and how it is written (`server.metrics`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from fastapi import APIRouter, Request, Response, Security
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from agent.exceptions import EngineClosedError
from server.admission import Admission
from server.bodies import GuardedRoute, bearer
from server.examples import error_responses
from server.metrics import EngineCount, Metrics, Snapshot
from server.settings import LimitSettings

JobCounts = Callable[[], dict[str, int]]

_ENGINES_TIMEOUT_S = 3.0
_TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


class MetricsBackend(Protocol):
    """What the route needs of the application's backend."""

    @property
    def metrics(self) -> Metrics:
        """What it counts; the application adds its requests."""
        ...

    async def engines(self) -> EngineCount:
        """How many engines there are. Raises EngineClosedError when none answers."""
        ...

    def active_adapters(self) -> dict[str, int]:
        """Active version by name of adapter. Blocks."""
        ...


class _MetricsRoute(GuardedRoute):
    """For a key that may see figures and nothing else."""

    scopes = ("metrics",)


def metrics_router(job_counts: JobCounts) -> APIRouter:
    """The route; `job_counts` blocks."""
    router = APIRouter(tags=["status"], route_class=_MetricsRoute, dependencies=[Security(bearer)])

    @router.get(
        "/metrics", response_class=Response, responses={**_TEXT, **error_responses(400, 401, 403, 429, 500, 503)}
    )
    async def metrics(request: Request) -> Response:
        """Figures for Prometheus. Where the service asks for keys, one with the scope `metrics` or `admin`."""
        backend: MetricsBackend = request.app.state.backend
        admission: Admission = request.app.state.admission
        limits: LimitSettings = request.app.state.limits
        engines = await _engines(backend)
        active = await asyncio.to_thread(backend.active_adapters)
        jobs = await asyncio.to_thread(job_counts)
        snapshot = Snapshot(admission.rows, limits.queue_rows, engines, active, jobs)
        return Response(backend.metrics.render(snapshot), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    return router


async def _engines(backend: MetricsBackend) -> EngineCount | None:
    try:
        async with asyncio.timeout(_ENGINES_TIMEOUT_S):
            return await backend.engines()
    except (EngineClosedError, TimeoutError):
        return None
