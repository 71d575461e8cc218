"""A job of 200 rows through the real engine on Ray, while engine, API and the whole of Ray are killed.

The model is a random one of the embedded model's words, so that a run takes minutes: `REWRIGHT_FAULTS_MODEL` names
another. `REWRIGHT_FAULTS_SEED` sets the moments.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from agent.models import ModelFiles
from server.ports import free_port
from tests.tiny import make_model
from tests.waiting import wait_until

ROWS = 200
FAULTS = ["engine", "api", "engine", "Ray's head", "api", "service", "engine", "Ray's head"]
PATIENCE_S = 1200.0
PARAMS = {"strategy": "solve", "sampling": {"temperature": 1.0, "samples": 1, "max_tokens": 24, "seed": 0}}


class Service:
    """`rewright serve` over one state folder, started again whenever it ends."""

    def __init__(self, folder: Path, model: str) -> None:
        port = free_port()
        self._log = folder / "log"
        self._command = [sys.executable, "-m", "cli.main", "serve", "--port", str(port)]
        self._settings = {
            "REWRIGHT_MODEL__NAME": model,
            "REWRIGHT_ENGINE__THREADS": "1",
            "REWRIGHT_SERVER__STATE": str(folder / "state"),
            "REWRIGHT_SERVER__JOBS__SHARD_ROWS": "5",
            "REWRIGHT_SERVER__RAY__HEALTH_PERIOD_S": "1",
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60.0, trust_env=False)

    def start(self) -> None:
        said = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                self._command, env=os.environ | self._settings, stdout=log, stderr=log, start_new_session=True
            )
        self._process = process
        wait_until(lambda: b"ready at" in self._log.read_bytes()[said:] or process.poll() is not None)
        assert process.poll() is None, self._log.read_text()

    def kill(self, title: str | None) -> None:
        """Kill the Ray processes whose command line has `title` in it, or all that belongs to the service."""
        assert self._process is not None
        own = psutil.Process(self._process.pid)
        everything = [own, *own.children(recursive=True)]
        chosen = [p for p in everything if title is None or title in " ".join(_command_line(p))]
        assert chosen, f"no process with {title}"
        for process in chosen:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if title is None:
            psutil.wait_procs(everything, timeout=PATIENCE_S)
            self._process.wait(PATIENCE_S)

    def ends_by_itself(self) -> int:
        assert self._process is not None
        return self._process.wait(PATIENCE_S)

    def get(self, path: str) -> httpx.Response | None:
        """The answer, None while there is nobody to answer."""
        try:
            answer = self.http.get(path)
        except httpx.TransportError:
            return None
        assert answer.status_code in (200, 404, 500, 503), answer.text
        return answer if answer.status_code == 200 else None

    def stop(self) -> None:
        self.http.close()
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(PATIENCE_S)


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


@pytest.fixture(scope="module")
def model(model_files: ModelFiles, tmp_path_factory: pytest.TempPathFactory) -> str:
    named = os.environ.get("REWRIGHT_FAULTS_MODEL")
    return named or str(make_model(tmp_path_factory.mktemp("model") / "tiny", model_files).path)


@pytest.fixture
def service(model: str, tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path, model)
    service.start()
    yield service
    service.stop()


def _submit(service: Service) -> str:
    rows = "\n".join(json.dumps({"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"}) for n in range(ROWS))
    file = service.http.post("/v1/files", content=rows, headers={"Content-Type": "application/x-ndjson"})
    job = service.http.post("/v1/jobs", json={"kind": "rewrite", "input_file": file.json()["id"], "params": PARAMS})
    return str(job.json()["id"])


def _finished(service: Service, job: str) -> int:
    seen: list[int] = []

    def answered() -> bool:
        if answer := service.get(f"/v1/jobs/{job}"):
            body = answer.json()
            assert body["status"] not in ("failed", "cancelled"), body
            seen.append(sum(body["request_counts"][name] for name in ("completed", "failed")))
        return bool(seen)

    wait_until(answered)
    return seen[0]


def _result(service: Service, job: str) -> list[dict[str, object]]:
    wait_until(lambda: (answer := service.get(f"/v1/jobs/{job}")) and answer.json()["status"] == "completed")
    body = service.http.get(f"/v1/jobs/{job}").json()
    assert body["request_counts"] == {"total": ROWS, "completed": ROWS, "failed": 0}
    content = service.http.get(f"/v1/files/{body['output_file']}/content").content
    return [json.loads(line) for line in content.splitlines()]


def test_kills_of_engine_api_and_ray_lose_and_repeat_nothing(service: Service) -> None:
    seed = int(os.environ.get("REWRIGHT_FAULTS_SEED", random.randrange(10**6)))
    chance, made = random.Random(seed), Counter[str]()
    print(f"\nseed {seed}")
    job = _submit(service)
    for number, fault in enumerate(FAULTS):
        wanted = chance.uniform(0.3, 1.0) * (number + 1) * ROWS * 0.8 / len(FAULTS)
        wait_until(lambda: _finished(service, job) >= wanted)  # noqa: B023
        before = _finished(service, job)
        match fault:
            case "engine":
                service.kill("ServeReplica:rewright:engine")
            case "api":
                service.kill("ServeReplica:rewright:api")
            case "service":
                service.kill(None)
                service.start()
            case "Ray's head":
                service.kill("gcs_server")
                assert service.ends_by_itself() == 1
                service.start()
        made[fault] += 1
        assert _finished(service, job) >= before, f"after {fault}: what was done is not done any more"
    rows = _result(service, job)
    print(f"{len(FAULTS)} faults in a job of {ROWS} rows: {dict(made)}")
    assert [row["id"] for row in rows] == [f"row-{n + 1}" for n in range(ROWS)]
    assert rows == _result(service, _submit(service))
