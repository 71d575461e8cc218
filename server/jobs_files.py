"""The working folder of a job: its input cut into shards, the result of each, and the two files they end up in.

Rows of the input are numbered, and their ids kept apart, over the whole file; so the file is read once, in order, and
every shard says all that its rows are. What is complete has its final name and is never written again.

    plan.json            how many shards and rows
    settings             a hash of those that the job began with
    splits               a byte for each time that cutting was begun and not ended, as by a kill
    input/000000.jsonl   one line a row: the source row with its id and line, or why it cannot be read
    output/000000.jsonl  one record a row, in the same order; there when the shard is done
    failed/000000.jsonl  those of them with status error; not there where there are none
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from agent.demonstrations import BadRow, Demonstration
from agent.disk import replacing, sync, write_whole
from agent.exceptions import InputFileError
from agent.intake import read_rows
from agent.pieces import count_lines
from agent.records import file_row
from agent.rows import parse_row

Row = Demonstration | BadRow

_SHARD_BYTES = 8 * 2**20  # of rows in one shard, so that a few shards fit into memory whatever the rows are
_PLAN = "plan.json"
_SETTINGS, _SPLITS = "settings", "splits"
_TRIES = 3  # of cutting, each of which the process did not survive
_STOP_EVERY = 256
_CHUNK = 1 << 20


class StoppedError(Exception):
    """The process is ending; the work will be done by the next one."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a job's input is cut: number of shards, and of rows in all."""

    shards: int
    rows: int


class JobFolder:
    """The files of one job under `folder`. Methods block."""

    def __init__(self, folder: Path) -> None:
        self.path = folder

    def split(self, source: Path, shard_rows: int, stopped: Callable[[], bool]) -> Plan:
        """Cut the rows of `source` into shards; what was cut before is kept.

        Args:
            source: as `agent.intake.read_rows` takes it.
            shard_rows: rows of a shard at most.
            stopped: asked now and then whether to give up.

        Raises:
            InputFileError: the source cannot be read, or the process has died each time that it was.
            StoppedError: `stopped` said so.
        """
        if (plan := self.plan()) is not None:
            return plan
        noted = self.path / _SPLITS
        begun = noted.stat().st_size if noted.exists() else 0
        if begun >= _TRIES:
            raise InputFileError(
                f"{source}: the service died {begun} times while it cut this file into rows, as for want of memory: "
                "send it in parts, or with smaller rows"
            )
        try:
            self._begin_anew()
            _resize(noted, begun + 1)
            plan = self._cut_into_shards(source, shard_rows, stopped)
        except OSError:
            self.remove()  # a full disk needs the room
            raise
        except BaseException:  # whatever ended this, it was no kill
            _resize(noted, begun)
            raise
        noted.unlink()
        return plan

    def _begin_anew(self) -> None:
        """Remove what was cut before a kill."""
        for name in ("input", "output", "failed"):
            shutil.rmtree(self.path / name, ignore_errors=True)
            (self.path / name).mkdir(parents=True)

    def _cut_into_shards(self, source: Path, shard_rows: int, stopped: Callable[[], bool]) -> Plan:
        shards = rows = 0
        for shard in _cut(read_rows(source), shard_rows, stopped):
            self._at("input", shards).write_bytes(b"".join(shard))
            shards, rows = shards + 1, rows + len(shard)
        os.sync()  # once for all of them: thousands of single ones take minutes
        plan = Plan(shards, rows)
        write_whole(self.path / _PLAN, json.dumps(asdict(plan)))
        return plan

    def plan(self) -> Plan | None:
        """How the input was cut; None when it is not, or not yet to its end."""
        done = self.path / _PLAN
        return Plan(**json.loads(done.read_text())) if done.exists() else None

    def begin_with(self, settings: str) -> None:
        """Note a hash of the settings; what was noted before stays."""
        if self.settings() is None:
            write_whole(self.path / _SETTINGS, settings)

    def settings(self) -> str | None:
        """What `begin_with` has noted; None for jobs that an earlier release began."""
        noted = self.path / _SETTINGS
        return noted.read_text() if noted.exists() else None

    def rows(self, shard: int) -> list[Row]:
        """The rows of one shard."""
        with self._at("input", shard).open("rb") as lines:
            return [_decode(line) for line in lines]

    def result(self, shard: int) -> tuple[int, int] | None:
        """Rows of a finished shard that are no errors, and that are; None when it is not finished."""
        output = self._at("output", shard)
        if not output.exists():
            return None
        errors = self._at("failed", shard)
        failed = count_lines(errors) if errors.exists() else 0
        return count_lines(output) - failed, failed

    def commit(self, shard: int, records: Iterable[dict[str, Any]]) -> tuple[int, int]:
        """Make the records of a shard durable; returns as `result`."""
        lines: list[bytes] = []
        failed: list[bytes] = []
        for record in records:
            line = f"{json.dumps(file_row(record), ensure_ascii=False, allow_nan=False)}\n".encode()
            lines.append(line)
            if record["status"] == "error":
                failed.append(line)
        errors = self._at("failed", shard)
        if failed:
            write_whole(errors, b"".join(failed))
        elif errors.exists():  # of a process that was killed right here, and did the rows otherwise
            errors.unlink()
            sync(errors.parent)
        write_whole(self._at("output", shard), b"".join(lines))
        return len(lines) - len(failed), len(failed)

    def assemble(self, name: str, shards: int) -> tuple[Path, int]:
        """The finished ones of the first `shards` shards as one file: `output` or `failed`; and its rows."""
        target = self.path / f"{name}.jsonl"
        rows = 0
        with replacing(target) as unfinished, unfinished.open("wb") as file:
            for shard in range(shards):
                part = self._at(name, shard)
                if not (part.exists() and self._at("output", shard).exists()):
                    continue  # no row failed, or the job was cancelled
                with part.open("rb") as lines:
                    while chunk := lines.read(_CHUNK):
                        file.write(chunk)
                        rows += chunk.count(b"\n")
        return target, rows

    def journal(self, shard: int) -> Path:
        """What was begun of a shard that is not finished."""
        return self.path / f"{shard:06}.journal"

    def remove(self) -> None:
        """The job is over."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _at(self, name: str, shard: int) -> Path:
        return self.path / name / f"{shard:06}.jsonl"


def _cut(rows: Iterable[Row], shard_rows: int, stopped: Callable[[], bool]) -> Iterator[list[bytes]]:
    shard: list[bytes] = []
    size = 0
    for number, row in enumerate(rows, 1):
        if number % _STOP_EVERY == 0 and stopped():
            raise StoppedError
        line = _encode(row, number)
        if shard and (len(shard) == shard_rows or size + len(line) > _SHARD_BYTES):
            yield shard
            shard, size = [], 0
        shard.append(line)
        size += len(line)
    if shard:
        yield shard


def _encode(row: Row, number: int) -> bytes:
    if isinstance(row, Demonstration):
        value: dict[str, Any] = {"id": row.id, "line": row.line, "number": number, "row": row.source}
    else:
        value = {"bad": asdict(row)}
    return f"{json.dumps(value)}\n".encode()


def _decode(line: bytes) -> Row:
    value = json.loads(line)
    if "bad" in value:
        return BadRow(**value["bad"])
    return replace(parse_row(value["row"], line=value["line"], number=value["number"]), id=value["id"])


def _resize(path: Path, size: int) -> None:
    """Make a file of this size, on disk."""
    with path.open("ab") as file:
        file.truncate(size)
        os.fsync(file.fileno())
    sync(path.parent)
