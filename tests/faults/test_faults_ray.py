"""A job of 200 rows through the real engine on Ray, while engine, API, all of Ray and the database are killed.

The model is a random one of the embedded model's words, so that a run takes minutes: `REWRIGHT_FAULTS_MODEL` names
another. `REWRIGHT_FAULTS_RAY` sets the number of faults, of each test; `REWRIGHT_FAULTS_SEED` their kinds and moments.
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
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from agent.models import ModelFiles
from server.ports import free_port
from tests.postgres import postgres
from tests.tiny import make_model
from tests.waiting import wait_until

ROWS = 200
FAULTS = int(os.environ.get("REWRIGHT_FAULTS_RAY", "20"))
LEFT_ALONE = 40  # rows at the end that no fault waits for
PATIENCE_S = 1200.0
# So long, and so few rows at a time, that the job outlasts the faults.
PARAMS = {"strategy": "solve", "sampling": {"temperature": 1.0, "samples": 1, "max_tokens": 96, "seed": 0}}
ROWS_AT_ONCE = 2


class Service:
    """`rewright serve` over one state folder and database, started again whenever it ends."""

    def __init__(self, folder: Path, model: str, database: str | None) -> None:
        port = free_port()
        self._log = folder / "log"
        self._command = [sys.executable, "-m", "cli.main", "serve", "--port", str(port)]
        self._settings = {
            "REWRIGHT_MODEL__NAME": model,
            "REWRIGHT_ENGINE__THREADS": "1",
            "REWRIGHT_SERVER__STATE": str(folder / "state"),
            "REWRIGHT_SERVER__JOBS__ROWS": str(ROWS_AT_ONCE),
            "REWRIGHT_SERVER__JOBS__SHARD_ROWS": "5",
            "REWRIGHT_SERVER__RAY__HEALTH_PERIOD_S": "1",
        }
        if database is not None:
            self._settings["REWRIGHT_SERVER__DATABASE"] = database
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
        """Kill the Ray processes whose command line has `title` in it, or all that belongs to the service.

        One that is being replaced since the fault before is waited for.
        """
        assert self._process is not None
        own = psutil.Process(self._process.pid)
        wait_until(lambda: _named(own, title))
        chosen = _named(own, title)
        for process in chosen:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if title is None:
            psutil.wait_procs(chosen, timeout=PATIENCE_S)
            self._process.wait(PATIENCE_S)

    def ends_by_itself(self) -> int:
        assert self._process is not None
        return self._process.wait(PATIENCE_S)

    def get(self, path: str) -> httpx.Response | None:
        """The answer, None while there is nobody to answer.

        Ray's proxy answers for an application that is not there: 404 before it knows of one, and 500 for a request
        that was under way in a process that is killed. Its answers are plain text. Ours are JSON, and 503 at worst.
        """
        try:
            answer = self.http.get(path)
        except httpx.TransportError:
            return None
        of_the_proxy = answer.headers.get("content-type", "").startswith("text/plain")
        assert answer.status_code in ((200, 404, 500, 503) if of_the_proxy else (200, 503)), answer.text
        return answer if answer.status_code == 200 else None

    def stop(self) -> None:
        self.http.close()
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(PATIENCE_S)


def _named(own: psutil.Process, title: str | None) -> list[psutil.Process]:
    everything = [own, *own.children(recursive=True)]
    return [process for process in everything if title is None or title in _command_line(process)]


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.fixture(scope="module")
def model(model_files: ModelFiles, tmp_path_factory: pytest.TempPathFactory) -> str:
    named = os.environ.get("REWRIGHT_FAULTS_MODEL")
    return named or str(make_model(tmp_path_factory.mktemp("model") / "tiny", model_files).path)


@contextlib.contextmanager
def _service(folder: Path, model: str, database: str | None) -> Iterator[Service]:
    service = Service(folder, model, database)
    try:
        service.start()
        yield service
    finally:
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


def _kill_all(service: Service) -> None:
    service.kill(None)
    service.start()


def _kill_head(service: Service) -> None:
    service.kill("gcs_server")
    assert service.ends_by_itself() == 1
    service.start()


def _kinds(service: Service) -> dict[str, Callable[[], object]]:
    return {
        "engine": lambda: service.kill("ServeReplica:rewright:engine"),
        "api": lambda: service.kill("ServeReplica:rewright:api"),
        "service": lambda: _kill_all(service),
        "Ray's head": lambda: _kill_head(service),
    }


def _disturbed(service: Service, kinds: dict[str, Callable[[], object]]) -> None:
    """A job under faults of all these kinds, in any order; its rows are those of a job without."""
    seed = int(os.environ.get("REWRIGHT_FAULTS_SEED", random.randrange(10**6)))
    chance, made = random.Random(seed), Counter[str]()
    print(f"\nseed {seed}")
    names = [*kinds, *chance.choices([*kinds], k=max(0, FAULTS - len(kinds)))]
    chance.shuffle(names)
    job = _submit(service)
    for number, name in enumerate(names):
        # After one shard at least: a row that is met by fault after fault is, rightly, taken for their reason.
        done = _finished(service, job)
        wanted = done + chance.uniform(0.2, 1.0) * (ROWS - LEFT_ALONE - done) / (len(names) - number)
        wait_until(lambda: _finished(service, job) >= wanted)  # noqa: B023
        before = _finished(service, job)
        kinds[name]()
        made[name] += 1
        assert _finished(service, job) >= before, f"after {name}: what was done is not done any more"
    assert _finished(service, job) < ROWS, "the job ended before the last fault"
    rows = _result(service, job)
    print(f"{len(names)} faults in a job of {ROWS} rows: {dict(made)}")
    assert [row["id"] for row in rows] == [f"row-{n + 1}" for n in range(ROWS)]
    assert rows == _result(service, _submit(service))


def test_kills_of_engine_api_and_ray_on_sqlite_lose_and_repeat_nothing(model: str, tmp_path: Path) -> None:
    with _service(tmp_path, model, None) as service:
        _disturbed(service, _kinds(service))


def test_kills_of_engine_api_ray_and_postgresql_lose_and_repeat_nothing(model: str, tmp_path: Path) -> None:
    with postgres() as database, _service(tmp_path, model, database.url) as service:
        of_the_database: dict[str, Callable[[], object]] = {
            "connections are cut": database.drop_connections,
            "PostgreSQL is killed": database.restart,
        }
        _disturbed(service, _kinds(service) | of_the_database)
