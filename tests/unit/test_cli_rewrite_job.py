"""Which job of a service `rewright rewrite --job --resume` takes up again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.jobs_client import JobsClient
from cli.output import Job
from cli.rewrite_job import _find_or_start

INPUT = {"id": "file_in", "purpose": "input", "sha256": "content", "unreadable_rows": 0}
OUTPUT, FAILED = ({"id": f"file_{purpose}", "purpose": purpose, "sha256": "x"} for purpose in ("output", "errors"))


class Scripted(JobsClient):
    """Of a service that has these files, and one job on the input."""

    def __init__(self, files: list[dict[str, Any]], **job: Any) -> None:
        self._files = files
        self._earlier = {"id": "job_1", "kind": "rewrite", "params": {}, "input_file": "file_in", **job}

    def files(self) -> Iterator[dict[str, Any]]:
        yield from self._files

    def jobs(self) -> Iterator[dict[str, Any]]:
        yield self._earlier

    def submit(
        self, file_id: str | None, params: dict[str, Any], kind: str = "rewrite", *, key: str | None = None
    ) -> dict[str, Any]:
        return {"id": "job_2", "input_file": file_id}


@pytest.mark.parametrize(
    ("files", "error_file", "taken"),
    [
        ([INPUT, OUTPUT], None, "job_1"),
        ([INPUT, OUTPUT, FAILED], "file_errors", "job_1"),
        ([INPUT, OUTPUT], "file_errors", "job_2"),
        ([INPUT], None, "job_2"),
    ],
)
def test_a_completed_job_is_taken_up_only_while_its_results_are_there(
    tmp_path: Path, files: list[dict[str, Any]], error_file: str | None, taken: str
) -> None:
    job = Job(source=tmp_path / "in.jsonl", output=tmp_path / "out.jsonl", resume=True)
    done = {"status": "completed", "finished_at": 1, "output_file": "file_output", "error_file": error_file}
    assert _find_or_start(Scripted(files, **done), job, {}, "content")["id"] == taken


def test_a_job_under_way_is_taken_up(tmp_path: Path) -> None:
    job = Job(source=tmp_path / "in.jsonl", output=tmp_path / "out.jsonl", resume=True)
    busy = {"status": "in_progress", "finished_at": None, "output_file": None, "error_file": None}
    assert _find_or_start(Scripted([INPUT], **busy), job, {}, "content")["id"] == "job_1"
