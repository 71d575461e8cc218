"""Clients of an application in this process, and the errors that it answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI

from server.schemas import ErrorResponse
from tests.quick_dbos import quick_dbos


def client_to(app: FastAPI, base_url: str = "http://127.0.0.1", **options: Any) -> httpx.AsyncClient:
    """A client of the application as it is, started or not; its defects are answers, as clients get them."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url=base_url, **options)


@asynccontextmanager
async def client_of(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Within: the application runs, from its start to its end, with a client as `client_to` makes it."""
    with quick_dbos():
        async with app.router.lifespan_context(app), client_to(app, timeout=None) as client:
            yield client


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error of a response, after checking its shape."""
    body = response.json()
    ErrorResponse.model_validate(body, strict=True)
    assert response.headers["content-type"] == "application/json"
    return dict(body["error"])
