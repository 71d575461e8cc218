"""Readiness tells the truth: with the engine, the database or the disk away, it says so, and when they are back."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from agent.engine import EngineInfo
from agent.exceptions import EngineClosedError
from server.app import create_app
from server.auth import Keys
from server.schemas import ErrorResponse
from server.settings import ServerSettings
from server.work import DurableWork
from tests.plain_backend import PlainBackend


class Backend(PlainBackend):
    dead = False

    async def ping(self) -> EngineInfo:
        if self.dead:
            raise EngineClosedError("the engine has died")
        return await super().ping()


@pytest.fixture
def backend() -> Backend:
    return Backend()


@pytest.fixture
def work(tmp_path: Path) -> DurableWork:
    return DurableWork(ServerSettings(state=str(tmp_path)))


@pytest.fixture
async def client(backend: Backend, work: DurableWork) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(backend, ServerSettings(), Keys(), work))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        yield http


async def _code(client: httpx.AsyncClient) -> str:
    """Code of the error that `/readyz` answers with, "ready" where it does not; liveness holds all the same."""
    assert (await client.get("/healthz")).status_code == 200
    response = await client.get("/readyz")
    if response.status_code == 200:
        return "ready"
    assert response.status_code == 503
    assert response.headers["retry-after"]
    ErrorResponse.model_validate(response.json(), strict=True)
    return str(response.json()["error"]["code"])


async def test_without_an_engine_it_is_not_ready(client: httpx.AsyncClient, backend: Backend) -> None:
    assert await _code(client) == "ready"
    backend.dead = True
    assert await _code(client) == "engine_unavailable"
    backend.dead = False
    assert await _code(client) == "ready"


async def test_without_its_database_it_is_not_ready(client: httpx.AsyncClient, tmp_path: Path) -> None:
    assert await _code(client) == "ready"
    for broken, (before, after) in ((True, ("rewright_schema", "gone")), (False, ("gone", "rewright_schema"))):
        connection = sqlite3.connect(tmp_path / "service.sqlite")
        connection.execute(f"ALTER TABLE {before} RENAME TO {after}")
        connection.close()
        assert await _code(client) == ("database_unavailable" if broken else "ready")


async def test_without_its_disk_it_is_not_ready(client: httpx.AsyncClient, tmp_path: Path) -> None:
    incoming, aside = tmp_path / "files" / "incoming", tmp_path / "aside"
    incoming.rename(aside)
    assert await _code(client) == "storage_unavailable"
    aside.rename(incoming)
    assert await _code(client) == "ready"
    assert list(incoming.iterdir()) == []


async def test_a_database_that_hangs_is_waited_for_once(
    client: httpx.AsyncClient, work: DurableWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.app._READY_TIMEOUT_S", 0.1)
    looks, go = [], threading.Event()

    def hang(_: object) -> None:
        looks.append(1)
        go.wait()

    check = work._database.check
    monkeypatch.setattr(work._database, "check", lambda: work._database.do(hang))
    assert [await _code(client) for _ in range(3)] == ["state_unavailable"] * 3
    assert len(looks) == 1
    go.set()
    monkeypatch.setattr(work._database, "check", check)
    while (code := await _code(client)) == "state_unavailable":
        pass
    assert code == "ready"
