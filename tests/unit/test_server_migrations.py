"""Databases of other releases: brought forward whole, or left alone."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from server import migrations
from server.admission import Admission
from server.app import create_app
from server.auth import Keys
from server.exceptions import StartError
from server.keys import KeyStore
from server.settings import ServerSettings
from server.state import Database, StateLock
from server.work import DurableWork, needs_key
from tests.asgi import client_of
from tests.plain_backend import PlainBackend
from tests.schema_1 import KEY, make_state


@pytest.fixture
def settings(tmp_path: Path) -> ServerSettings:
    return ServerSettings(state=str(tmp_path / "state"))


def _query(settings: ServerSettings, sql: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(settings.state_folder / "service.sqlite")
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def _shape(settings: ServerSettings) -> dict[str, set[object]]:
    """Columns of every table, and names of the indices."""
    names = [str(name) for (name,) in _query(settings, "SELECT name FROM sqlite_master WHERE type = 'table'")]
    shape: dict[str, set[object]] = {
        name: {column[1:4] for column in _query(settings, f"PRAGMA table_info({name})")} for name in names
    }
    indices = _query(settings, "SELECT name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
    return shape | {"indices": {name for (name,) in indices}}


def test_an_older_database_becomes_what_an_empty_one_would_be(settings: ServerSettings, tmp_path: Path) -> None:
    make_state(settings.state_folder)
    database = Database(settings, older=True)
    database.upgrade()
    caller = KeyStore(database).find(KEY)
    database.close()
    assert caller is not None
    assert caller.may("rewrite")
    new = ServerSettings(state=str(tmp_path / "new"))
    Database(new).close()
    assert _shape(settings) == _shape(new)
    assert _query(settings, "SELECT version FROM rewright_schema") == [(migrations.SCHEMA_VERSION,)]
    Database(settings).close()
    assert _query(settings, "SELECT version FROM rewright_schema") == [(migrations.SCHEMA_VERSION,)]


def test_a_step_that_fails_changes_nothing(settings: ServerSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    make_state(settings.state_folder)
    before = _shape(settings)
    monkeypatch.setitem(migrations.STEPS, 1, (*migrations.STEPS[1], "CREATE INDEX broken ON nothing (at_all)"))
    with closing(Database(settings, older=True)) as database, pytest.raises(StartError, match="nothing"):
        database.upgrade()
    assert _shape(settings) == before
    assert _query(settings, "SELECT version FROM rewright_schema") == [(1,)]
    monkeypatch.undo()
    with closing(Database(settings, older=True)) as database:
        database.upgrade()
    assert _query(settings, "SELECT version FROM rewright_schema") == [(migrations.SCHEMA_VERSION,)]


def test_several_who_open_it_at_once_change_it_once(settings: ServerSettings) -> None:
    make_state(settings.state_folder)
    failures: list[Exception] = []

    def open_it() -> None:
        try:
            with closing(Database(settings, older=True)) as database:
                database.upgrade()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert _query(settings, "SELECT version FROM rewright_schema") == [(migrations.SCHEMA_VERSION,)]


def test_a_step_leads_from_every_earlier_schema() -> None:
    assert sorted(migrations.STEPS) == list(range(1, migrations.SCHEMA_VERSION))


async def test_only_the_service_that_has_the_state_folder_brings_its_database_forward(settings: ServerSettings) -> None:
    make_state(settings.state_folder)
    before = _shape(settings)
    running = StateLock(settings.state_folder)
    with pytest.raises(StartError, match="has schema 1, and this release needs"):
        Database(settings)
    assert needs_key(Keys(), settings)
    refused = DurableWork(settings)
    with pytest.raises(StartError, match="in use by another service"):
        await refused.start(PlainBackend(), Admission(10, 1))
    await refused.stop()
    running.release()
    assert _shape(settings) == before
    app = create_app(PlainBackend(), settings, Keys(), DurableWork(settings))
    async with client_of(app):
        assert _query(settings, "SELECT version FROM rewright_schema") == [(migrations.SCHEMA_VERSION,)]
