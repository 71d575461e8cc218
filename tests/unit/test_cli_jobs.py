"""`rewright jobs` against a scripted service: what is fetched of a job that did not complete, and what is sent."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.jobs_client import JobsClient
from cli.main import main

ROWS = b'{"id": "a"}\n'


class Service:
    """Has one job, whose output is `ROWS`; keeps the bodies of new ones."""

    def __init__(self, **job: Any) -> None:
        counts = {"total": 3, "completed": 1, "failed": 0}
        finished = None if job.get("output_file") is None else 1
        self.job = {"id": "job_1", "request_counts": counts, "error_file": None, "finished_at": finished, **job}
        self.submitted: list[dict[str, Any]] = []
        self.files: list[dict[str, Any]] = []
        self.uploaded = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/files":
            if request.method == "GET":
                return httpx.Response(200, json={"data": self.files})
            self.uploaded += 1
            return httpx.Response(200, json={"id": "file_new", "unreadable_rows": 0})
        if request.method == "POST":
            self.submitted.append(json.loads(request.content))
        if request.url.path.startswith("/v1/files"):
            return httpx.Response(200, content=ROWS)
        return httpx.Response(200, json=self.job)


def run(monkeypatch: pytest.MonkeyPatch, service: Service, *arguments: str) -> int:
    def client(url: str, patience_s: float = 0.0) -> JobsClient:
        made = JobsClient(url, None, patience_s=patience_s)
        made._http = httpx.Client(transport=httpx.MockTransport(service), base_url=url)
        return made

    monkeypatch.setattr("cli.jobs.open_client", client)
    monkeypatch.setattr(sys, "argv", ["rewright", "jobs", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        ("completed", 0, ""),
        ("cancelled", 1, "job_1 is cancelled: 1 of 3 rows"),
        ("failed", 1, "job_1 is failed: 1 of 3 rows"),
    ],
)
def test_the_rows_of_a_job_that_did_not_complete_are_fetched_and_called_so(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    status: str,
    code: int,
    said: str,
) -> None:
    service = Service(status=status, output_file="file_1")
    assert run(monkeypatch, service, "results", "job_1", "-o", str(tmp_path / "out")) == code
    assert (tmp_path / "out").read_bytes() == ROWS
    assert capsys.readouterr().err.strip() == said


def test_a_job_that_still_runs_has_no_results_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    service = Service(status="in_progress", output_file=None)
    assert run(monkeypatch, service, "results", "job_1", "-o", str(tmp_path / "out")) == 3
    assert "job_1 has no such file: it is in_progress, and has none before its end" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_output_is_replaced_when_that_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("old")
    service = Service(status="completed", output_file="file_1")
    assert run(monkeypatch, service, "results", "job_1", "-o", str(tmp_path / "out")) == 2
    assert (tmp_path / "out").read_text() == "old"
    assert run(monkeypatch, service, "results", "job_1", "-o", str(tmp_path / "out"), "--overwrite") == 0
    assert (tmp_path / "out").read_bytes() == ROWS


def test_an_exam_of_benchmarks_alone_needs_no_input(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(status="validating", output_file=None)
    assert run(monkeypatch, service, "submit", "--kind", "evaluate", "--params", '{"tasks": ["piqa"]}') == 0
    assert service.submitted == [{"kind": "evaluate", "input_file": None, "params": {"tasks": ["piqa"]}}]


@pytest.mark.parametrize(
    ("output", "said"), [(".", "is a folder: name a file"), ("none/out.jsonl", "there is no folder")]
)
def test_results_that_can_go_nowhere_are_not_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, output: str, said: str
) -> None:
    service = Service(status="completed", output_file="file_1")
    assert run(monkeypatch, service, "results", "job_1", "--overwrite", "-o", str(tmp_path / output)) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_input_of_a_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(monkeypatch, Service(), "submit", str(tmp_path)) == 2
    assert f"{tmp_path}: is not a file" in capsys.readouterr().err


def test_a_file_that_the_service_has_is_not_sent_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(ROWS)
    service = Service(status="validating", output_file=None)
    there = {"id": "file_1", "purpose": "input", "sha256": hashlib.sha256(ROWS).hexdigest(), "unreadable_rows": 0}
    service.files = [{**there, "id": "file_2", "sha256": "other"}, {**there, "id": "file_3", "purpose": "output"}]
    assert run(monkeypatch, service, "submit", str(source)) == 0
    service.files.append(there)
    assert run(monkeypatch, service, "submit", str(source)) == 0
    assert (service.uploaded, [job["input_file"] for job in service.submitted]) == (1, ["file_new", "file_1"])


def test_nothing_is_sent_for_a_kind_that_there_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(ROWS)
    service = Service(status="validating", output_file=None)
    assert run(monkeypatch, service, "submit", str(source), "--kind", "tune") == 2
    assert "--kind 'tune': there are rewrite, train, sft, evaluate" in capsys.readouterr().err
    assert (service.uploaded, service.submitted) == (0, [])
