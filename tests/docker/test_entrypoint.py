"""What the containers run, as ordinary processes: a Ray head with the service, and a worker that joins it. One start.

The head has no core for an engine, so it waits for the worker, and every answer comes from there.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from agent.models import ModelFiles
from server.ports import free_port
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
HEAD, WORKER = "127.0.0.2", "127.0.0.3"  # two machines, as far as Ray can tell
PATIENCE_S = 1200.0
APPLES = {"id": "apples", "question": "Mira has 3 apples and buys 4. How many?", "answer": "3+4=<<3+4=7>>7\n#### 7"}

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="containers run Linux; elsewhere loopback is one address"
)


@dataclass(frozen=True)
class Cluster:
    """A running head and worker."""

    head: subprocess.Popen[bytes]
    worker: subprocess.Popen[bytes]
    folder: Path
    token: str
    key: str
    http: httpx.Client
    dashboard: str

    def post(self, *, key: str | None, max_tokens: int = 8) -> httpx.Response:
        body = {"demonstrations": [APPLES], "strategy": "solve", "sampling": {"samples": 1, "max_tokens": max_tokens}}
        return self.http.post("/v1/rewrites", json=body, headers={"Authorization": f"Bearer {key}"} if key else {})

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def processes(self) -> list[psutil.Process]:
        """Everything that runs with this cluster's token."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("RAY_AUTH_TOKEN") == self.token:
                    found.append(process)
        return found


@pytest.fixture(scope="module")
def cluster(model_files: ModelFiles) -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="rw-"))  # Ray's sockets lie in it, and their paths must be short
    token, key = secrets.token_hex(32), secrets.token_urlsafe(32)
    port, dashboard = free_port(HEAD), free_port(HEAD)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = inherited | {
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        "PYTHONPATH": str(ROOT),
        "RAY_HEAD": f"{HEAD}:{free_port(HEAD)}",
        "RAY_AUTH_TOKEN": token,
        "REWRIGHT_ENGINE__THREADS": "1",
        "REWRIGHT_SERVER__STATE": str(folder / "state"),
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1",  # the worker ends last, when there is nobody to take its work
    }

    def start(role: str, *options: str, **more: str) -> subprocess.Popen[bytes]:
        with (folder / f"{role}.log").open("wb") as log:
            return subprocess.Popen(
                [str(ROOT / "docker/entrypoint.sh"), role, "--object-store-memory=100000000", *options],
                env=environment | more,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    head = start(
        "head",
        "--num-cpus=0",
        f"--dashboard-port={dashboard}",
        f"--ray-client-server-port={free_port(HEAD)}",
        f"--temp-dir={folder}/ray",
        REWRIGHT_API_KEYS=key,
        REWRIGHT_SERVER__PORT=str(port),
    )
    wait_until(lambda: "waiting for nodes to join" in (folder / "head.log").read_text() or head.poll() is not None)
    worker = start("worker", "--num-cpus=1", f"--node-ip-address={WORKER}")
    http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S, trust_env=False)
    running = Cluster(head, worker, folder, token, key, http, f"http://{HEAD}:{dashboard}")
    try:
        wait_until(lambda: "ready at" in running.log("head") or head.poll() is not None)
        assert head.poll() is None, running.log("head")
        yield running
    finally:
        http.close()
        for process in (worker, head):
            process.terminate()
            process.wait(PATIENCE_S)
        for left in running.processes():
            with contextlib.suppress(psutil.Error):
                left.kill()
        shutil.rmtree(folder, ignore_errors=True)


def test_the_worker_joins_and_the_dashboard_wants_the_token(cluster: Cluster) -> None:
    def nodes(**headers: str) -> httpx.Response:
        return httpx.get(f"{cluster.dashboard}/nodes?view=summary", headers=headers, trust_env=False, timeout=60)

    assert nodes().status_code == 401
    summary = nodes(Authorization=f"Bearer {cluster.token}").json()["data"]["summary"]
    assert {node["ip"] for node in summary} == {HEAD, WORKER}


def test_a_row_is_rewritten_for_the_key_and_for_nobody_else(cluster: Cluster) -> None:
    assert cluster.post(key=None).status_code == 401
    answer = cluster.post(key=cluster.key)
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"][0]["id"] == "apples"
    assert answer.json()["usage"]["completion_tokens"] > 0


def test_what_ray_starts_does_not_inherit_the_keys_of_the_service(cluster: Cluster) -> None:
    raylets = [process for process in cluster.processes() if "raylet/raylet" in " ".join(process.cmdline())]
    assert len(raylets) == 2
    for process in raylets:
        assert "REWRIGHT_API_KEYS" not in process.environ()


def test_the_end_answers_what_is_in_flight_and_leaves_nothing_behind(cluster: Cluster) -> None:
    """The last test: nothing runs after it."""
    with ThreadPoolExecutor() as pool:
        in_flight = pool.submit(cluster.post, key=cluster.key, max_tokens=64)
        wait_until(lambda: cluster.http.get("/readyz").json().get("queue_rows") == 1)
        cluster.head.send_signal(signal.SIGTERM)
        assert in_flight.result().status_code == 200
    assert cluster.head.wait(PATIENCE_S) == 0, cluster.log("head")
    assert "stopped" in cluster.log("head")
    cluster.worker.send_signal(signal.SIGTERM)
    cluster.worker.wait(PATIENCE_S)
    wait_until(lambda: not cluster.processes())
