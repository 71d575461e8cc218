"""The service on Ray with a tiny random model: adapters switched over HTTP, and an engine killed under load.

One start for all tests: the command line, local Ray, Ray Serve.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from agent.models import ModelFiles
from server.ports import free_port
from tests.killing import REQUESTS, kill_under_requests
from tests.tiny import make_model, publish_lora
from tests.waiting import wait_until

PATIENCE_S = 1200.0
ROW = {"question": "Mira has 3 apples and buys 4. How many?", "answer": "3+4=7\n#### 7"}


@dataclass(frozen=True)
class Service:
    """A running service."""

    process: subprocess.Popen[bytes]
    http: httpx.Client
    store: Path
    model: ModelFiles

    def rewrite(self, number: int, *, tokens: int = 8, adapter: str | None = None) -> dict[str, Any]:
        body = {
            "demonstrations": [ROW | {"id": f"row {number}"}],
            "strategy": "rewrite",
            "sampling": {"temperature": 1.0, "samples": 1, "max_tokens": tokens, "seed": number},
        }
        answer = self.http.post("/v1/rewrites", json=body | ({"adapter": adapter} if adapter else {}))
        assert answer.status_code == 200, answer.text
        (record,) = answer.json()["data"]
        return dict(record)

    def activate(self, version: int) -> httpx.Response:
        return self.http.post("/v1/adapters/math/activate", json={"version": version})

    def engines(self) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [p for p in children if "ServeReplica:rewright:engine" in " ".join(p.cmdline())]


@pytest.fixture(scope="module")
def service(model_files: ModelFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("recovery")
    model = make_model(folder / "tiny", model_files)
    for version in (1, 2, 3):
        publish_lora(folder / "adapters", model, version)
    port = free_port()
    settings = {
        "REWRIGHT_MODEL__NAME": str(model.path),
        "REWRIGHT_ENGINE__THREADS": "1",
        "REWRIGHT_REWRITE__ADAPTER": "math",
        "REWRIGHT_SERVER__ADAPTERS": str(folder / "adapters"),
        "REWRIGHT_SERVER__RAY__HEALTH_PERIOD_S": "1",
    }
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", "serve", "--port", str(port)],
            env=os.environ | settings,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    limits = httpx.Limits(max_connections=2 * REQUESTS)
    http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S, trust_env=False, limits=limits)
    try:
        wait_until(lambda: b"ready at" in log.read_bytes() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield Service(process, http, folder / "adapters", model)
    finally:
        http.close()
        if process.poll() is None:
            process.terminate()
            process.wait(PATIENCE_S)


def test_the_default_adapter_is_active_and_loaded(service: Service) -> None:
    answer = service.http.get("/v1/adapters").json()
    assert answer["default"] == "math@3"
    (math,) = answer["data"]
    assert (math["name"], math["active"]) == ("math", 3)
    assert [(v["version"], v["loaded"]) for v in math["versions"]] == [(1, False), (2, False), (3, True)]


def test_versions_are_switched_under_load_and_no_request_is_lost(service: Service) -> None:
    done = threading.Event()

    def client(number: int) -> int:
        answered = 0
        while not done.is_set():
            assert service.rewrite(number, adapter="math")["status"] != "error"
            answered += 1
        return answered

    with ThreadPoolExecutor() as pool:
        clients = [pool.submit(client, number) for number in range(4)]
        for version in (1, 2, 3, 2, 1):
            switched = service.activate(version)
            assert switched.status_code == 200, switched.text
            (math,) = service.http.get("/v1/adapters").json()["data"]
            assert math["active"] == version
            assert next(v for v in math["versions"] if v["version"] == version)["loaded"]
        done.set()
        assert all(client.result() > 0 for client in clients)
    assert service.http.get("/v1/adapters").json()["default"] == "math@1"


def test_a_version_that_is_published_later_is_there_at_once_and_a_broken_one_is_refused(service: Service) -> None:
    assert service.activate(4).status_code == 404
    publish_lora(service.store, service.model, 4)
    assert service.activate(4).json() == {"name": "math", "active": 4, "previous": 1}
    other = publish_lora(service.store, service.model, 5, base_model="another")
    refused = service.activate(5)
    assert refused.status_code == 409
    error = refused.json()["error"]
    assert (error["code"], error["param"]) == ("adapter_refused", "version")
    assert "another" in error["message"]
    assert str(other.parent) not in error["message"]
    assert service.rewrite(0)["status"] != "error"


def test_an_engine_killed_under_32_requests_loses_none_of_them(service: Service) -> None:
    service.activate(2)
    kill_under_requests(service.http, service.engines, partial(service.rewrite, tokens=48))
    # The new engine has read from the store what is active.
    (math,) = service.http.get("/v1/adapters").json()["data"]
    assert math["active"] == 2
    assert next(v for v in math["versions"] if v["version"] == 2)["loaded"]
