"""`rewright rewrite --url --job` against the scripted service: followed, interrupted, found again, fetched."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from agent.demonstrations import Demonstration
from agent.intake import read_rows
from agent.records import file_row
from tests.plain_backend import plain_record
from tests.scripted_process import PATIENCE_S, ScriptedProcess

COMMAND = [sys.executable, "-m", "cli.main", "rewrite"]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ScriptedProcess]:
    service = ScriptedProcess(tmp_path / "state", "--shard-rows", "10")
    yield service
    service.stop()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Thirty rows, of which the eighth cannot be read."""
    lines = [json.dumps({"question": f"{n}?", "answer": f"it is {n}"}) for n in range(30)]
    lines[7] = "{broken"
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    return path


def start(service: ScriptedProcess, source: Path, *flags: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "REWRIGHT_API_KEY"}
    command = [*COMMAND, str(source), "--url", service.url, "--job"]
    command += ["-o", str(source.with_name("out.jsonl")), *flags]
    return subprocess.Popen(command, stdout=PIPE, stderr=PIPE, text=True, env=environment)


def run(service: ScriptedProcess, source: Path, *flags: str) -> tuple[int, str, str]:
    process = start(service, source, *flags)
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, " ".join(err.split())


def jobs(service: ScriptedProcess) -> list[dict[str, Any]]:
    """Newest first."""
    return list(service.http.get("/v1/jobs").json()["data"])


def uploads(service: ScriptedProcess) -> int:
    return sum(file["purpose"] == "input" for file in service.http.get("/v1/files").json()["data"])


def test_an_interrupted_job_goes_on_and_is_found_again(service: ScriptedProcess, source: Path) -> None:
    out, failed = source.with_name("out.jsonl"), source.with_name("out.failed.jsonl")
    service.start(pause_s=3600)
    following = start(service, source)
    assert following.stderr is not None
    assert "1 rows cannot be read; the first is line 8" in following.stderr.readline()
    assert "of 30 rows are done" in following.stderr.readline()
    following.send_signal(signal.SIGINT)
    _, said = following.communicate(timeout=PATIENCE_S)
    (job,) = jobs(service)
    assert following.returncode == 130
    assert f"{job['id']} goes on without; the same command with --resume" in " ".join(said.split())
    assert job["finished_at"] is None
    assert not out.exists()

    code, _, said = run(service, source)
    assert (code, f"{job['id']} is at the same work: --resume takes it up" in said) == (2, True)

    service.kill()
    service.start(pause_s=0)
    code, printed, said = run(service, source, "--resume", "--json", "--max-errors", "1")
    assert code == 0, said
    assert [j["id"] for j in jobs(service)] == [job["id"]], "another job was started"
    assert (json.loads(printed)["rows"], json.loads(printed)["errors"]) == (30, 1)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"row-{n + 1}" for n in range(30)]
    good = [file_row(plain_record(row)) for row in read_rows(source) if isinstance(row, Demonstration)]
    assert [row for row in rows if row["status"] != "error"] == good
    assert failed.read_text().splitlines() == [out.read_text().splitlines()[7]]

    assert "out.jsonl: exists already" in run(service, source)[2]
    code, _, said = run(service, source, "--overwrite")
    assert (code, "1 rows have status error, more than --max-errors 0" in said) == (1, True)
    assert len(jobs(service)) == 2
    assert uploads(service) == 1, "the same content was sent again"
    before = out.read_text()
    code, _, said = run(service, source, "--resume", "--strategy", "solve")
    assert (code, "strategy was None and is now 'solve'" in said) == (2, True)
    without = [*COMMAND, str(source), "--url", service.url, "-o", str(out), "--resume"]
    said = subprocess.run(without, capture_output=True, text=True, timeout=PATIENCE_S).stderr
    assert "out.jsonl: cannot be resumed: job was 'sha256:" in " ".join(said.split())
    assert run(service, source, "--resume", "--max-errors", "1")[0] == 0
    assert (out.read_text(), len(jobs(service))) == (before, 2)
    assert run(service, source, "--overwrite", "--strategy", "solve", "--max-errors", "1")[0] == 0
    assert [j["params"] for j in jobs(service)] == [{"strategy": "solve"}, {}, {}]


def test_a_cancelled_job_is_told_and_not_taken_up_again(service: ScriptedProcess, source: Path) -> None:
    source.write_text("".join(source.read_text().splitlines(keepends=True)[:7]))
    service.start(pause_s=3600)
    following = start(service, source)
    assert following.stderr is not None
    assert "is validating" in (line := following.stderr.readline()) or "is in_progress" in line
    (job,) = jobs(service)
    assert service.http.post(f"/v1/jobs/{job['id']}/cancel").status_code == 200
    _, said = following.communicate(timeout=PATIENCE_S)
    assert (following.returncode, f"{job['id']} cancelled: somebody ended it" in " ".join(said.split())) == (3, True)
    service.kill()
    service.start(pause_s=0)
    code, _, said = run(service, source, "--resume")
    assert code == 0, said
    assert [j["status"] for j in jobs(service)] == ["completed", "cancelled"]
    assert len(source.with_name("out.jsonl").read_text().splitlines()) == 7
    assert not source.with_name("out.failed.jsonl").exists()


def test_a_service_that_refuses_the_file_says_why(service: ScriptedProcess, source: Path) -> None:
    service.start(pause_s=0)
    source.write_text("no rows\n")
    code, _, said = run(service, source)
    assert (code, "is not JSON lines" in said) == (2, True)
    assert jobs(service) == []
