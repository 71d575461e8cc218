"""Hostile clients over raw sockets, against the service in a process of its own; see docs/security.md."""

from __future__ import annotations

import gzip
import io
import json
import socket
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.scripted_process import ScriptedProcess

PATIENCE_S = 300.0
TIMEOUT_S = 2.0
MIB = 2**20
ROW = {"prompt": "2 + 2?", "completion": "four"}
ID = "0" * 24


class Hostile:
    """The service, and what happens on connections to it.

    Attributes:
        log: where the service logs.
        state: its folder.
    """

    def __init__(self, folder: Path) -> None:
        self.state, self.log = folder / "state", folder / "service.log"
        self.process = ScriptedProcess(self.state, "--timeout", str(TIMEOUT_S), "--log-file", str(self.log))
        self.process.start(0.0)
        self.address = ("127.0.0.1", int(self.process.url.rpartition(":")[2]))

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, PATIENCE_S)

    def send(self, *pieces: bytes) -> bytes:
        """All that comes back on a new connection until the service closes it."""
        with self.connect() as connection:
            try:
                for piece in pieces:
                    connection.sendall(piece)
            except OSError:  # it has answered and closed before all was sent
                pass
            return read_all(connection)

    def request(self, method: str, target: str, body: bytes = b"", *headers: str) -> tuple[int, bytes]:
        """Status and body of the answer to one request."""
        head = [f"{method} {target} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
        if body:
            head.append(f"Content-Length: {len(body)}")
        return parsed(self.send("\r\n".join([*head, "", ""]).encode(), body))

    def rewrites(self, body: bytes) -> tuple[int, bytes]:
        return self.request("POST", "/v1/rewrites", body, "Content-Type: application/json")

    def upload(self, body: bytes, name: str = "x.jsonl") -> tuple[int, bytes]:
        return self.request("POST", f"/v1/files?filename={name}", body, "Content-Type: application/octet-stream")

    def memory(self) -> int:
        """The most memory that the process has had, bytes."""
        status = Path(f"/proc/{self.process.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024


def read_all(connection: socket.socket) -> bytes:
    received = b""
    try:
        while chunk := connection.recv(65536):
            received += chunk
    except ConnectionResetError:
        pass
    return received


def parsed(answer: bytes) -> tuple[int, bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def code(body: bytes) -> str:
    return str(json.loads(body)["error"]["code"])


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hostile]:
    hostile = Hostile(tmp_path_factory.mktemp("hostile"))
    yield hostile
    # Whatever was tried: it serves as before, and ends as a user ends it.
    assert hostile.rewrites(json.dumps({"demonstrations": [ROW]}).encode())[0] == 200
    hostile.process.stop()
    assert "a defect" not in hostile.log.read_text()


@pytest.mark.parametrize(
    "target",
    [
        "/../../../../etc/passwd",
        "/v1/files/../../../../etc/passwd",
        "/v1/files/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/v1/files/..%2f..%2f..%2fetc%2fpasswd/content",
        "/v1/files/%252e%252e%252fetc%252fpasswd/content",
        "/v1/files/..%5c..%5cetc%5cpasswd/content",
        "/v1/files/%2fetc%2fpasswd/content",
        "/v1/files/file:%2f%2f%2fetc%2fpasswd/content",
        f"/v1/files/file_{ID}%2f..%2f..%2fstate.db/content",
        f"/v1/files/file_{ID}%00/content",
        "//etc/passwd",
        "/v1/jobs/..%2f..%2fstate.db",
        "/v1/jobs/http:%2f%2f169.254.169.254%2f/events",
        "/docs/..%2f..%2fetc%2fpasswd",
        "http://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
    ],
)
def test_no_path_leads_out_of_the_routes(service: Hostile, target: str) -> None:
    status, body = service.request("GET", target)
    assert status == 404
    assert b"root:" not in body
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("name", ["../../out.jsonl", "%2e%2e%2fout.jsonl", "/tmp/out.jsonl", "..%5c..%5cout.jsonl"])
def test_the_name_of_an_upload_is_a_label_and_no_path(service: Hostile, name: str) -> None:
    status, body = service.upload(json.dumps(ROW).encode(), name)
    assert (status, json.loads(body)["filename"]) == (200, "out.jsonl")
    assert not list(service.state.parent.rglob("out.jsonl"))


def test_an_adapter_is_no_path_either(service: Hostile) -> None:
    for name in ("../../etc", "/etc/passwd", "..", "a/../../b@1"):
        status, body = service.rewrites(json.dumps({"demonstrations": [ROW], "adapter": name, "x": 1}).encode())
        assert (status, code(body)) == (422, "extra_forbidden")
    assert service.request("POST", "/v1/adapters/..%2f..%2fetc/activate", b'{"version": 1}')[0] == 404


SECOND = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
POST = b"POST /v1/rewrites HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "request_head",
    [
        POST + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX",
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        POST + b"Content-Length: 0\r\nContent-Length: 44\r\n\r\n",
        POST + b"Content-Length: +2\r\n\r\n{}",
        POST + b"Content-Length: -2\r\n\r\n{}",
        POST + b"Content-Length: 0x2\r\n\r\n{}",
        POST + b"Content-Length: 2, 44\r\n\r\n{}",
        POST + b"Content-Length : 2\r\n\r\n{}",
        POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffffffffff\r\n{}",
        POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}0\r\n\r\n",
        POST + b"X-A: a\x00b\r\n\r\n",
        POST + b"X-A: a\rContent-Length: 2\r\n\r\n",
        POST + b"X A: b\r\n\r\n",
        POST + b"X\xff: b\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: elsewhere\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"GET /health z HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /healthz\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_no_second_request_is_smuggled_in_by_a_malformed_one(service: Hostile, request_head: bytes) -> None:
    answer = service.send(request_head + SECOND)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert 400 <= parsed(answer)[0] <= 501
    assert b'"status":"ok"' not in answer


def test_a_head_without_end_is_cut_off(service: Hostile) -> None:
    before = service.memory()
    line = b"X-A: " + b"a" * 65536 + b"\r\n"
    answer = service.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n", *[line] * 1600)
    assert answer == b"" or parsed(answer)[0] == 400  # the service may have closed while more was on its way
    assert service.memory() - before < 32 * MIB


def test_a_path_without_end_is_cut_off(service: Hostile) -> None:
    answer = service.send(b"GET /" + b"a" * 2**20 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert answer == b"" or parsed(answer)[0] == 400


@pytest.mark.parametrize("length", [10 * 2**30, 10**30])
@pytest.mark.parametrize(
    ("path", "media_type", "expected"),
    [("/v1/rewrites", "application/json", "body_too_large"), ("/v1/files", "text/plain", "file_too_large")],
)
def test_a_body_declared_as_huge_is_refused_before_it_is_sent(
    service: Hostile, path: str, media_type: str, expected: str, length: int
) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media_type}\r\nContent-Length: {length}\r\n\r\n"
    answer = service.send(head.encode())
    if length < 10**20:
        status, body = parsed(answer)
        assert (status, code(body)) == (413, expected)
    else:  # no length at all
        assert parsed(answer)[0] == 400


def test_a_body_without_end_is_refused_at_the_limit(service: Hostile) -> None:
    before = service.memory()
    chunk = b"%x\r\n" % MIB + b" " * MIB + b"\r\n"
    status, body = parsed(service.send(POST + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 64))
    assert (status, code(body)) == (413, "body_too_large")
    assert service.memory() - before < 64 * MIB


def zip_bomb() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.jsonl", b" " * (64 * MIB))
    return packed.getvalue()


@pytest.mark.parametrize("bomb", [lambda: gzip.compress(b" " * (64 * MIB)), zip_bomb], ids=["gzip", "zip"])
def test_a_compressed_bomb_is_never_unpacked(service: Hostile, bomb: Callable[[], bytes]) -> None:
    before = service.memory()
    packed = bomb()
    status, body = service.upload(packed)
    assert (status, code(body)) == (400, "invalid_file")
    status, body = service.request(
        "POST", "/v1/rewrites", packed, "Content-Type: application/json", "Content-Encoding: gzip"
    )
    assert (status, code(body)) == (415, "unsupported_encoding")
    assert service.memory() - before < 32 * MIB


@pytest.mark.parametrize(
    "bomb",
    [
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'{"demonstrations": [' + b"9" * 4_000_000 + b"]}",
        b'{"demonstrations": [1e999999]}',
        b'{"demonstrations": ["\\ud800"]}',
        b'{"demonstrations": [NaN]}',
        b'"' + b"\\" * 4_000_001,
    ],
    ids=["arrays", "objects", "digits", "exponent", "half a character", "NaN", "backslashes"],
)
def test_a_json_bomb_is_refused(service: Hostile, bomb: bytes) -> None:
    status, body = service.rewrites(bomb)
    assert (status, code(body)) == (400, "invalid_json")
    assert len(body) < 1000


@pytest.mark.parametrize(("rows", "expected"), [(2000, "too_many_rows"), (2_000_000, "too_many_values")])
def test_more_rows_than_allowed_are_refused(service: Hostile, rows: int, expected: str) -> None:
    before = service.memory()
    status, body = service.rewrites(b'{"demonstrations": [' + b"[]," * rows + b"[]]}")
    assert (status, code(body)) == (413, expected)
    assert service.memory() - before < 64 * MIB


def test_a_head_that_comes_byte_by_byte_is_given_up(service: Hostile) -> None:
    with service.connect() as connection:
        begun = time.monotonic()
        received = b"-"
        connection.settimeout(0.2)
        for byte in (b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 4000)[:4000]:
            try:
                connection.sendall(bytes([byte]))
                received = connection.recv(100)
                break
            except TimeoutError:
                assert time.monotonic() - begun < PATIENCE_S
            except OSError:
                received = b""
                break
        assert received == b""
        assert time.monotonic() - begun >= TIMEOUT_S / 2


def test_silent_and_half_heads_do_not_keep_others_out(service: Hostile) -> None:
    held = [service.connect() for _ in range(200)]
    for number, connection in enumerate(held):
        if number % 2:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nX-A: ")
    assert service.request("GET", "/healthz")[0] == 200
    for connection in held:  # and each is closed in time
        assert read_all(connection) == b""
        connection.close()


def test_a_second_head_on_a_kept_connection_is_timed_too(service: Hostile) -> None:
    with service.connect() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea")
        time.sleep(TIMEOUT_S / 4)
        connection.sendall(b"lthz HTTP/1.1\r\nHost: local")
        answer = read_all(connection)
    assert answer.count(b"HTTP/1.1 200") == 1


@pytest.mark.parametrize(("path", "media_type"), [("/v1/rewrites", "application/json"), ("/v1/files", "text/plain")])
def test_a_body_that_does_not_come_is_given_up(service: Hostile, path: str, media_type: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media_type}\r\nContent-Length: 100\r\n\r\n{{"
    status, body = parsed(service.send(head.encode()))
    assert (status, code(body)) == (408, "body_timeout")


SQL = ("'; DROP TABLE jobs; --", "' OR '1'='1", '" OR ""="', "1; SELECT pg_sleep(60)", "%' --")


def test_sql_in_ids_and_keys_is_only_text(service: Hostile) -> None:
    stored = json.loads(service.upload(json.dumps(ROW).encode())[1])["id"]
    made = []
    for text in SQL:
        quoted = "".join(f"%{byte:02x}" for byte in text.encode())
        for path in (
            f"/v1/files/{quoted}",
            f"/v1/jobs/{quoted}",
            f"/v1/jobs?after={quoted}",
            f"/v1/files?after={quoted}",
        ):
            assert service.request("GET", path)[0] in (404, 422)
        job = json.dumps({"kind": "rewrite", "input_file": stored}).encode()
        key = f"Idempotency-Key: {text.replace(' ', '_')}"
        for _ in range(2):
            status, body = service.request("POST", "/v1/jobs", job, "Content-Type: application/json", key)
            assert status == 200
            made.append(json.loads(body)["id"])
        wrong = json.dumps({"kind": "rewrite", "input_file": text}).encode()
        assert service.request("POST", "/v1/jobs", wrong, "Content-Type: application/json")[0] in (404, 422)
    assert len(set(made)) == len(SQL)  # each key is one job
    listed = json.loads(service.request("GET", "/v1/jobs?limit=100")[1])["data"]
    assert set(made) <= {job["id"] for job in listed}


def test_no_line_of_the_log_is_forged(service: Hostile) -> None:
    lines_before = len(service.log.read_text().splitlines())
    forged = "2026-01-01T00:00:00.000Z CRITICAL forged"
    assert service.request("GET", "/healthz", b"", f"X-Request-ID: x\t{forged}")[0] == 200
    assert service.request("GET", f"/v1/%0a{forged.replace(' ', '%20')}")[0] == 404
    assert service.request("FORGED", "/v1/files")[0] == 405
    row = {**ROW, "id": f"a\n{forged}\x1b[31m"}
    assert service.rewrites(json.dumps({"demonstrations": [row]}).encode())[0] == 200
    lines = service.log.read_text().splitlines()[lines_before:]
    assert len(lines) >= 3
    assert not any(line.startswith(forged) or "\x1b" in line for line in lines)
    assert not any("CRITICAL" in line.split()[:2] for line in lines)
