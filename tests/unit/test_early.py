"""Rows that are finished before an earlier one survive a kill."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.demonstrations import BadRow, Demonstration
from agent.early import EarlyRows
from agent.exceptions import EngineClosedError, OutputFileError
from agent.intake import read_rows
from agent.output import RecordWriter
from agent.pipeline import rewrite_rows
from agent.records import Check, Mismatch, Record, Verdict
from agent.rewriter import Rewritten
from agent.usage import Usage
from cli.output import Job, open_job

VERDICT = Verdict(True, (Check("math_answer", True, "2 = 2"),))
FIGURES = Mismatch(1.5, 6.2, 83)


class KilledError(EngineClosedError):
    """What ends a run in the middle."""


class Scripted:
    """Rewrites every row at once; told to, it dies at the first row when `others` are finished."""

    def __init__(self, others: int = 0) -> None:
        self.asked: list[str] = []
        self._left = others
        self._dies = others > 0

    async def rewrite(self, row: Demonstration) -> Rewritten:
        self.asked.append(row.id)
        if row.id == "row-1" and self._dies:
            while self._left:
                await asyncio.sleep(0)
            raise KilledError
        self._left -= 1
        return Rewritten(record(row), Usage(1, 2, 3))


def record(row: Demonstration) -> Record:
    return Record(row, "rewritten", "rewrite", f"better {row.id}", 1, VERDICT, FIGURES, FIGURES, "math@1", "m")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"question": f"{n}+1?", "answer": str(n + 1)}) + "\n" for n in range(8)))
    return path


@pytest.fixture
def early(tmp_path: Path) -> Iterator[EarlyRows]:
    rows = EarlyRows(tmp_path / "early.jsonl")
    rows.open(resume=False)
    yield rows
    rows.close()


def inputs(source: Path) -> list[Demonstration]:
    return [row for row in read_rows(source) if isinstance(row, Demonstration)]


def rows_of(source: Path) -> list[dict[str, Any]]:
    return [record(row).as_dict() for row in inputs(source)]


async def drive(rewriter: Scripted, writer: RecordWriter, source: Path) -> None:
    rows: Iterator[Demonstration | BadRow] = writer.remaining(read_rows(source))
    results: AsyncGenerator[tuple[dict[str, Any], Usage], None] = rewrite_rows(
        rewriter,  # type: ignore[arg-type]
        rows,
        model="m",
        concurrency=8,
        early=writer.early,
    )
    async with aclosing(results):
        async for row, _ in results:
            writer.write(row)


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
async def test_a_killed_run_makes_no_finished_row_again(tmp_path: Path, source: Path, name: str) -> None:
    with pytest.raises(KilledError), RecordWriter(tmp_path / name, source=source, settings={}) as writer:
        await drive(Scripted(others=7), writer, source)
    with pytest.raises(OutputFileError, match="exists already"):
        RecordWriter(tmp_path / name, source=source, settings={}).__enter__()
    again = Scripted()
    with RecordWriter(tmp_path / name, source=source, settings={}, resume=True) as writer:
        await drive(again, writer, source)
    assert again.asked == ["row-1"]
    with RecordWriter(tmp_path / f"whole-{name}", source=source, settings={}) as whole:
        await drive(Scripted(), whole, source)
    assert (tmp_path / name).read_bytes() == (tmp_path / f"whole-{name}").read_bytes()
    assert list(tmp_path.glob("*early*")) == []


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
async def test_finished_rows_are_found_where_the_output_is_gone(tmp_path: Path, source: Path, name: str) -> None:
    with pytest.raises(KilledError), RecordWriter(tmp_path / name, source=source, settings={}) as writer:
        await drive(Scripted(others=7), writer, source)
    for file in (name, f"{name}.journal.jsonl"):
        (tmp_path / file).unlink(missing_ok=True)
    again = Scripted()
    with RecordWriter(tmp_path / name, source=source, settings={}, resume=True) as writer:
        await drive(again, writer, source)
    assert again.asked == ["row-1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", name, f"{name}.run.json"]


async def test_progress_counts_the_rows_that_wait(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cli.console._LOG_EVERY_S", 0.0)
    job = Job(source, tmp_path / "out.jsonl")

    async def driven(job: Job, rewriter: Scripted) -> None:
        with open_job(job, {}) as opened:
            results = rewrite_rows(rewriter, opened.rows, model="m", concurrency=8, early=opened.early)  # type: ignore[arg-type]
            await opened.drive(results)

    with pytest.raises(KilledError):
        await driven(job, Scripted(others=7))
    assert [line.split(",")[0] for line in capsys.readouterr().err.splitlines()] == [
        f"rewritten: {n} of 8 rows" for n in range(1, 8)
    ]
    await driven(replace(job, resume=True), Scripted())
    assert [line.split(",")[0] for line in capsys.readouterr().err.splitlines()] == ["rewritten: 8 of 8 rows"]


def test_rows_wait_until_they_are_dropped(early: EarlyRows, source: Path) -> None:
    first, second, *_ = inputs(source)
    early.keep(record(first).as_dict())
    early.keep(record(second).as_dict())
    early.drop("row-1")
    assert early.find(first) is None
    found = early.find(second)
    assert found is not None
    assert found["completion"] == [{"role": "assistant", "content": "better row-2"}]
    assert (found["adapter"], found["error"]) == ("math@1", {"line": 0, "field": "", "message": ""})


def test_lines_that_are_no_rows_are_forgotten(tmp_path: Path, source: Path) -> None:
    path = tmp_path / "early.jsonl"
    first, second, third, *_ = rows_of(source)
    early = EarlyRows(path)
    early.open(resume=False)
    for row in (first, second, third):
        early.keep(row)
    early.close()
    whole, broken, cut = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"\0\n" + whole + broken.replace(b'"status"', b'"stat"') + b"[" * 100_000 + b"\n" + cut[:-9])
    early.open(resume=True)
    assert [bool(early.find(row)) for row in inputs(source)[:3]] == [True, False, False]
    early.close()


async def test_a_row_that_was_finished_from_other_input_is_made_again(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(KilledError), RecordWriter(out, source=None, settings={}) as writer:
        await drive(Scripted(others=7), writer, source)
    source.write_text(source.read_text().replace("4+1?", "4 and 1?"))
    again = Scripted()
    with RecordWriter(out, source=None, settings={}, resume=True) as writer:
        await drive(again, writer, source)
    assert again.asked == ["row-1", "row-5"]
    assert json.loads(out.read_text().splitlines()[4])["source"]["question"] == "4 and 1?"


def test_a_new_run_forgets_what_an_earlier_one_left(tmp_path: Path, source: Path) -> None:
    early = EarlyRows(tmp_path / "early.jsonl")
    early.open(resume=False)
    early.keep(rows_of(source)[0])
    early.close()
    early.open(resume=False)
    assert early.find(inputs(source)[0]) is None
    early.close()


def test_the_file_does_not_grow_with_the_rows_that_pass_through(early: EarlyRows, source: Path) -> None:
    first = inputs(source)[0]
    row = record(first).as_dict()
    for number in range(3000):
        early.keep(row | {"id": f"row-{number}"})
        if number >= 10:
            early.drop(f"row-{number - 10}")
    assert len(early.path.read_bytes().splitlines()) < 2000
    assert [n for n in range(3000) if early.find(replace(first, id=f"row-{n}"))] == list(range(2990, 3000))
