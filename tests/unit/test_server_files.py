"""Stored files over HTTP: names never become paths, pages, parts, deletions, and starts with another database."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Any

import httpx
import pytest

from server.app import create_app
from server.auth import Keys
from server.files import FileStore, StoredFile
from server.settings import FileSettings, ServerSettings
from server.work import DurableWork
from server.work_schemas import FileList
from tests.asgi import client_of, client_to, error_of
from tests.plain_backend import PlainBackend
from tests.uploads import ROW, small_files, upload

UNKNOWN = "file_" + "0" * 24


@pytest.fixture
def settings(tmp_path: Path) -> ServerSettings:
    return small_files(tmp_path)


@pytest.fixture
async def client(settings: ServerSettings) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(PlainBackend(), settings, Keys(), DurableWork(settings))
    async with client_to(app) as http:
        yield http


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "..\\..\\boot.ini", "/etc/passwd", "a\r\nSet-Cookie: x", ".", "x" * 1000]
)
async def test_a_name_is_a_label_and_no_path(client: httpx.AsyncClient, settings: ServerSettings, name: str) -> None:
    stored = await upload(client, ROW, name)
    assert not set(stored["filename"]) & set("/\\\r\n")
    assert len(stored["filename"]) <= 200
    kept = [p.name for p in (settings.state_folder / "files").iterdir() if p.is_file()]
    assert kept == [f"{stored['id']}.jsonl"]


@pytest.mark.parametrize(
    "file_id",
    [
        UNKNOWN,
        "..%2f..%2fetc%2fpasswd",
        "....",
        "%2e%2e",
        "file_" + "A" * 24,
        UNKNOWN + "%00",
        UNKNOWN + "%0a",
        "a" * 5000,
    ],
)
@pytest.mark.parametrize("suffix", ["", "/content"])
async def test_an_id_of_another_form_is_never_looked_up(client: httpx.AsyncClient, file_id: str, suffix: str) -> None:
    for method in ("GET", "DELETE") if not suffix else ("GET",):
        response = await client.request(method, f"/v1/files/{file_id}{suffix}")
        assert response.status_code == 404
        assert "root:" not in response.text


async def test_pages_cover_every_file_once_and_a_deleted_one_is_gone(client: httpx.AsyncClient) -> None:
    ids = [(await upload(client, ROW * n))["id"] for n in range(1, 6)]
    seen: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = (await client.get("/v1/files", params={"limit": 2, **after})).json()
        FileList.model_validate(page, strict=True)
        seen += [stored["id"] for stored in page["data"]]
        if not page["has_more"]:
            break
        after = {"after": seen[-1]}
    assert sorted(seen) == sorted(ids)
    assert (await client.delete(f"/v1/files/{ids[0]}")).json()["deleted"] is True
    assert (await client.delete(f"/v1/files/{ids[0]}")).status_code == 404
    assert (await client.get(f"/v1/files/{ids[0]}/content")).status_code == 404
    assert (await client.get("/v1/files", params={"after": "file_' OR 1=1 --"})).status_code == 404
    assert (await client.get("/v1/files", params={"limit": 101})).status_code == 422


@pytest.mark.parametrize(
    ("query", "code", "param"),
    [
        ("limt=1", "unknown_parameter", "limt"),
        ("limit=1&limit=2", "duplicate_parameter", "limit"),
    ],
)
async def test_query_parameters_that_would_be_ignored_are_refused(
    client: httpx.AsyncClient, query: str, code: str, param: str
) -> None:
    response = await client.get(f"/v1/files?{query}")
    assert response.status_code == 400
    assert (error_of(response)["code"], error_of(response)["param"]) == (code, param)


async def test_a_range_that_is_none_is_an_error_as_any_other(client: httpx.AsyncClient) -> None:
    path = f"/v1/files/{(await upload(client, ROW))['id']}/content"
    part = await client.get(path, headers={"Range": "bytes=0-9"})
    assert (part.status_code, part.content) == (206, ROW[:10])
    for value, status, size in (("bytes=9999-", 416, f"bytes */{len(ROW)}"), ("rows=1-2", 400, None)):
        refused = await client.get(path, headers={"Range": value})
        assert (refused.status_code, refused.headers.get("content-range")) == (status, size)
        assert (error_of(refused)["code"], error_of(refused)["param"]) == ("invalid_range", "range")


@pytest.mark.parametrize("store", [None, "store"])
async def test_a_file_that_is_deleted_while_it_is_asked_for_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str | None
) -> None:
    files = FileSettings(url=f"file://{tmp_path / store}" if store else None)
    settings = ServerSettings(state=str(tmp_path / "state"), files=files)
    work = DurableWork(settings)
    opened = FileStore.open

    def deleted_before(self: FileStore, stored: StoredFile) -> IO[bytes]:
        self.delete(stored.id)
        return opened(self, stored)

    async with client_to(create_app(PlainBackend(), settings, Keys(), work)) as client:
        stored = await upload(client, ROW)
        monkeypatch.setattr(FileStore, "open", deleted_before)
        gone = await client.get(f"/v1/files/{stored['id']}/content")
    assert (gone.status_code, error_of(gone)["code"]) == (404, "unknown_file")


async def test_a_file_that_cannot_be_removed_is_still_known_and_can_be_deleted_later(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = await upload(client, ROW)

    def failing(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr("server.storage.FolderStorage.delete", failing)
        refused = await client.delete(f"/v1/files/{stored['id']}")
    assert (refused.status_code, error_of(refused)["code"]) == (503, "storage_unavailable")
    assert (await client.get(f"/v1/files/{stored['id']}/content")).content == ROW
    assert (await client.delete(f"/v1/files/{stored['id']}")).status_code == 200


async def test_what_a_killed_upload_left_is_swept_away(client: httpx.AsyncClient, settings: ServerSettings) -> None:
    stored = await upload(client, ROW)
    folder = settings.state_folder / "files"
    (folder / "incoming" / UNKNOWN).write_bytes(b"half")
    DurableWork(settings)._files.sweep()
    assert [p.name for p in folder.rglob("*") if p.is_file()] == [f"{stored['id']}.jsonl"]


@pytest.mark.parametrize("database", ["empty", "older"])
async def test_a_start_with_another_database_costs_no_file(
    settings: ServerSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture, database: str
) -> None:
    state, aside = settings.state_folder, tmp_path / "aside"
    aside.mkdir()

    async def start() -> httpx.Response:
        async with client_of(create_app(PlainBackend(), settings, Keys(), DurableWork(settings))) as http:
            return await http.get(f"/v1/files/{stored['id']}/content")

    async with client_of(create_app(PlainBackend(), settings, Keys(), DurableWork(settings))) as http:
        await upload(http, ROW)
    if database == "older":
        shutil.copy(state / "service.sqlite", aside / "older")
    async with client_of(create_app(PlainBackend(), settings, Keys(), DurableWork(settings))) as http:
        stored = await upload(http, ROW * 2)
    assert "are not in this database" not in caplog.text
    (state / "service.sqlite").rename(aside / "newest")
    if database == "older":
        (aside / "older").rename(state / "service.sqlite")
    assert (await start()).status_code == 404
    assert f"{1 if database == 'older' else 2} files in {state / 'files'} are not in this database" in caplog.text
    (aside / "newest").rename(state / "service.sqlite")
    assert (await start()).content == ROW * 2
