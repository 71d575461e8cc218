"""`rewright serve --local` over real sockets: bodies that lie, clients that stall, an orderly end. One start."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from agent.models import ModelFiles
from server.ports import free_port
from tests.waiting import wait_until

KEY = "key-of-the-local-service"
SETTINGS = {
    "REWRIGHT_API_KEYS": KEY,
    "REWRIGHT_ENGINE__THREADS": "1",
    "REWRIGHT_SERVER__DRAIN_TIMEOUT_S": "1200",
    "REWRIGHT_SERVER__LIMITS__BODY_BYTES": "2048",
    "REWRIGHT_SERVER__LIMITS__BODY_TIMEOUT_S": "1",
}
ROW = {"id": "a", "question": "What is 3 + 4?", "answer": "3+4=7\n#### 7"}
PATIENCE_S = 1200.0


@dataclass(frozen=True)
class Service:
    """A running service; `http` sends the key."""

    process: subprocess.Popen[bytes]
    http: httpx.Client
    port: int
    log: Path

    def raw(self, head: str, body: bytes = b"") -> tuple[int, dict[str, object]]:
        """Send bytes as they are, close the sending side, and return status and JSON of the answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S) as connection:
            connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
            answer = connection.makefile("rb").read()
        lines, _, content = answer.partition(b"\r\n\r\n")
        return int(lines.split()[1]), json.loads(content)["error"]


@pytest.fixture(scope="module")
def service(model_files: ModelFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    log = tmp_path_factory.mktemp("service") / "log"
    port = free_port()
    command = [sys.executable, "-m", "cli.main", "serve", "--local", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=os.environ | SETTINGS, stdout=output, stderr=subprocess.STDOUT)
    http = httpx.Client(
        base_url=f"http://127.0.0.1:{port}",
        headers={"Authorization": f"Bearer {KEY}"},
        timeout=PATIENCE_S,
        trust_env=False,
    )
    try:
        wait_until(lambda: b"ready at" in log.read_bytes() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield Service(process, http, port, log)
    finally:
        http.close()
        if process.poll() is None:
            process.terminate()
            process.wait(PATIENCE_S)


def _head(**headers: str) -> str:
    sent = {"Host": "127.0.0.1", "Content-Type": "application/json", "Authorization": f"Bearer {KEY}"} | headers
    fields = "".join(f"\n{name.replace('_', '-')}: {value}" for name, value in sent.items())
    return f"POST /v1/mismatch HTTP/1.1{fields}\nConnection: close"


def test_a_demonstration_is_scored_and_rewritten(service: Service) -> None:
    scored = service.http.post("/v1/mismatch", json={"demonstrations": [ROW]})
    assert scored.json()["data"][0]["mismatch"]["nll"] > 0
    body = {"demonstrations": [ROW], "strategy": "solve", "sampling": {"samples": 1, "max_tokens": 16}}
    assert service.http.post("/v1/rewrites", json=body).json()["data"][0]["id"] == "a"


def test_a_key_is_needed_for_work_and_none_for_health(service: Service) -> None:
    for path in ("/healthz", "/readyz", "/", "/docs", "/openapi.json"):
        assert httpx.get(service.http.base_url.join(path)).status_code == 200
    status, error = service.raw(_head(Authorization="Bearer wrong", Content_Length="2"), b"{}")
    assert status == 401
    assert error["code"] == "invalid_api_key"


def test_without_a_folder_of_adapters_there_are_none(service: Service) -> None:
    assert service.http.get("/v1/adapters").json() == {"data": [], "default": None}
    refused = service.http.post("/v1/adapters/math/activate", json={"version": 1})
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "unknown_adapter")


def test_a_chunked_body_beyond_the_limit_is_cut_off(service: Service) -> None:
    chunk = b"400\r\n" + b" " * 1024 + b"\r\n"
    status, error = service.raw(_head(Transfer_Encoding="chunked"), chunk * 3)
    assert status == 413
    assert error["code"] == "body_too_large"


def test_a_declared_length_beyond_the_limit_is_refused_at_once(service: Service) -> None:
    status, error = service.raw(_head(Content_Length="9" * 15))
    assert status == 413
    assert error["code"] == "body_too_large"


def test_a_body_shorter_than_declared_times_out(service: Service) -> None:
    status, error = service.raw(_head(Content_Length="100"), b"{}")
    assert status == 408
    assert error["code"] == "body_timeout"


def test_what_follows_a_body_of_the_declared_length_is_not_read_as_part_of_it(service: Service) -> None:
    status, error = service.raw(_head(Content_Length="2"), b"{}" + b" " * 5000)
    assert status == 422
    assert error["param"] == "demonstrations"


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(service: Service) -> None:
    command = [sys.executable, "-m", "cli.main", "serve", "--port", str(service.port)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert second.returncode == 2
    assert str(service.port) in second.stderr
    assert "server.port" in second.stderr


def test_a_public_address_without_keys_is_refused() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "REWRIGHT_API_KEYS"}
    command = [sys.executable, "-m", "cli.main", "serve", "--local", "--host", "0.0.0.0"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=environment)
    assert refused.returncode == 2
    assert "REWRIGHT_API_KEYS" in refused.stderr


def test_an_interrupt_lets_what_is_in_flight_finish(service: Service) -> None:
    """The last test: nothing runs after it."""
    body = {"demonstrations": [ROW], "strategy": "solve", "sampling": {"samples": 2, "max_tokens": 100}}
    with ThreadPoolExecutor() as pool:
        in_flight = pool.submit(service.http.post, "/v1/rewrites", json=body)
        wait_until(lambda: service.http.get("/readyz").json()["queue_rows"] == 1)
        service.process.send_signal(signal.SIGINT)
        answer = in_flight.result()
    assert answer.status_code == 200
    assert answer.json()["data"][0]["id"] == "a"
    assert service.process.wait(PATIENCE_S) == 0
    assert service.log.read_text().splitlines()[-1] == "stopped"
