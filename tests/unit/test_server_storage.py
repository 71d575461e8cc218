"""Files kept in a store that fsspec opens: the same over HTTP as in a folder, on two stores of different kinds."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import fsspec
import httpx
import pytest

from agent.exceptions import SettingsError
from server.app import create_app
from server.auth import Keys
from server.settings import FileSettings, ServerSettings
from server.storage import UrlStorage
from server.work import DurableWork
from tests.asgi import client_to
from tests.plain_backend import PlainBackend

ROWS = b'{"question": "1 + 1?", "answer": "2"}\n' * 9
RAW = {"Content-Type": "application/x-ndjson"}


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/store" if request.param == "file" else f"memory://{secrets.token_hex(8)}/store"


@pytest.fixture
def kept(url: str) -> Callable[[], dict[str, bytes]]:
    """What is in the store, by name."""

    def look() -> dict[str, bytes]:
        store, root = fsspec.core.url_to_fs(url)
        return {str(path).rpartition("/")[2]: store.cat_file(path) for path in store.ls(root, detail=False)}

    return look


@pytest.fixture
def settings(tmp_path: Path, url: str) -> ServerSettings:
    return ServerSettings(state=str(tmp_path / "state"), files=FileSettings(url=url))


@pytest.fixture
async def client(settings: ServerSettings) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(PlainBackend(), settings, Keys(), DurableWork(settings))
    async with client_to(app) as http:
        yield http


def _on_disk(settings: ServerSettings) -> list[Path]:
    return [path for path in (settings.state_folder / "files").rglob("*") if path.is_file()]


async def test_an_upload_is_kept_in_the_store_and_nowhere_else(
    client: httpx.AsyncClient, settings: ServerSettings, kept: Callable[[], dict[str, bytes]]
) -> None:
    stored = (await client.post("/v1/files", content=ROWS, headers=RAW)).json()
    assert kept() == {f"{stored['id']}.jsonl": ROWS}
    back = await client.get(f"/v1/files/{stored['id']}/content")
    assert (back.status_code, back.content) == (200, ROWS)
    part = await client.get(f"/v1/files/{stored['id']}/content", headers={"Range": "bytes=5-12"})
    assert (part.status_code, part.content) == (206, ROWS[5:13])
    assert _on_disk(settings) == [], "copies for downloads were left behind"
    assert (await client.delete(f"/v1/files/{stored['id']}")).status_code == 200
    assert kept() == {}


async def test_a_download_copies_nothing_and_reads_no_more_than_its_range(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ROWS * 10_000
    path = f"/v1/files/{(await client.post('/v1/files', content=rows, headers=RAW)).json()['id']}/content"

    def copied(*_: object) -> None:
        raise AssertionError("a copy was made")

    monkeypatch.setattr(UrlStorage, "fetch", copied)
    whole = await client.get(path)
    assert (whole.status_code, whole.content) == (200, rows)
    size, ranged = len(rows), {}
    for asked in ("bytes=0-0", "bytes=100000-299999", "bytes=-7", f"bytes={size - 3}-", f"bytes=1-2,{size - 2}-"):
        part = await client.get(path, headers={"Range": asked, "If-Range": whole.headers["etag"]})
        assert part.status_code == 206, asked
        ranged[asked] = part
    assert [part.content for part in list(ranged.values())[:4]] == [
        rows[:1],
        rows[100_000:300_000],
        rows[-7:],
        rows[-3:],
    ]
    assert ranged["bytes=100000-299999"].headers["content-range"] == f"bytes 100000-299999/{size}"
    several = ranged[f"bytes=1-2,{size - 2}-"]
    assert (rows[1:3] in several.content, several.headers["content-length"]) == (True, str(len(several.content)))
    assert (await client.get(path, headers={"Range": f"bytes={size}-"})).status_code == 416


async def test_a_file_that_has_vanished_from_the_store_is_503_and_can_be_deleted(
    client: httpx.AsyncClient, settings: ServerSettings, url: str
) -> None:
    stored = (await client.post("/v1/files", content=ROWS, headers=RAW)).json()
    store, root = fsspec.core.url_to_fs(settings.files.url)
    store.rm_file(f"{root}/{stored['id']}.jsonl")
    answer = await client.get(f"/v1/files/{stored['id']}/content")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "storage_unavailable")
    assert root not in answer.text
    assert (await client.delete(f"/v1/files/{stored['id']}")).status_code == 200
    assert _on_disk(settings) == []


async def test_what_others_keep_in_the_same_place_is_not_swept(
    settings: ServerSettings, kept: Callable[[], dict[str, bytes]]
) -> None:
    store, root = fsspec.core.url_to_fs(settings.files.url)
    work = DurableWork(settings)
    store.pipe_file(f"{root}/file_{'0' * 24}.jsonl", ROWS)
    work._files.sweep()
    work._files.check()
    assert kept() == {f"file_{'0' * 24}.jsonl": ROWS, "probe": b"?"}


def test_a_copy_is_made_once_and_whole(url: str, tmp_path: Path) -> None:
    storage = UrlStorage(url)
    (tmp_path / "a").write_bytes(ROWS)
    storage.put(tmp_path / "a", "name")
    assert not (tmp_path / "a").exists()
    spare = tmp_path / "spare"
    spare.with_name(".spare.unfinished").write_bytes(b"of a process that was killed")
    assert storage.fetch("name", spare).read_bytes() == ROWS
    storage.delete("name")
    storage.delete("name")
    assert storage.fetch("name", spare).read_bytes() == ROWS


@pytest.mark.parametrize("url", ["nonsense://here", "file:///dev/null/folder"])
def test_a_url_where_nothing_can_be_kept_is_said_at_the_start(url: str) -> None:
    with pytest.raises(SettingsError, match=r"server\.files\.url cannot be used: "):
        UrlStorage(url)


def test_a_path_is_no_url() -> None:
    with pytest.raises(ValueError, match="url"):
        FileSettings(url="/var/files")
