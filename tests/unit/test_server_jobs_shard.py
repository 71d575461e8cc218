"""A shard while the service around its rows fails: what is a row's own failure, and what is none."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from agent.demonstrations import BadRow
from agent.engine import EngineInfo
from agent.exceptions import EngineClosedError, ModelError
from server.admission import Admission
from server.jobs_files import JobFolder, Row
from server.jobs_shard import Lane, ShardRunner
from server.jobs_steps import RETRY, JobFailedError, attempt
from server.schemas import RewriteOptions
from tests.plain_backend import PlainBackend


class Failing(PlainBackend):
    """Every row raises `error` while there is one."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__()
        self.error = error

    async def rewrite_row(self, row: Row, options: RewriteOptions) -> dict[str, Any]:
        if self.error is not None and not isinstance(row, BadRow):
            raise self.error
        return await super().rewrite_row(row, options)


class Broken(Failing):
    """An engine that lives on after its accelerator has broken; it is replaced after three looks."""

    looks = 0

    async def ping(self) -> EngineInfo:
        self.looks += 1
        if self.looks < 4:
            raise EngineClosedError("the engine fails on whatever it is asked")
        self.error = None
        return await super().ping()


def _folder(tmp_path: Path) -> JobFolder:
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(json.dumps({"question": f"{n}?", "answer": "a"}) for n in range(5)))
    folder = JobFolder(tmp_path / "job")
    folder.split(source, 100, lambda: False)
    return folder


def _runner(backend: PlainBackend) -> ShardRunner:
    return ShardRunner(backend, Lane(4, Admission(100, 1)))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(24, "Too many open files"), "its machine says: Too many open files"),
        (OSError("the answer comparison process does not start"), "its log says why"),
        (MemoryError(), "its log says why"),
        (ModelError("embedding model 'e5' cannot be loaded"), "embedding model 'e5' cannot be loaded"),
    ],
)
@pytest.mark.parametrize("alone", [False, True])
async def test_what_the_service_lacks_is_tried_again_and_makes_no_row_an_error(
    tmp_path: Path, error: Exception, said: str, alone: bool
) -> None:
    folder, backend = _folder(tmp_path), Failing(error)
    if alone:
        folder.journal(0).write_text('{"start": true}\n{"start": true}')
    should_retry: Any = RETRY["should_retry"]
    for _ in range(4):
        with pytest.raises(Exception, match=said) as failed:
            await attempt(_runner(backend).run, folder, 0, RewriteOptions())
        assert not isinstance(failed.value, JobFailedError)
        assert should_retry(failed.value)
    backend.error = None
    assert await _runner(backend).run(folder, 0, RewriteOptions()) == (5, 0)


async def test_rows_that_fail_with_their_engine_wait_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.jobs_shard._ENGINE_DOWN_S", 0.01)
    backend = Broken(RuntimeError("CUDA error: an illegal memory access was encountered"))
    runner = _runner(backend)
    runner._down = False  # it has answered before
    assert await runner.run(_folder(tmp_path), 0, RewriteOptions()) == (5, 0)
    assert sorted(backend.seen) == [f"{n}?" for n in range(5)]


async def test_a_row_that_fails_while_the_engine_answers_is_an_error(tmp_path: Path) -> None:
    assert await _runner(Failing(RuntimeError("hunter2"))).run(_folder(tmp_path), 0, RewriteOptions()) == (0, 5)


@pytest.mark.parametrize("alone", [False, True])
async def test_the_journal_is_written_by_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: bool) -> None:
    folder, writers = _folder(tmp_path), set[threading.Thread]()
    if alone:
        folder.journal(0).write_text('{"start": true}\n{"start": true}')
    fsync = os.fsync

    def synced(descriptor: int) -> None:
        writers.add(threading.current_thread())
        fsync(descriptor)

    monkeypatch.setattr("server.jobs_shard.os.fsync", synced)
    assert await _runner(PlainBackend()).run(folder, 0, RewriteOptions()) == (5, 0)
    assert writers
    assert threading.main_thread() not in writers


async def test_who_is_stopped_while_the_journal_is_written_leaves_no_trace_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, begun, go = _folder(tmp_path), threading.Event(), threading.Event()

    def slow(_: int) -> None:
        begun.set()
        go.wait(30)

    monkeypatch.setattr("server.jobs_shard.os.fsync", slow)
    task = asyncio.create_task(_runner(PlainBackend()).run(folder, 0, RewriteOptions()))
    await asyncio.to_thread(begun.wait)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.01)
    assert not task.done(), "a thread of it still writes"
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert folder.journal(0).read_bytes() == b""
