"""A job that a service knows and nothing runs."""

from __future__ import annotations

from pathlib import Path

from server.jobs import Job
from server.settings import JobSettings, ServerSettings
from server.work import DurableWork
from server.work_schemas import RewriteJob
from tests.uploads import ROW


def job_settings(tmp_path: Path) -> ServerSettings:
    return ServerSettings(state=str(tmp_path / "state"), jobs=JobSettings(shard_rows=2))


def stored_job(work: DurableWork, tmp_path: Path) -> Job:
    """A job in the store, which nothing runs."""
    source = tmp_path / "rows"
    source.write_bytes(ROW)
    stored = work._files.adopt(source, "file_" + "1" * 24, "input", "rows.jsonl", 1)
    return work._jobs.create(RewriteJob(kind="rewrite", input_file=stored.id), "", None)
