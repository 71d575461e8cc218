"""A shard whose row kills the whole process, and one that is stopped: real processes, killed for real."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.demonstrations import Demonstration
from agent.engine.urgency import is_bulk
from server.admission import Admission
from server.jobs_files import JobFolder, Row, StoppedError
from server.jobs_shard import Lane, ShardRunner
from server.schemas import RewriteOptions
from tests.plain_backend import PlainBackend

PROGRAM = """
import asyncio, sys
from pathlib import Path
from server.admission import Admission
from server.jobs_files import JobFolder
from server.jobs_shard import Lane, ShardRunner
from server.schemas import RewriteOptions
from tests.plain_backend import PlainBackend

async def main():
    runner = ShardRunner(PlainBackend(kills=True), Lane(4, Admission(100, 1)))
    await runner.run(JobFolder(Path(sys.argv[1])), 0, RewriteOptions())

asyncio.run(main())
"""


def _folder(tmp_path: Path, questions: list[str]) -> JobFolder:
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(json.dumps({"question": q, "answer": str(n)}) for n, q in enumerate(questions)))
    folder = JobFolder(tmp_path / "job")
    folder.split(source, 100, lambda: False)
    return folder


def test_the_row_that_kills_the_process_is_found_and_the_others_finish(tmp_path: Path) -> None:
    folder = _folder(tmp_path, ["a", "b", "POISON", "d", "e"])
    deaths = 0
    while (ended := subprocess.run([sys.executable, "-c", PROGRAM, str(folder.path)])).returncode != 0:
        assert ended.returncode == -signal.SIGKILL
        deaths += 1
        assert deaths <= 5, "twice together, three times alone"
    assert folder.result(0) == (4, 1)
    path, rows = folder.assemble("output", 1)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == 5
    assert [record["source"]["answer"] for record in records] == ["0", "1", "2", "3", "4"]
    assert [record["status"] for record in records].index("error") == 2
    assert "died on this row" in records[2]["error"]["message"]


async def test_a_stop_is_not_held_against_the_rows(tmp_path: Path) -> None:
    folder = _folder(tmp_path, [f"{n}?" for n in range(10)])
    for _ in range(4):
        backend = PlainBackend(pause_s=3600)
        task = asyncio.create_task(ShardRunner(backend, Lane(2, Admission(100, 1))).run(folder, 0, RewriteOptions()))
        while len(backend.seen) < 2:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    backend = PlainBackend(pause_s=0.01)
    assert await ShardRunner(backend, Lane(2, Admission(100, 1))).run(folder, 0, RewriteOptions()) == (10, 0)
    assert backend.at_once == 2, "the rows went one at a time, as after a kill"


class NotingBackend(PlainBackend):
    """Notes of every row that an engine would see whether it would take it for bulk work."""

    def __init__(self) -> None:
        super().__init__()
        self.bulk: list[bool] = []

    async def rewrite_row(self, row: Row, options: RewriteOptions) -> dict[str, Any]:
        if isinstance(row, Demonstration):
            self.bulk.append(is_bulk())
        return await super().rewrite_row(row, options)


async def test_rows_of_jobs_are_bulk_work_also_those_that_go_alone(tmp_path: Path) -> None:
    backend = NotingBackend()
    folder = _folder(tmp_path, ["a", "POISON"])
    assert await ShardRunner(backend, Lane(2, Admission(100, 1))).run(folder, 0, RewriteOptions()) == (1, 1)
    assert backend.bulk == [True] * len(backend.seen)
    assert len(backend.seen) > 4
    assert not is_bulk()


async def test_a_finished_shard_is_not_done_again(tmp_path: Path) -> None:
    folder = _folder(tmp_path, ["a", "b"])
    for seen in (2, 0):
        backend = PlainBackend()
        assert await ShardRunner(backend, Lane(2, Admission(100, 1))).run(folder, 0, RewriteOptions()) == (2, 0)
        assert len(backend.seen) == seen


def test_shards_are_bounded_in_rows_and_bytes_and_a_half_cut_input_is_cut_anew(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    rows = [{"question": "x" * (5 * 2**20 if n in (3, 4) else 5), "answer": "1"} for n in range(600)]
    source.write_text("\n".join(map(json.dumps, rows)))
    folder = JobFolder(tmp_path / "job")
    asked = 0

    def stop_late() -> bool:
        nonlocal asked
        asked += 1
        return asked == 2

    with pytest.raises(StoppedError):
        folder.split(source, 100, stop_late)
    plan = folder.split(source, 100, lambda: False)
    assert plan.rows == 600
    cut = [folder.rows(shard) for shard in range(plan.shards)]
    assert [row.id for shard in cut for row in shard] == [f"row-{n + 1}" for n in range(600)]
    assert max(map(len, cut)) == 100
    assert len(cut[0]) == 4
    assert folder.split(source, 100, lambda: True) == plan
