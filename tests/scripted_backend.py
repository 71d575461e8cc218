"""A backend that echoes what it is asked, and clients of the application over it."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import httpx
from fastapi import FastAPI

from agent.engine import EngineInfo
from server.app import create_app
from server.auth import Keys
from server.examples import ADAPTERS_ANSWER
from server.metrics import EngineCount, Metrics
from server.schemas import MismatchBody, RewritesBody
from server.settings import LimitSettings, ServerSettings
from server.work import DurableWork
from tests.asgi import client_to

ROW = {"question": "1 + 1?", "answer": "2"}
LIMITS = LimitSettings(rows=4, body_bytes=4096, queue_rows=5, request_timeout_s=5, body_timeout_s=1, retry_after_s=7)


class ScriptedBackend:
    """Echoes what it is asked; waits for `go` first; raises `error` instead when there is one."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.error: Exception | None = None
        self.metrics = Metrics()
        self.tracer = None

    async def rewrite(self, body: RewritesBody) -> dict[str, Any]:
        return await self._answer(body.demonstrations)

    async def mismatch(self, body: MismatchBody) -> dict[str, Any]:
        return await self._answer(body.demonstrations)

    async def list_adapters(self) -> dict[str, Any]:
        return ADAPTERS_ANSWER

    async def activate_adapter(self, name: str, version: int) -> dict[str, Any]:
        if self.error:
            raise self.error
        return {"name": name, "active": version, "previous": None}

    async def engines(self) -> EngineCount:
        await self.ping()
        return EngineCount(answering=1, started=2)

    def active_adapters(self) -> dict[str, int]:
        return {"math": 3}

    async def ping(self) -> EngineInfo:
        if self.error:
            raise self.error
        return EngineInfo("scripted", 128)

    async def _answer(self, rows: list[Any]) -> dict[str, Any]:
        self.started.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if self.error:
            raise self.error
        return {"data": rows, "model": "scripted"}


def app_over(backend: ScriptedBackend, keys: Keys | None = None, limits: LimitSettings = LIMITS) -> FastAPI:
    settings = ServerSettings(limits=limits, state=os.environ["REWRIGHT_SERVER__STATE"])
    return create_app(backend, settings, keys or Keys(), DurableWork(settings))


def client_over(
    backend: ScriptedBackend, keys: Keys | None = None, limits: LimitSettings = LIMITS
) -> httpx.AsyncClient:
    return client_to(app_over(backend, keys, limits), "http://127.0.0.1:8000")


async def post_rewrites(client: httpx.AsyncClient, content: bytes, **headers: str) -> httpx.Response:
    return await client.post("/v1/rewrites", content=content, headers={"Content-Type": "application/json"} | headers)
