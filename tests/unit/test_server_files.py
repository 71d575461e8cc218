"""Files over HTTP: what is taken, what is refused and how, and that names never become paths."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from agent.intake import MAX_ROW_BYTES
from server.app import create_app
from server.auth import Keys
from server.exceptions import FileFormatError
from server.files import FileStore, StoredFile
from server.files_check import UploadCheck
from server.schemas import ErrorResponse
from server.settings import FileSettings, LimitSettings, ServerSettings
from server.work import DurableWork
from server.work_schemas import FileBody, FileList
from tests.asgi import client_of, client_to
from tests.plain_backend import PlainBackend

ROW = b'{"question": "1 + 1?", "answer": "2"}\n'
RAW = {"Content-Type": "application/x-ndjson"}
UNKNOWN = "file_" + "0" * 24
PART = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n'


@pytest.fixture
def settings(tmp_path: Path) -> ServerSettings:
    files = FileSettings(upload_bytes=200_000, upload_timeout_s=5, uploads=1, parquet_bytes=100_000)
    return ServerSettings(state=str(tmp_path / "state"), files=files, limits=LimitSettings(body_timeout_s=0.3))


@pytest.fixture
async def client(settings: ServerSettings) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(PlainBackend(), settings, Keys(), DurableWork(settings))
    async with client_to(app) as http:
        yield http


def _error(response: httpx.Response) -> dict[str, Any]:
    ErrorResponse.model_validate(response.json(), strict=True)
    return dict(response.json()["error"])


async def _upload(client: httpx.AsyncClient, content: bytes, name: str = "rows.jsonl") -> dict[str, Any]:
    response = await client.post("/v1/files", params={"filename": name}, content=content, headers=RAW)
    assert response.status_code == 200, response.text
    FileBody.model_validate(response.json(), strict=True)
    return dict(response.json())


def _parquet(rows: int, text: str = "1 + 1?") -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"question": [text] * rows, "answer": ["2"] * rows}), buffer)
    return buffer.getvalue()


async def test_json_lines_come_back_as_they_were_sent(client: httpx.AsyncClient) -> None:
    content = ROW * 3 + b"\n" + ROW.rstrip()
    stored = await _upload(client, content)
    assert stored["sha256"] == hashlib.sha256(content).hexdigest()
    assert (stored["rows"], stored["unreadable_rows"], stored["bytes"]) == (4, 0, len(content))
    assert stored["format"] == "jsonl"
    back = await client.get(f"/v1/files/{stored['id']}/content")
    assert back.content == content
    assert back.headers["content-type"].startswith("application/x-ndjson")
    assert (await client.get(f"/v1/files/{stored['id']}")).json() == stored


async def test_a_form_is_the_same_as_a_raw_body(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/files", files={"file": ("a.jsonl", ROW * 5)}, data={"purpose": "batch"})
    assert response.status_code == 200, response.text
    assert response.json()["filename"] == "a.jsonl"
    assert response.json()["sha256"] == hashlib.sha256(ROW * 5).hexdigest()


async def test_parquet_is_known_by_its_bytes(client: httpx.AsyncClient) -> None:
    stored = await _upload(client, _parquet(7), "mine.jsonl")
    assert (stored["format"], stored["rows"]) == ("parquet", 7)


async def test_bad_rows_do_not_make_a_bad_file_and_are_told_with_their_lines(client: httpx.AsyncClient) -> None:
    stored = await _upload(client, ROW + b"{not json\n\n" + b'{"question": "?"}\n' + b'"\xff"\n' + b"[1]")
    assert stored["rows"] == 5
    assert stored["unreadable_rows"] == 4
    assert [p["line"] for p in stored["problems"]] == [2, 4, 5, 6]
    assert "answer" in stored["problems"][1]["message"]


@pytest.mark.parametrize(
    ("content", "said", "line"),
    [
        (b"", "no rows", None),
        (b"\n \n", "no rows", None),
        (b"once upon a time\nthere was no JSON\n", "line 1", 1),
        (b"\n\n[\n{},\n", "line 3", 3),
        (ROW + b"\0\0\0", "zero byte", 2),
        (gzip.compress(ROW * 1000), "gzip", 1),
        (b"PK\x03\x04" + b"0" * 99, "ZIP", 1),
        (b"\xff\xfe" + ROW.decode().encode("utf-16-le"), "UTF-16", 1),
        (b"PAR1" + b"garbage" * 20, "damaged Parquet", None),
        (_parquet(7)[:-5], "damaged Parquet", None),
        (_parquet(0), "no rows", None),
    ],
)
async def test_what_has_no_rows_is_refused(
    client: httpx.AsyncClient, settings: ServerSettings, content: bytes, said: str, line: int | None
) -> None:
    response = await client.post("/v1/files", content=content, headers=RAW)
    assert response.status_code == 400
    error = _error(response)
    assert said in error["message"]
    assert error.get("line") == line
    assert (await client.get("/v1/files")).json()["data"] == []
    assert [p for p in settings.state_folder.rglob("*") if p.is_file() and "files" in p.parts] == []


async def test_parquet_that_unpacks_to_too_much_is_refused(client: httpx.AsyncClient) -> None:
    content = _parquet(2000, "x" * 100)
    buffer = io.BytesIO()
    table = pa.table({"question": [f"{i:0200}" for i in range(2000)], "answer": ["2"] * 2000})
    pq.write_table(table, buffer, compression="zstd", use_dictionary=False)
    assert len(content) < 100_000
    response = await client.post("/v1/files", content=buffer.getvalue(), headers=RAW)
    assert response.status_code == 413
    assert "decompressed" in _error(response)["message"]


def test_the_first_hundred_lines_decide() -> None:
    """A stream that is no JSON lines is cut off there, not at its end."""
    check = UploadCheck(1000)
    check.feed(b"no\n" * 99)
    with pytest.raises(FileFormatError, match="line 1"):
        check.feed(b"no\n")


def test_a_line_beyond_the_longest_row_is_not_kept() -> None:
    check = UploadCheck(1000)
    check.feed(ROW)
    for _ in range(MAX_ROW_BYTES // 2**20 + 2):
        check.feed(b"x" * 2**20)
    check.feed(b"\n" + ROW)
    finding = check.finish(Path("unused"))
    assert (finding.rows, finding.unreadable) == (3, 1)
    assert finding.problems[0]["line"] == 2


def test_where_the_chunks_end_changes_nothing() -> None:
    content = b"\xef\xbb\xbf" + ROW + "{“no”}\n".encode() + ROW
    findings = []
    for size in (1, 2, 7, 1000):
        check = UploadCheck(1000)
        for start in range(0, len(content), size):
            check.feed(content[start : start + size])
        findings.append(check.finish(Path("unused")))
    assert findings == [findings[0]] * 4
    assert (findings[0].rows, findings[0].unreadable) == (3, 1)


async def test_a_declared_length_beyond_the_cap_is_refused_before_anything_is_read(client: httpx.AsyncClient) -> None:
    read = False

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal read
        read = True
        yield ROW

    headers = RAW | {"Content-Length": str(10 * 2**30)}
    response = await client.post("/v1/files", content=chunks(), headers=headers)
    assert response.status_code == 413
    assert _error(response)["code"] == "file_too_large"
    assert not read


async def test_an_endless_body_is_cut_off_at_the_cap(client: httpx.AsyncClient, settings: ServerSettings) -> None:
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += len(ROW) * 1000
            yield ROW * 1000

    response = await client.post("/v1/files", content=chunks(), headers=RAW)
    assert response.status_code == 413
    assert sent < 3 * settings.files.upload_bytes + 2**21
    assert list((settings.state_folder / "files" / "incoming").iterdir()) == []


async def test_what_follows_the_end_of_a_form_is_cut_off_at_the_cap(
    client: httpx.AsyncClient, settings: ServerSettings
) -> None:
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        yield PART % b"file" + ROW + b"\r\n--b--\r\n"
        while sent < 100 * settings.files.upload_bytes:
            sent += 10_000
            yield b"x" * 10_000

    response = await client.post(
        "/v1/files", content=chunks(), headers={"Content-Type": "multipart/form-data; boundary=b"}
    )
    assert (response.status_code, _error(response)["code"]) == (413, "file_too_large")
    assert sent < 2 * settings.files.upload_bytes


async def test_a_silent_client_is_given_up(client: httpx.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield ROW
        await asyncio.sleep(60)

    response = await client.post("/v1/files", content=chunks(), headers=RAW)
    assert response.status_code == 408
    assert _error(response)["code"] == "body_timeout"


@pytest.mark.parametrize(("size", "status"), [(1, 408), (2000, 200)])
async def test_a_trickle_does_not_hold_a_place(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, size: int, status: int
) -> None:
    monkeypatch.setattr("server.uploads._GRACE_S", 0.2)
    monkeypatch.setattr("server.uploads._LEAST_BYTES_PER_S", 1000)

    async def chunks() -> AsyncIterator[bytes]:
        yield ROW
        for _ in range(12):  # never silent for as long as it may be
            await asyncio.sleep(0.05)
            yield b" " * size

    response = await client.post("/v1/files", content=chunks(), headers=RAW)
    assert response.status_code == status
    if status == 408:
        assert _error(response)["code"] == "body_timeout"


async def test_more_uploads_than_places_are_told_to_come_back(client: httpx.AsyncClient) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        begun.set()
        yield ROW
        await go.wait()

    first = asyncio.create_task(client.post("/v1/files", content=chunks(), headers=RAW))
    await begun.wait()
    second = await client.post("/v1/files", content=ROW, headers=RAW)
    assert second.status_code == 429
    assert second.headers["retry-after"]
    go.set()
    assert (await first).status_code == 200


async def _sent(size: int, go: asyncio.Event) -> AsyncIterator[bytes]:
    """A row, and when `go` is set so much blank space that it is `size` bytes in all."""
    yield ROW
    await go.wait()
    yield b" " * (size - len(ROW))


async def test_behind_rays_proxy_uploads_together_are_no_longer_than_the_longest(settings: ServerSettings) -> None:
    longest = settings.files.upload_bytes
    settings = settings.model_copy(update={"files": settings.files.model_copy(update={"uploads": 3})})
    app = create_app(PlainBackend(), settings, Keys(), DurableWork(settings), proxied=True)
    go = asyncio.Event()
    async with client_to(app) as client:
        first = asyncio.create_task(
            client.post("/v1/files", content=_sent(longest, go), headers=RAW | {"Content-Length": f"{longest:030}"})
        )
        while app.state.upload_places._places == 3:
            await asyncio.sleep(0.01)
        second = await client.post("/v1/files", content=b" " * longest, headers=RAW)
        small = await client.post("/v1/files", content=ROW, headers=RAW)
        go.set()
        assert (await first).status_code == 200
        after = await client.post("/v1/files", content=ROW.ljust(longest), headers=RAW)
    assert (second.status_code, _error(second)["code"]) == (429, "too_many_uploads")
    assert second.headers["retry-after"]
    assert (small.status_code, after.status_code) == (200, 200)


async def test_behind_rays_proxy_an_upload_of_unknown_length_is_refused_before_it_is_read(
    settings: ServerSettings,
) -> None:
    app = create_app(PlainBackend(), settings, Keys(), DurableWork(settings), proxied=True)
    go = asyncio.Event()
    async with client_to(app) as client:
        response = await client.post("/v1/files", content=_sent(100, go), headers=RAW)
    assert (response.status_code, _error(response)["code"]) == (411, "length_required")
    assert response.headers["connection"] == "close"


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("application/json", ROW, 415),
        ("", ROW, 415),
        ("multipart/form-data", ROW, 400),
        ("multipart/form-data; boundary=b", b"nonsense", 400),
        ("multipart/form-data; boundary=b", PART % b"file" + ROW, 400),
        ("multipart/form-data; boundary=b", PART % b"other" + b"1\r\n--b--\r\n", 400),
        ("multipart/form-data; boundary=" + "b" * 5000, b"", 400),
        ("multipart/form-data; boundary=b", b"--b\r\n" + b"X: y\r\n" * 5000, 400),
    ],
)
async def test_a_body_that_is_no_upload_is_refused(
    client: httpx.AsyncClient, content_type: str, body: bytes, status: int
) -> None:
    response = await client.post("/v1/files", content=body, headers={"Content-Type": content_type})
    assert response.status_code == status, response.text
    _error(response)


async def test_a_form_may_say_its_purpose_and_nothing_else(client: httpx.AsyncClient) -> None:
    said = await client.post("/v1/files", files={"file": ("a.jsonl", ROW)}, data={"purpose": "batch"})
    assert said.status_code == 200
    other = await client.post("/v1/files", files={"file": ("a.jsonl", ROW)}, data={"rows": "10"})
    assert (other.status_code, _error(other)["code"]) == (400, "invalid_form")
    assert "'rows'" in _error(other)["message"]


async def test_a_plain_body_that_is_declared_as_compressed_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/files", content=ROW, headers=RAW | {"Content-Encoding": "gzip"})
    assert (response.status_code, _error(response)["code"]) == (415, "unsupported_encoding")
    response = await client.post("/v1/files", content=ROW, headers=RAW | {"Content-Encoding": "identity"})
    assert response.status_code == 200


async def test_a_form_with_two_files_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/files", files=[("file", ("a", ROW)), ("file", ("b", ROW))])
    assert response.status_code == 400
    assert "several" in _error(response)["message"]


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "..\\..\\boot.ini", "/etc/passwd", "a\r\nSet-Cookie: x", ".", "x" * 1000]
)
async def test_a_name_is_a_label_and_no_path(client: httpx.AsyncClient, settings: ServerSettings, name: str) -> None:
    stored = await _upload(client, ROW, name)
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
    ids = [(await _upload(client, ROW * n))["id"] for n in range(1, 6)]
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
    assert (_error(response)["code"], _error(response)["param"]) == (code, param)


async def test_a_range_that_is_none_is_an_error_as_any_other(client: httpx.AsyncClient) -> None:
    path = f"/v1/files/{(await _upload(client, ROW))['id']}/content"
    part = await client.get(path, headers={"Range": "bytes=0-9"})
    assert (part.status_code, part.content) == (206, ROW[:10])
    for value, status, size in (("bytes=9999-", 416, f"bytes */{len(ROW)}"), ("rows=1-2", 400, None)):
        refused = await client.get(path, headers={"Range": value})
        assert (refused.status_code, refused.headers.get("content-range")) == (status, size)
        assert (_error(refused)["code"], _error(refused)["param"]) == ("invalid_range", "range")


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
        stored = await _upload(client, ROW)
        monkeypatch.setattr(FileStore, "open", deleted_before)
        gone = await client.get(f"/v1/files/{stored['id']}/content")
    assert (gone.status_code, _error(gone)["code"]) == (404, "unknown_file")


async def test_a_file_that_cannot_be_removed_is_still_known_and_can_be_deleted_later(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = await _upload(client, ROW)

    def failing(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr("server.storage.FolderStorage.delete", failing)
        refused = await client.delete(f"/v1/files/{stored['id']}")
    assert (refused.status_code, _error(refused)["code"]) == (503, "storage_unavailable")
    assert (await client.get(f"/v1/files/{stored['id']}/content")).content == ROW
    assert (await client.delete(f"/v1/files/{stored['id']}")).status_code == 200


async def test_what_a_killed_upload_left_is_swept_away(client: httpx.AsyncClient, settings: ServerSettings) -> None:
    stored = await _upload(client, ROW)
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
        await _upload(http, ROW)
    if database == "older":
        shutil.copy(state / "service.sqlite", aside / "older")
    async with client_of(create_app(PlainBackend(), settings, Keys(), DurableWork(settings))) as http:
        stored = await _upload(http, ROW * 2)
    assert "are not in this database" not in caplog.text
    (state / "service.sqlite").rename(aside / "newest")
    if database == "older":
        (aside / "older").rename(state / "service.sqlite")
    assert (await start()).status_code == 404
    assert f"{1 if database == 'older' else 2} files in {state / 'files'} are not in this database" in caplog.text
    (aside / "newest").rename(state / "service.sqlite")
    assert (await start()).content == ROW * 2


def test_json_of_ten_thousand_levels_is_a_bad_row_and_no_crash() -> None:
    check = UploadCheck(1000)
    check.feed(ROW + b"[" * 10_000 + b"\n" + json.dumps({"a": 1}).encode())
    assert check.finish(Path("unused")).unreadable == 2
