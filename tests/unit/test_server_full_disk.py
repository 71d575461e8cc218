"""A disk without room, which is a real one of a few megabytes: what clients are told, and that nothing is lost."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from agent.demonstrations import BadRow, Demonstration
from agent.exceptions import OutputFileError
from agent.output import RecordWriter
from agent.rows import parse_row
from server.admission import Admission
from server.app import create_app
from server.auth import Keys
from server.jobs_files import JobFolder
from server.jobs_shard import Lane, ShardRunner
from server.jobs_steps import RETRY
from server.schemas import RewriteOptions
from server.settings import JobSettings, ServerSettings
from server.storage import UrlStorage
from server.work import DurableWork
from tests.asgi import client_of
from tests.plain_backend import PlainBackend, plain_record

RAW = {"Content-Type": "application/x-ndjson"}
FULL = "the service's disk is full: delete files that are not needed any more, or have room made, and try again"
REASON = "the service failed on this job; its machine says: No space left on device"
LONG = 50_000  # characters of a row's answer


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("a file system can be mounted by root only")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def _fill(disk: Path, left: int = 0) -> Path:
    """Leave so many bytes free; returns what takes the others."""
    room = os.statvfs(disk)
    filler = disk / "filler"
    with filler.open("wb") as opened:
        os.posix_fallocate(opened.fileno(), 0, room.f_bavail * room.f_frsize - left)
    return filler


def _lines(rows: int) -> bytes:
    return b"".join(json.dumps({"question": f"{n}?", "answer": "a" * LONG}).encode() + b"\n" for n in range(rows))


@asynccontextmanager
async def _service(state: Path, backend: PlainBackend) -> AsyncIterator[tuple[httpx.AsyncClient, DurableWork]]:
    settings = ServerSettings(state=str(state), jobs=JobSettings(shard_rows=2))
    work = DurableWork(settings)
    async with client_of(create_app(backend, settings, Keys(), work)) as client:
        yield client, work


def _kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


async def test_an_upload_is_refused_with_what_to_do_and_leaves_nothing(disk: Path) -> None:
    async with _service(disk / "state", PlainBackend()) as (client, _):
        filler = _fill(disk, 2**20)
        refused = await client.post("/v1/files", content=_lines(40), headers=RAW)
        left = _kept(disk / "state" / "files")
        ready = await client.get("/readyz")
        filler.unlink()
        taken = await client.post("/v1/files", content=_lines(40), headers=RAW)
    error = refused.json()["error"]
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "60")
    assert error == {"message": FULL, "type": "server_error", "param": None, "code": "storage_unavailable"}
    assert left == []
    assert ready.status_code == 200, "a megabyte is free again"
    assert (taken.status_code, taken.json()["rows"]) == (200, 40)


async def test_a_disk_without_any_room_is_not_ready(disk: Path) -> None:
    async with _service(disk / "state", PlainBackend()) as (client, _):
        filler = _fill(disk)
        full = await client.get("/readyz")
        filler.unlink()
        again = await client.get("/readyz")
    assert (full.status_code, full.json()["error"]["message"]) == (503, FULL)
    assert again.status_code == 200


async def test_a_file_that_the_database_has_no_room_for_is_not_kept(tmp_path: Path) -> None:
    async with _service(tmp_path, PlainBackend()) as (client, work):
        work._database.close()
        sa.event.listen(work._database._engine, "connect", lambda c, _: c.execute("PRAGMA max_page_count=1"))
        answers = []
        while not answers or answers[-1].status_code == 200:
            answers.append(await client.post("/v1/files", content=_lines(1), headers=RAW))
            assert len(answers) < 200
        known = (await client.get("/v1/files?limit=100")).json()["data"]
    error = answers[-1].json()["error"]
    assert (answers[-1].status_code, error["code"]) == (503, "database_unavailable")
    assert "database or disk is full" in error["message"]
    assert _kept(tmp_path / "files") == sorted(f"{file['id']}.jsonl" for file in known)
    assert len(known) == len(answers) - 1


class Filling(PlainBackend):
    """The disk is full from the first row on, but for `left` bytes."""

    def __init__(self, disk: Path, left: int) -> None:
        super().__init__()
        self.disk, self.left = disk, left

    async def rewrite_row(self, row: Demonstration | BadRow, options: RewriteOptions) -> dict[str, Any]:
        if not self.seen:
            _fill(self.disk, self.left)
        return await super().rewrite_row(row, options)


@pytest.mark.parametrize("left", [0, 3 * 2**19, 3 * 2**20], ids=["nothing", "some shards", "the shards"])
async def test_a_job_waits_for_room_and_loses_no_row(
    disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, left: int
) -> None:
    monkeypatch.setattr("server.jobs_runtime._LOOK_S", 0.5)
    monkeypatch.setitem(RETRY, "max_attempts", 2)
    monkeypatch.setitem(RETRY, "interval_seconds", 0.1)
    async with _service(disk / "state", Filling(disk, left)) as (client, _), asyncio.timeout(120):
        file_id = (await client.post("/v1/files", content=_lines(20), headers=RAW)).json()["id"]
        job = (await client.post("/v1/jobs", json={"kind": "rewrite", "input_file": file_id})).json()
        while caplog.text.count("No space left on device") + caplog.text.count("disk is full") < 6:
            await asyncio.sleep(0.05)
        half = [name for name in _kept(disk / "state" / "jobs") if "unfinished" in name]
        waiting = (await client.get(f"/v1/jobs/{job['id']}")).json()
        (disk / "filler").unlink()
        assert (await client.get(f"/v1/jobs/{job['id']}/events")).status_code == 200
        ended = (await client.get(f"/v1/jobs/{job['id']}")).json()
        made = (await client.get(f"/v1/files/{ended['output_file']}/content")).text.splitlines()
    assert half == []
    assert (waiting["status"], waiting["error"]) in [("in_progress", None), ("finalizing", None)]
    records = [json.loads(line) for line in made]
    assert ended["request_counts"] == {"total": 20, "completed": len(records), "failed": 0}
    assert [record["source"]["question"] for record in records] == [f"{n}?" for n in range(len(records))]
    assert {record["status"] for record in records} == {"rewritten"}
    # It fails where room came just when its failure was about to be written down.
    assert (ended["status"], ended["error"]) in [("completed", None), ("failed", REASON)]
    assert len(records) == 20 or ended["status"] == "failed"


async def test_a_job_whose_end_can_be_written_down_fails_with_the_reason(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A shard that is just being written may take the database's room for a moment: then the job is begun again.
    monkeypatch.setattr("server.jobs_runtime._LOOK_S", 0.5)
    monkeypatch.setitem(RETRY, "max_attempts", 2)
    monkeypatch.setitem(RETRY, "interval_seconds", 0.1)
    async with _service(disk / "state", Filling(disk, 2**16)) as (client, _), asyncio.timeout(120):
        file_id = (await client.post("/v1/files", content=_lines(20), headers=RAW)).json()["id"]
        job = (await client.post("/v1/jobs", json={"kind": "rewrite", "input_file": file_id})).json()
        assert (await client.get(f"/v1/jobs/{job['id']}/events")).status_code == 200
        ended = (await client.get(f"/v1/jobs/{job['id']}")).json()
        made = (await client.get(f"/v1/files/{ended['output_file']}/content")).text.splitlines()
    assert (ended["status"], ended["error"]) == ("failed", REASON)
    assert ended["request_counts"]["completed"] == len(made) == 0
    assert _kept(disk / "state" / "jobs") == []


def test_an_input_that_cannot_be_cut_leaves_its_room(disk: Path) -> None:
    (disk / "rows.jsonl").write_bytes(_lines(40))
    filler = _fill(disk, 2**20)
    folder = JobFolder(disk / "job")
    with pytest.raises(OSError, match="No space left on device"):
        folder.split(disk / "rows.jsonl", 2, lambda: False)
    left = _kept(folder.path)
    filler.unlink()
    assert left == []
    assert folder.split(disk / "rows.jsonl", 2, lambda: False).rows == 40


async def test_a_full_disk_is_not_held_against_the_row_that_met_it(disk: Path) -> None:
    (disk / "rows.jsonl").write_bytes(_lines(2))
    folder = JobFolder(disk / "job")
    folder.split(disk / "rows.jsonl", 2, lambda: False)
    folder.journal(0).write_text('{"start": true}\n{"start": true}')  # so its rows go alone
    runner = ShardRunner(PlainBackend(), Lane(2, Admission(100, 1)))
    for _ in range(4):  # somebody else makes room for the beginning of a row, never for its record
        filler = _fill(disk, 2**13)
        with pytest.raises(OSError, match="No space left on device"):
            await runner.run(folder, 0, RewriteOptions())
        filler.unlink()
    assert await runner.run(folder, 0, RewriteOptions()) == (2, 0)
    assert _kept(folder.path) == ["000000.jsonl", "000000.jsonl", "plan.json"]


def test_a_store_in_a_folder_keeps_no_half_of_a_file(tmp_path: Path, disk: Path) -> None:
    (tmp_path / "whole").write_bytes(b"x" * 2**21)
    storage = UrlStorage(f"file://{disk}")
    _fill(disk, 2**20)
    with pytest.raises(OSError, match="No space left on device"):
        storage.put(tmp_path / "whole", "name")
    assert _kept(disk) == ["filler"]
    assert (tmp_path / "whole").exists()


def test_an_output_that_has_no_room_leaves_no_half_of_it(disk: Path) -> None:
    output = disk / "out.parquet"
    rows = [parse_row({"question": "?", "answer": os.urandom(LONG).hex()}, line=n, number=n) for n in range(1, 21)]

    def write(left: int) -> Path:
        with RecordWriter(output, source=None, settings={}, resume=True) as writer:
            for row in writer.remaining(rows):
                writer.write(plain_record(row))
            return _fill(disk, left)

    with pytest.raises(OutputFileError, match="No space left on device"):
        write(2**20)
    assert _kept(disk) == ["filler", "out.parquet.journal.jsonl", "out.parquet.run.json"]
    (disk / "filler").unlink()
    write(2**23)
    assert pq.read_metadata(output).num_rows == 20
