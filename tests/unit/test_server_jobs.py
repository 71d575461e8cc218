"""Jobs: none is left without an end or without the rows that were done."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from dbos import DBOS

from agent.demonstrations import BadRow, Demonstration
from server.app import create_app
from server.auth import Keys
from server.exceptions import StartError, UnavailableError, UnknownNameError
from server.jobs import Job, JobStore
from server.jobs_files import JobFolder, StoppedError
from server.jobs_runtime import JobRuntime
from server.jobs_steps import RETRY, JobFailedError, failure_of
from server.schemas import RewriteOptions
from server.state import StateLock
from server.work import DurableWork
from tests.asgi import client_of, client_to
from tests.plain_backend import PlainBackend
from tests.quick_dbos import quick_dbos
from tests.stored_job import job_settings, stored_job

RAW = {"Content-Type": "application/x-ndjson"}


class Gone(PlainBackend):
    """Its adapter is gone when a row asks for GONE."""

    async def rewrite_row(self, row: Demonstration | BadRow, options: RewriteOptions) -> dict[str, Any]:
        if isinstance(row, Demonstration) and row.question == "GONE":
            raise UnknownNameError("adapter 'math@1' is gone", code="unknown_adapter")
        return await super().rewrite_row(row, options)


@asynccontextmanager
async def _service(tmp_path: Path, backend: PlainBackend) -> AsyncIterator[httpx.AsyncClient]:
    settings = job_settings(tmp_path)
    async with client_of(create_app(backend, settings, Keys(), DurableWork(settings))) as client:
        yield client


async def _upload(client: httpx.AsyncClient, *rows: str) -> str:
    return str((await client.post("/v1/files", content="\n".join(rows).encode(), headers=RAW)).json()["id"])


async def _until_ended(client: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    assert (await client.get(f"/v1/jobs/{job_id}/events")).status_code == 200
    return dict((await client.get(f"/v1/jobs/{job_id}")).json())


def _locking(rewrite_row: Callable[..., Any], database: sqlite3.Connection) -> Callable[..., Any]:
    """The same, after which nobody else writes to the database."""

    async def locking(*arguments: Any) -> Any:
        if not database.in_transaction:
            database.execute("BEGIN IMMEDIATE")
        return await rewrite_row(*arguments)

    return locking


async def _workflow_status() -> str:
    (workflow,) = await DBOS.list_workflows_async(load_input=False, load_output=False)
    return str(workflow.status)


async def test_rows_that_were_done_are_kept_when_the_job_fails(tmp_path: Path) -> None:
    rows = [json.dumps({"question": f"{n}?", "answer": f"a{n}"}) for n in range(4)]
    rows[1] = '{"question": "no answer"}'
    async with _service(tmp_path, Gone()) as client:
        file_id = await _upload(client, *rows, '{"question": "GONE", "answer": "x"}')
        job = (await client.post("/v1/jobs", json={"kind": "rewrite", "input_file": file_id})).json()
        ended = await _until_ended(client, job["id"])
        made = (await client.get(f"/v1/files/{ended['output_file']}/content")).text.splitlines()
        failed = (await client.get(f"/v1/files/{ended['error_file']}/content")).text.splitlines()
    assert (ended["status"], ended["error"]) == ("failed", "adapter 'math@1' is gone")
    assert [json.loads(row)["completion"][0]["content"] for row in made] == ["A0", "", "A2", "A3"]
    assert failed == [made[1]]
    assert list((tmp_path / "state" / "jobs").iterdir()) == []


async def test_a_job_that_cannot_keep_its_rows_has_failed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(*_: Any) -> None:
        raise RuntimeError("nobody expects this")

    monkeypatch.setattr("server.jobs_files.JobFolder.assemble", defect)
    async with _service(tmp_path, Gone()) as client:
        row = '{"question": "1?", "answer": "1"}'
        file_id = await _upload(client, row, row, '{"question": "GONE", "answer": "x"}')
        job = (await client.post("/v1/jobs", json={"kind": "rewrite", "input_file": file_id})).json()
        ended = await _until_ended(client, job["id"])
    assert (ended["status"], ended["output_file"]) == ("failed", None)


async def test_an_input_on_which_the_service_dies_again_and_again_fails_its_job(tmp_path: Path) -> None:
    settings = job_settings(tmp_path)
    work = DurableWork(settings)
    job = stored_job(work, tmp_path)
    folder = settings.state_folder / "jobs" / job.id
    source = tmp_path / "many"
    source.write_bytes(b'{"question": "1 + 1?", "answer": "2"}\n' * 300)
    killed = (
        "import os, sys; from pathlib import Path; from server.jobs_files import JobFolder; "
        "JobFolder(Path(sys.argv[1])).split(Path(sys.argv[2]), 100, lambda: os.kill(os.getpid(), 9))"
    )
    for _ in range(3):
        with pytest.raises(StoppedError):  # a stop is no death
            JobFolder(folder).split(source, 100, lambda: True)
        assert subprocess.run([sys.executable, "-c", killed, folder, source], check=False).returncode == -9
    async with client_of(create_app(PlainBackend(), settings, Keys(), work)) as client:
        ended = await _until_ended(client, job.id)
    assert ended["status"] == "failed"
    assert ended["error"].startswith(f"{job.input_file}: the service died 3 times while it cut this file into rows")
    assert not folder.exists()


async def test_a_job_that_cannot_be_queued_for_any_reason_is_told_and_begun_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def defect(*_: Any) -> None:
        raise RuntimeError("nobody expects this")

    monkeypatch.setattr("server.jobs_runtime._LOOK_S", 0.1)
    async with _service(tmp_path, PlainBackend()) as client:
        file_id = await _upload(client, '{"question": "1?", "answer": "one"}')
        with monkeypatch.context() as broken:
            broken.setattr(JobRuntime, "_enqueue", defect)
            made = await client.post("/v1/jobs", json={"kind": "rewrite", "input_file": file_id})
        assert made.status_code == 200
        assert (await _until_ended(client, made.json()["id"]))["status"] == "completed"


async def test_a_client_that_goes_away_while_its_job_is_made_leaves_one_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, begun, go = JobStore.create, threading.Event(), threading.Event()

    def slow(self: JobStore, *arguments: Any, **options: Any) -> Job:
        begun.set()
        go.wait()
        return create(self, *arguments, **options)

    monkeypatch.setattr(JobStore, "create", slow)
    async with _service(tmp_path, PlainBackend()) as client:
        file_id = await _upload(client, '{"question": "1?", "answer": "one"}')
        asked = asyncio.create_task(client.post("/v1/jobs", json={"kind": "rewrite", "input_file": file_id}))
        await asyncio.to_thread(begun.wait)
        asked.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asked
        go.set()
        async with asyncio.timeout(60):
            while not (jobs := (await client.get("/v1/jobs")).json()["data"]):
                await asyncio.sleep(0.05)
            assert (await _until_ended(client, jobs[0]["id"]))["status"] == "completed"


async def test_what_nobody_expected_fails_a_job_and_tells_no_secret() -> None:
    async def defect() -> None:
        raise RuntimeError("the password is hunter2")

    async def failed() -> None:
        raise JobFailedError("no rows")

    assert await failure_of(defect()) == "the service failed on this job; its log says why"
    assert await failure_of(failed()) == "no rows"
    assert await failure_of(asyncio.sleep(0)) is None


async def test_a_job_whose_end_could_not_be_written_down_is_begun_again_and_completes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.state._BUSY_S", 0)
    monkeypatch.setattr("server.jobs_runtime._LOOK_S", 0.5)
    monkeypatch.setitem(RETRY, "max_attempts", 2)
    monkeypatch.setitem(RETRY, "interval_seconds", 0.01)
    async with _service(tmp_path, PlainBackend()) as client, asyncio.timeout(60):
        file_id = await _upload(client, *(json.dumps({"question": f"{n}?", "answer": f"a{n}"}) for n in range(3)))
        other = sqlite3.connect(tmp_path / "state" / "service.sqlite", isolation_level=None)
        monkeypatch.setattr(PlainBackend, "rewrite_row", _locking(PlainBackend.rewrite_row, other))
        job = (await client.post("/v1/jobs", json={"kind": "rewrite", "input_file": file_id})).json()
        while await _workflow_status() != "ERROR":
            await asyncio.sleep(0.05)
        stuck = (await client.get(f"/v1/jobs/{job['id']}")).json()
        monkeypatch.setitem(RETRY, "max_attempts", 8)  # now its own writers alone are in each other's way
        other.execute("ROLLBACK")
        other.close()
        ended = await _until_ended(client, job["id"])
        made = (await client.get(f"/v1/files/{ended['output_file']}/content")).text.splitlines()
    assert (stuck["status"], stuck["request_counts"]["completed"]) == ("in_progress", 0)
    assert (ended["status"], ended["error"]) == ("completed", None)
    assert ended["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
    assert [json.loads(row)["completion"][0]["content"] for row in made] == ["A0", "A1", "A2"]


async def test_a_job_that_could_not_be_handed_to_its_queue_is_done_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.jobs_runtime._LOOK_S", 0.2)
    settings = job_settings(tmp_path)
    work = DurableWork(settings)
    async with client_of(create_app(PlainBackend(), settings, Keys(), work)) as client, asyncio.timeout(60):
        written = await asyncio.to_thread(stored_job, work, tmp_path)  # as by a process that was killed right then
        workflows = sqlite3.connect(tmp_path / "state" / "workflows.sqlite", isolation_level=None)
        workflows.execute("ALTER TABLE workflow_status RENAME TO away")
        taken = await client.post("/v1/jobs", json={"kind": "rewrite", "input_file": written.input_file})
        workflows.execute("ALTER TABLE away RENAME TO workflow_status")
        workflows.close()
        ended = [await _until_ended(client, job_id) for job_id in (written.id, taken.json()["id"])]
    assert (taken.status_code, taken.json()["status"]) == (200, "validating")
    assert [job["status"] for job in ended] == ["completed", "completed"]


class Full(PlainBackend):
    """The disk is full, until `room`, for the row that asks for LATE."""

    room = False

    async def rewrite_row(self, row: Demonstration | BadRow, options: RewriteOptions) -> dict[str, Any]:
        if isinstance(row, Demonstration) and row.question == "LATE" and not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return await super().rewrite_row(row, options)


async def test_a_job_that_was_given_up_and_then_done_has_all_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows so far were kept, and then its failure could not be written down."""
    monkeypatch.setattr("server.jobs_runtime._LOOK_S", 0.2)
    monkeypatch.setitem(RETRY, "max_attempts", 2)
    monkeypatch.setitem(RETRY, "interval_seconds", 0.01)
    backend = Full()

    def away(*_: Any, **__: Any) -> None:
        raise UnavailableError("the database is away", code="database_unavailable", retry_after_s=1)

    monkeypatch.setattr(JobStore, "fail", away)
    async with _service(tmp_path, backend) as client, asyncio.timeout(60):
        questions = ["0?", "1?", "2?", "LATE"]
        file_id = await _upload(client, *(json.dumps({"question": q, "answer": f"a{q}"}) for q in questions))
        job = (await client.post("/v1/jobs", json={"kind": "rewrite", "input_file": file_id})).json()
        while not (partial := [f for f in (await client.get("/v1/files")).json()["data"] if f["purpose"] == "output"]):
            await asyncio.sleep(0.02)
        backend.room = True
        ended = await _until_ended(client, job["id"])
        kept = (await client.get(f"/v1/files/{ended['output_file']}")).json()
        content = (await client.get(f"/v1/files/{ended['output_file']}/content")).content
    assert (partial[0]["id"], partial[0]["rows"]) == (kept["id"], 2)
    assert (ended["status"], ended["request_counts"]["completed"]) == ("completed", 4)
    assert [json.loads(line)["source"]["question"] for line in content.splitlines()] == questions
    assert (kept["rows"], kept["bytes"]) == (4, len(content))
    assert kept["sha256"] == hashlib.sha256(content).hexdigest()


async def test_a_job_whose_results_are_lost_is_not_called_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assemble = JobFolder.assemble

    def losing(self: JobFolder, name: str, shards: int) -> tuple[Path, int]:
        (self.path / "output" / "000001.jsonl").unlink(missing_ok=True)
        return assemble(self, name, shards)

    monkeypatch.setattr(JobFolder, "assemble", losing)
    async with _service(tmp_path, PlainBackend()) as client, asyncio.timeout(60):
        file_id = await _upload(client, *(json.dumps({"question": f"{n}?", "answer": "a"}) for n in range(4)))
        job = (await client.post("/v1/jobs", json={"kind": "rewrite", "input_file": file_id})).json()
        ended = await _until_ended(client, job["id"])
        kept = (await client.get(f"/v1/files/{ended['output_file']}")).json()
    assert ended["status"] == "failed"
    assert ended["error"] == "its working folder has the results of 2 rows only: start the job again"
    assert kept["rows"] == 2


async def test_a_stop_keeps_the_folder_until_no_thread_writes_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assemble, begun, go = JobFolder.assemble, threading.Event(), threading.Event()

    def slow(self: JobFolder, name: str, shards: int) -> tuple[Path, int]:
        begun.set()
        go.wait(30)
        return assemble(self, name, shards)

    destroy, written = DBOS.destroy, list[bool]()

    def noting(**options: Any) -> None:
        written.append(go.is_set())
        destroy(**options)

    monkeypatch.setattr(JobFolder, "assemble", slow)
    monkeypatch.setattr(DBOS, "destroy", noting)
    work = DurableWork(settings := job_settings(tmp_path))
    app = create_app(PlainBackend(), settings, Keys(), work)
    running = app.router.lifespan_context(app)
    with quick_dbos():
        await running.__aenter__()
    async with client_to(app) as client:
        file_id = await _upload(client, '{"question": "1?", "answer": "one"}')
        await client.post("/v1/jobs", json={"kind": "rewrite", "input_file": file_id})
        await asyncio.to_thread(begun.wait)
    work.begin_stop()  # as at a signal
    stopping = asyncio.create_task(running.__aexit__(None, None, None))
    await asyncio.sleep(0.5)
    with pytest.raises(StartError, match="in use"):
        StateLock(settings.state_folder)
    go.set()
    await stopping
    assert written == [True], "DBOS has gone, and the folder goes next, while a thread writes"
    StateLock(settings.state_folder).release()
