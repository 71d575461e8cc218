"""Rows from the input through some worker into the output, with progress and a summary."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.demonstrations import BadRow, Demonstration
from agent.early import EarlyRows
from agent.output import RecordWriter
from agent.records import file_row
from agent.usage import Usage
from cli.console import counting
from cli.input import count_rows, is_pipe, open_rows
from cli.summary import Summary


@dataclass(frozen=True, slots=True)
class Job:
    """Which file becomes which: `output` None means standard output."""

    source: Path
    output: Path | None
    limit: int | None = None
    resume: bool = False
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class OpenJob:
    """The rows that are left to do, and where they go."""

    rows: Iterator[Demonstration | BadRow]
    total: int | None
    summary: Summary
    write: Callable[[dict[str, Any]], None]
    early: EarlyRows | None = None

    async def drive(self, results: AsyncGenerator[tuple[dict[str, Any], Usage], None]) -> Summary:
        """Write every result as it comes."""
        early = self.early

        def done() -> int:
            return self.summary.rows + (early.waiting if early else 0)

        with counting("rewritten", self.total, before=done()) as show:
            if early:
                early.on_kept = lambda: show(done())
            async with aclosing(results):
                async for row, usage in results:
                    self.write(row)
                    self.summary.add(row, usage)
                    show(done())
        return self.summary


@contextmanager
def open_job(job: Job, settings: dict[str, Any]) -> Iterator[OpenJob]:
    """Open input and output; left without an exception, the output is complete.

    Args:
        job: the files.
        settings: what else the rows depend on; resuming with others is refused.

    Raises:
        InputFileError, OutputFileError, ResumeError: as reader and writer do.
    """
    total = count_rows(job.source, job.limit)
    rows = open_rows(job.source, job.limit)
    summary = Summary()
    if job.output is None:
        yield OpenJob(rows, total, summary, _print_row)
        return
    source = None if is_pipe(job.source) else job.source
    with RecordWriter(
        job.output, source=source, settings=settings, resume=job.resume, overwrite=job.overwrite
    ) as writer:
        for row in writer.written_rows():
            summary.add(row, Usage())
        summary.start()
        yield OpenJob(writer.remaining(rows), total, summary, writer.write, writer.early)


def _print_row(row: dict[str, Any]) -> None:
    print(json.dumps(file_row(row), ensure_ascii=False), flush=True)
