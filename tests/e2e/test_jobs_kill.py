"""A service that is killed in the middle of a job, driven by `rewright jobs`: nothing lost, nothing twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE

import pytest

from agent.intake import read_rows
from agent.records import file_row
from tests.plain_backend import plain_record
from tests.scripted_process import PATIENCE_S, ScriptedProcess

ROWS = 200
KILLS = 3


class Service(ScriptedProcess):
    """With shards of ten rows."""

    def __init__(self, state: Path) -> None:
        super().__init__(state, "--shard-rows", "10")

    def done(self, job_id: str) -> int:
        counts = self.http.get(f"/v1/jobs/{job_id}").json()["request_counts"]
        return int(counts["completed"] + counts["failed"])


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path / "state")
    yield service
    service.stop()


def _cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "REWRIGHT_API_KEY"}
    command = [sys.executable, "-m", "cli.main", "jobs", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=environment)


def test_a_job_survives_kills_and_every_row_is_there_once_and_in_order(service: Service, tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    lines = [json.dumps({"question": f"{n}?", "answer": f"it is {n}"}) if n % 40 else "{broken" for n in range(ROWS)]
    source.write_text("\n".join(lines))
    expected = [file_row(plain_record(row)) for row in read_rows(source) if not hasattr(row, "message")]

    service.start(pause_s=3600)
    submitted = _cli("submit", str(source), "--url", service.url)
    assert submitted.returncode == 0, submitted.stderr
    assert "5 rows cannot be read; the first is line 1" in submitted.stderr
    job_id = submitted.stdout.strip()
    watch = ["watch", job_id, "--url", service.url, "--json", "--max-errors", "5"]
    watching = subprocess.Popen([sys.executable, "-m", "cli.main", "jobs", *watch], stdout=PIPE, stderr=PIPE, text=True)
    assert watching.stderr is not None
    assert f"0 of {ROWS}" in watching.stderr.readline()
    chance = random.Random(6)
    seen = []
    for _ in range(KILLS):
        service.kill()
        service.start(pause_s=0.2)
        assert service.done(job_id) >= max(seen, default=0), "what was done is not done any more"
        target = service.done(job_id) + chance.randint(10, 40)
        while service.done(job_id) < min(target, ROWS - 20):
            time.sleep(0.02)
        seen.append(service.done(job_id))
    assert 0 < seen[0] < ROWS
    out, said = watching.communicate(timeout=PATIENCE_S)
    assert watching.returncode == 0, said
    job = json.loads(out)
    assert job["status"] == "completed"
    assert job["request_counts"] == {"total": ROWS, "completed": ROWS - 5, "failed": 5}

    result = tmp_path / "out.jsonl"
    fetched = _cli("results", job_id, "--url", service.url, "-o", str(result))
    assert fetched.returncode == 0, fetched.stderr
    made = [json.loads(line) for line in result.read_text().splitlines()]
    assert [row["id"] for row in made] == [f"row-{n + 1}" for n in range(ROWS)]
    assert [row for row in made if row["status"] != "error"] == expected
    errors = _cli("results", job_id, "--url", service.url, "--errors")
    assert [json.loads(line) for line in errors.stdout.splitlines()] == [r for r in made if r["status"] == "error"]
    events = [line for line in service.http.get(f"/v1/jobs/{job_id}/events").text.splitlines() if line[:3] == "id:"]
    assert events == [f"id: {n}" for n in range(1, len(events) + 1)]
    listed = _cli("list", "--url", service.url, "--json")
    assert [job["id"] for job in json.loads(listed.stdout)] == [job_id]
    assert _cli("watch", "job_nothing", "--url", service.url).returncode == 2


def test_a_service_that_is_told_to_stop_does_so_while_somebody_watches(service: Service, tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(json.dumps({"question": f"{n}?", "answer": "1"}) for n in range(5000)))
    service.start(pause_s=0.2)
    job_id = _cli("submit", str(source), "--url", service.url).stdout.strip()
    with service.http.stream("GET", f"/v1/jobs/{job_id}/events") as stream:
        lines = stream.iter_lines()
        assert next(lines) == "id: 1"
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(PATIENCE_S) == 0
        assert [line for line in lines if line.startswith("data:")]
    service.start(pause_s=0.2)
    assert service.http.get(f"/v1/jobs/{job_id}").json()["status"] in ("validating", "in_progress")
    assert _cli("cancel", job_id, "--url", service.url).returncode == 0
    assert _cli("watch", job_id, "--url", service.url).returncode == 1
