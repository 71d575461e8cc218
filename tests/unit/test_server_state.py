"""The database when it has no room, or does not answer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy.pool import QueuePool

from server.exceptions import StartError, UnavailableError
from server.settings import ServerSettings
from server.state import _POSTGRES_PATIENCE, Database


def test_a_pool_without_a_free_connection_is_a_database_that_is_away(tmp_path: Path) -> None:
    database = Database(ServerSettings(state=str(tmp_path)))
    pool = database._engine.pool
    assert isinstance(pool, QueuePool)
    pool._timeout = 0.05
    held = []
    while pool.checkedout() < pool.size() + pool._max_overflow:
        held.append(database._engine.connect())
    with pytest.raises(UnavailableError, match="does not answer") as raised:
        database.check()
    assert raised.value.code == "database_unavailable"
    for connection in held:
        connection.close()
    database.check()
    database.close()


async def test_a_postgresql_that_takes_connections_and_says_nothing_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_POSTGRES_PATIENCE, "connect_timeout", 2)
    silent = await asyncio.start_server(lambda reader, writer: reader.read(), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    url = SecretStr(f"postgresql://me:secret@127.0.0.1:{port}/x")
    async with asyncio.timeout(60):
        with pytest.raises(StartError, match="cannot be used"):
            await asyncio.to_thread(Database, ServerSettings(state=str(tmp_path), database=url))
    silent.close()
