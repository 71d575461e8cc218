"""Routes of published adapters: which there are, and making a version the active one.

Not here: what is done about it (`server.backend`, `server.adapters`).
"""

from __future__ import annotations

from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Body, Path, Request

from agent.adapters import NAME_PATTERN
from server.bodies import GuardedRoute
from server.examples import (
    ACTIVATE_ANSWER,
    ACTIVATE_REQUESTS,
    ADAPTERS_ANSWER,
    answer,
    error_responses,
)
from server.schemas import ActivateBody, ActivateResponse, AdaptersResponse

Name = Annotated[str, Path(pattern=f"^{NAME_PATTERN}$", description="name of a published adapter")]


class _AdminRoute(GuardedRoute):
    """For keys that may change what everybody gets."""

    scopes = ("admin",)


_listing = APIRouter(prefix="/v1/adapters", tags=["adapters"], route_class=GuardedRoute)
_activation = APIRouter(prefix="/v1/adapters", tags=["adapters"], route_class=_AdminRoute)
routers = (_listing, _activation)


class AdapterBackend(Protocol):
    """What the routes need of the application's backend."""

    async def list_adapters(self) -> dict[str, Any]:
        """The body of the answer. Raises EngineClosedError."""
        ...

    async def activate_adapter(self, name: str, version: int) -> dict[str, Any]:
        """The body of the answer. Raises UnknownNameError, ConflictError, UnavailableError, EngineClosedError."""
        ...


@_listing.get("", responses=answer(ADAPTERS_ANSWER, AdaptersResponse) | error_responses(400, 401, 403, 429, 500, 503))
async def list_adapters(request: Request) -> dict[str, Any]:
    """The published adapters: their versions, which is active, and which are loaded."""
    backend: AdapterBackend = request.app.state.backend
    return await backend.list_adapters()


@_activation.post(
    "/{name}/activate",
    responses=answer(ACTIVATE_ANSWER, ActivateResponse)
    | error_responses(400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 500, 503),
)
async def activate_adapter(
    request: Request, name: Name, body: Annotated[ActivateBody, Body(openapi_examples=ACTIVATE_REQUESTS)]
) -> dict[str, Any]:
    """Make a version the one that requests for this name get from now on.

    Requests in flight finish on the version with which they began. Going back is activating an older version.
    """
    backend: AdapterBackend = request.app.state.backend
    return await backend.activate_adapter(name, body.version)
