"""Uploads over HTTP: what is taken, what is refused and how, and what a client may not hold."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from agent.intake import MAX_ROW_BYTES
from server.app import create_app
from server.auth import Keys
from server.exceptions import FileFormatError
from server.files_check import UploadCheck
from server.settings import ServerSettings
from server.work import DurableWork
from tests.asgi import client_to, error_of
from tests.plain_backend import PlainBackend
from tests.uploads import RAW, ROW, small_files, upload

PART = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n'


@pytest.fixture
def settings(tmp_path: Path) -> ServerSettings:
    return small_files(tmp_path)


@pytest.fixture
async def client(settings: ServerSettings) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(PlainBackend(), settings, Keys(), DurableWork(settings))
    async with client_to(app) as http:
        yield http


def _parquet(rows: int, text: str = "1 + 1?") -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"question": [text] * rows, "answer": ["2"] * rows}), buffer)
    return buffer.getvalue()


async def test_json_lines_come_back_as_they_were_sent(client: httpx.AsyncClient) -> None:
    content = ROW * 3 + b"\n" + ROW.rstrip()
    stored = await upload(client, content)
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
    stored = await upload(client, _parquet(7), "mine.jsonl")
    assert (stored["format"], stored["rows"]) == ("parquet", 7)


async def test_bad_rows_do_not_make_a_bad_file_and_are_told_with_their_lines(client: httpx.AsyncClient) -> None:
    stored = await upload(client, ROW + b"{not json\n\n" + b'{"question": "?"}\n' + b'"\xff"\n' + b"[1]")
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
    error = error_of(response)
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
    assert "decompressed" in error_of(response)["message"]


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


def test_json_of_ten_thousand_levels_is_a_bad_row_and_no_crash() -> None:
    check = UploadCheck(1000)
    check.feed(ROW + b"[" * 10_000 + b"\n" + json.dumps({"a": 1}).encode())
    assert check.finish(Path("unused")).unreadable == 2


async def test_a_declared_length_beyond_the_cap_is_refused_before_anything_is_read(client: httpx.AsyncClient) -> None:
    read = False

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal read
        read = True
        yield ROW

    headers = RAW | {"Content-Length": str(10 * 2**30)}
    response = await client.post("/v1/files", content=chunks(), headers=headers)
    assert response.status_code == 413
    assert error_of(response)["code"] == "file_too_large"
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
    assert (response.status_code, error_of(response)["code"]) == (413, "file_too_large")
    assert sent < 2 * settings.files.upload_bytes


async def test_a_silent_client_is_given_up(tmp_path: Path) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield ROW
        await asyncio.sleep(60)

    settings = small_files(tmp_path, body_timeout_s=0.3)
    async with client_to(create_app(PlainBackend(), settings, Keys(), DurableWork(settings))) as client:
        response = await client.post("/v1/files", content=chunks(), headers=RAW)
    assert response.status_code == 408
    assert error_of(response)["code"] == "body_timeout"


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
        assert error_of(response)["code"] == "body_timeout"


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
    assert (second.status_code, error_of(second)["code"]) == (429, "too_many_uploads")
    assert second.headers["retry-after"]
    assert (small.status_code, after.status_code) == (200, 200)


async def test_behind_rays_proxy_an_upload_of_unknown_length_is_refused_before_it_is_read(
    settings: ServerSettings,
) -> None:
    app = create_app(PlainBackend(), settings, Keys(), DurableWork(settings), proxied=True)
    go = asyncio.Event()
    async with client_to(app) as client:
        response = await client.post("/v1/files", content=_sent(100, go), headers=RAW)
    assert (response.status_code, error_of(response)["code"]) == (411, "length_required")
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
    error_of(response)


async def test_a_form_may_say_its_purpose_and_nothing_else(client: httpx.AsyncClient) -> None:
    said = await client.post("/v1/files", files={"file": ("a.jsonl", ROW)}, data={"purpose": "batch"})
    assert said.status_code == 200
    other = await client.post("/v1/files", files={"file": ("a.jsonl", ROW)}, data={"rows": "10"})
    assert (other.status_code, error_of(other)["code"]) == (400, "invalid_form")
    assert "'rows'" in error_of(other)["message"]


async def test_a_plain_body_that_is_declared_as_compressed_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/files", content=ROW, headers=RAW | {"Content-Encoding": "gzip"})
    assert (response.status_code, error_of(response)["code"]) == (415, "unsupported_encoding")
    response = await client.post("/v1/files", content=ROW, headers=RAW | {"Content-Encoding": "identity"})
    assert response.status_code == 200


async def test_a_form_with_two_files_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/files", files=[("file", ("a", ROW)), ("file", ("b", ROW))])
    assert response.status_code == 400
    assert "several" in error_of(response)["message"]
