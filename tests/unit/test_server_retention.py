"""What is removed when its time has come, and what is kept all the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from server.exceptions import UnknownNameError
from server.files import FileStore
from server.jobs import Job, JobStore
from server.retention import Sweeper
from server.settings import DAY_S, FileSettings, RetentionSettings, ServerSettings
from server.state import Database
from server.storage import FolderStorage
from server.work_schemas import RewriteJob


@dataclass
class Store:
    files: FileStore
    jobs: JobStore
    sweeper: Sweeper
    forgotten: list[str]
    folder: Path

    def upload(self, number: int) -> str:
        """A file of one row, as an input."""
        file_id = f"file_{number:024x}"
        path = self.folder / "new"
        path.write_bytes(b'{"question": "?", "answer": "!"}\n')
        return self.files.adopt(path, file_id, "input", "a.jsonl", 1).id

    def job(self, file_id: str) -> Job:
        return self.jobs.create(RewriteJob(kind="rewrite", input_file=file_id), "", None)

    def finish(self, job: Job, number: int) -> str:
        """Give the job an output; returns its id."""
        path = self.folder / "out"
        path.write_bytes(b"{}\n")
        output = self.files.adopt(path, f"file_{number:024x}", "output", "out.jsonl", 1)
        self.jobs.finish(job.id, cancelled=False, output_file=output.id, error_file=None)
        return output.id

    def there(self, file_id: str) -> bool:
        """Whether the file is known; its bytes must be there just when it is."""
        try:
            stored = self.files.get(file_id)
        except UnknownNameError:
            assert not list((self.folder / "files").glob(f"{file_id}*"))
            return False
        assert self.files.fetch(stored, self.folder / "unused").exists()
        return True


def _store(tmp_path: Path, **days: float) -> Store:
    database = Database(ServerSettings(state=str(tmp_path)))
    retention = RetentionSettings(**days)
    files = FileStore(database, tmp_path / "files", FileSettings(), retention)
    jobs = JobStore(database, 1000, 5, retention)
    forgotten: list[str] = []

    async def forget(job_id: str) -> None:
        forgotten.append(job_id)

    return Store(files, jobs, Sweeper(files, jobs, forget, retention), forgotten, tmp_path)


async def test_an_upload_expires_unless_an_unfinished_job_reads_it(tmp_path: Path) -> None:
    store = _store(tmp_path, uploads_days=2.0)
    idle, read = store.upload(1), store.upload(2)
    created = store.files.get(idle).created_at
    expires_at = store.files.get(idle).as_dict(RetentionSettings(uploads_days=2.0))["expires_at"]
    assert expires_at == created + 2 * DAY_S
    job = store.job(read)
    assert await store.sweeper.sweep(expires_at - 1) == (0, 0)
    assert await store.sweeper.sweep(expires_at + 10) == (1, 0)
    assert (store.there(idle), store.there(read)) == (False, True)
    output = store.finish(job, 3)
    assert await store.sweeper.sweep(expires_at + 10) == (1, 0)
    assert (store.there(read), store.there(output)) == (False, True)
    assert store.jobs.get(job.id).status == "completed"


async def test_results_and_jobs_have_times_of_their_own(tmp_path: Path) -> None:
    store = _store(tmp_path, results_days=1.0, jobs_days=3.0)
    upload = store.upload(1)
    ended, unfinished = store.job(upload), store.job(upload)
    output = store.finish(ended, 2)
    finished_at = store.jobs.get(ended.id).finished_at
    assert finished_at is not None
    assert await store.sweeper.sweep(finished_at + DAY_S + 10) == (1, 0)
    assert not store.there(output)
    assert await store.sweeper.sweep(finished_at + 3 * DAY_S) == (0, 1)
    assert store.forgotten == [ended.id]
    with pytest.raises(UnknownNameError):
        store.jobs.get(ended.id)
    assert store.jobs.events(ended.id, 0, 10) == []
    assert store.jobs.get(unfinished.id).status == "validating"
    assert store.there(upload)
    assert await store.sweeper.sweep(finished_at + 10_000 * DAY_S) == (0, 0)


async def test_a_file_that_cannot_be_removed_keeps_no_other_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _store(tmp_path, uploads_days=1.0, jobs_days=1.0)
    stuck, other, read = (store.upload(number) for number in range(3))
    store.finish(store.job(read), 9)
    delete = FolderStorage.delete

    def failing(self: FolderStorage, name: str) -> None:
        if name.startswith(stuck):
            raise OSError(5, "Input/output error")
        delete(self, name)

    monkeypatch.setattr(FolderStorage, "delete", failing)
    latest = store.files.get(stuck).created_at + DAY_S + 60
    assert await store.sweeper.sweep(latest) == (2, 1)
    assert [store.there(file_id) for file_id in (stuck, other, read)] == [True, False, False]


async def test_more_than_one_batch_is_removed_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.retention._BATCH", 3)
    store = _store(tmp_path, uploads_days=1.0, jobs_days=1.0)
    uploads = [store.upload(number) for number in range(8)]
    for number, file_id in enumerate(uploads[:7]):
        store.finish(store.job(file_id), 100 + number)
    kept = store.job(uploads[7])
    latest = store.files.get(uploads[7]).created_at + DAY_S + 60
    assert await store.sweeper.sweep(latest) == (7, 7)
    assert [store.there(file_id) for file_id in uploads] == [False] * 7 + [True]
    assert store.jobs.unfinished() == [(kept.id, "rewrite")]


async def test_without_settings_everything_is_kept(tmp_path: Path) -> None:
    store = _store(tmp_path)
    upload = store.upload(1)
    store.finish(store.job(upload), 2)
    assert await store.sweeper.sweep(10**11) == (0, 0)
    assert store.files.get(upload).as_dict(RetentionSettings())["expires_at"] is None


def test_deleting_an_unfinished_job_does_nothing(tmp_path: Path) -> None:
    store = _store(tmp_path)
    job = store.job(store.upload(1))
    store.jobs.delete(job.id)
    assert store.jobs.get(job.id) == job


def test_a_job_for_a_file_that_is_gone_leaves_nothing_behind(tmp_path: Path) -> None:
    store = _store(tmp_path)
    with pytest.raises(UnknownNameError):
        store.job("file_" + "0" * 24)
    assert store.jobs.unfinished() == []
