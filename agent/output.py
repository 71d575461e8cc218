"""Writes output rows to JSON lines or Parquet so that a killed run loses nothing and can go on where it stopped.

Beside `OUT` lies `OUT.run.json`: which input and settings the rows belong to; it stays when the run is over.
Parquet cannot be appended to: its rows collect in `OUT.journal.jsonl` until the run is over. Rows that are finished
before an earlier one may wait in `OUT.early.jsonl`.
Not here: what a row contains (`agent.records`).
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from agent.demonstrations import BadRow, Demonstration
from agent.disk import replacing, write_whole
from agent.early import EarlyRows, failed_write
from agent.exceptions import OutputFileError, ResumeError
from agent.intake import input_identity, overlap
from agent.records import file_row, made_of, read_file_row

if TYPE_CHECKING:
    import pyarrow as pa

_CHUNK = 1 << 16
_BATCH_ROWS = 512


class RecordWriter:
    """The output file of one run, as a context manager: left without an exception, the file is complete.

    Example:
        with RecordWriter(Path("out.jsonl"), source=path, settings={"strategy": "default"}, resume=True) as writer:
            for row in writer.remaining(read_rows(path)):
                writer.write(row_of(row))

    Args:
        path: `.parquet` for Parquet, anything else for JSON lines.
        source: the input file or folder; None for a pipe.
        settings: what else the rows depend on: strategy, model, adapter, sampling.
        resume: go on with the rows that are there, if there are any.
        overwrite: replace the rows that are there, once there is the first one to put in their place.

    Attributes:
        done: rows found in the output by `remaining`.
        early: where finished rows may wait for an earlier one; `write` takes them out.
    """

    def __init__(
        self,
        path: Path,
        *,
        source: Path | None,
        settings: Mapping[str, Any],
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.path = path
        self.done = 0
        self._source = source
        self._settings = settings
        self._resume = resume
        self._overwrite = overwrite
        self._is_parquet = path.suffix == ".parquet"
        self._journal = path.with_name(f"{path.name}.journal.jsonl") if self._is_parquet else path
        self.early = EarlyRows(path.with_name(f"{path.name}.early.jsonl"), before_row=self._begin)
        self._file: IO[bytes] | None = None
        self._to_begin: dict[str, Any] | None = None  # what is written to the sidecar when the old rows go
        self._made_journal = False

    def __enter__(self) -> RecordWriter:
        """Open the output.

        Raises:
            OutputFileError: it is the input or lies in it, it exists and neither resuming nor overwriting was
                asked for, another process writes it, or it cannot be written.
            ResumeError: the rows that are there were made from other input or with other settings.
        """
        if self._source and (problem := overlap(self._source, self.path)):
            raise OutputFileError(f"{self.path}: {problem}: choose another output")
        run = {"input": input_identity(self._source) if self._source else "-", **self._settings}
        try:
            self._open(json.loads(json.dumps(run)))
        except OSError as error:
            self._close()
            if isinstance(error, OutputFileError):
                raise
            raise OutputFileError(f"{self.path}: cannot be written: {error.strerror or error}") from None
        except ResumeError:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._begin()
                if self._is_parquet:
                    self._write_parquet()
        except OSError as failure:
            raise failed_write(self.path, failure) from None
        finally:
            self._close()

    def remaining(self, rows: Iterable[Demonstration | BadRow]) -> Iterator[Demonstration | BadRow]:
        """The rows of the input that are not in the output yet.

        Raises:
            ResumeError: the rows in the output are not made from the first rows of the input.
        """
        rows = iter(rows)
        for written in self.written_rows():
            self.done += 1
            self.early.drop(written["id"])
            row = next(rows, None)
            if row is None:
                raise ResumeError(f"{self.path}: has row {self.done}, the input has {self.done - 1}: raise the limit")
            if row.id != written["id"]:
                raise ResumeError(
                    f"{self.path}: row {self.done} has id {written['id']!r}, in the input it is {row.id!r}: "
                    "resume with the same input, or write another output"
                )
            if not made_of(written, row):
                raise ResumeError(
                    f"{self.path}: row {self.done} was made from another row than the input's {row.id!r}: "
                    "resume with the same input, or write another output"
                )
        return rows

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row; once this returns, it survives a kill of the process.

        Raises:
            OutputFailedError: the disk is full or failing.
        """
        assert self._file is not None, "RecordWriter is used outside of its with block"
        line = json.dumps(file_row(row), ensure_ascii=False, allow_nan=False)
        try:
            self._begin()
            self._file.write(f"{line}\n".encode())
            self._file.flush()
            self.early.drop(row["id"])
        except OSError as error:
            raise failed_write(self.path, error) from None

    def written_rows(self) -> Iterator[dict[str, Any]]:
        """The rows in the output so far, in the form of `file_row`.

        Raises:
            ResumeError: a line is not an output row.
        """
        if self._to_begin is not None:
            return
        with self._journal.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if (row := read_file_row(line)) is None:
                    raise ResumeError(f"{self._journal}: line {number} is not an output row: write another output")
                yield row

    def _open(self, run: dict[str, Any]) -> None:
        if self.path.is_dir():
            raise OutputFileError(f"{self.path}: is a folder: name a file")
        exists = any(path.exists() and path.stat().st_size for path in (self.path, self._journal, self.early.path))
        if exists and not (self._resume or self._overwrite):
            raise OutputFileError(f"{self.path}: exists already: resume it, overwrite it, or choose another output")
        go_on = exists and self._resume
        if go_on:
            refuse_other_run(self.path, run)
            if self._is_parquet and self.path.exists():
                self._remove_empty_journal()
                if not self._journal.exists():
                    self._reopen_parquet()
        made_journal = not self._journal.exists()
        self._file = self._journal.open("a+b")
        self._lock(self._file)
        if go_on:
            _cut_partial_line(self._file)
            self.early.open(resume=True)
            return
        self._to_begin = run
        self._made_journal = made_journal
        if not exists:
            self._begin()

    def _lock(self, journal: IO[bytes]) -> None:
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputFileError(f"{self.path}: another process is writing it") from None

    def _remove_empty_journal(self) -> None:
        """Remove what a run that was to replace a finished Parquet file has left, killed before it had a row to put in
        its place; `_begin` would have removed the Parquet file."""
        if self._journal.exists():
            with self._journal.open("r+b") as journal:
                self._lock(journal)
                if not os.fstat(journal.fileno()).st_size:
                    self._journal.unlink()

    def _begin(self) -> None:
        """Forget the rows of before, if that is still to do. Raises OSError.

        The rows go before what they were made from: a kill in between leaves none of them under the wrong settings.
        """
        if self._to_begin is not None and self._file is not None:
            run, self._to_begin = self._to_begin, None
            self._file.truncate(0)
            if self._is_parquet:
                self.path.unlink(missing_ok=True)
            self.early.open(resume=False)
            write_run(self.path, run)

    def _write_parquet(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = _schema()
        rows = self.written_rows()
        with replacing(self.path) as unfinished, pq.ParquetWriter(unfinished, schema) as parquet:
            while batch := list(islice(rows, _BATCH_ROWS)):
                columns = [{**row, "source": json.dumps(row["source"], ensure_ascii=False)} for row in batch]
                parquet.write_batch(pa.RecordBatch.from_pylist(columns, schema=schema))
        self._journal.unlink()

    def _reopen_parquet(self) -> None:
        """Bring the journal of a finished Parquet output back. Raises ResumeError when it is none."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with (
                replacing(self._journal) as unfinished,
                unfinished.open("w", encoding="utf-8") as journal,
                pq.ParquetFile(self.path) as parquet,
            ):
                for batch in parquet.iter_batches(batch_size=_BATCH_ROWS):
                    for row in batch.to_pylist():
                        row["source"] = json.loads(row["source"])
                        journal.write(f"{json.dumps(row, ensure_ascii=False)}\n")
        except OSError:
            raise
        except (pa.ArrowException, ValueError, TypeError, KeyError) as error:
            raise ResumeError(f"{self.path}: cannot be resumed, it is no Parquet output of ours: {error}") from None

    def _close(self) -> None:
        """Close both files. Raises OutputFailedError when what a failed write has left cannot be written now either."""
        file, self._file = self._file, None
        try:
            with file or nullcontext():
                self.early.close()
                if file and self._to_begin is not None and self._made_journal:
                    self._journal.unlink()  # beside a Parquet file that stays, it would stand for its rows
        except OSError as error:
            raise failed_write(self.path, error) from None


def write_run(path: Path, run: Mapping[str, Any]) -> None:
    """Write down beside an output which input and settings its rows belong to, whole or not at all. Raises OSError."""
    write_whole(_run_file(path), f"{json.dumps(run, indent=2)}\n")


def _run_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.run.json")


def refuse_other_run(path: Path, run: Mapping[str, Any]) -> None:
    """Compare a run, as JSON, with the one that made the rows of an output.

    Raises:
        ResumeError: it is another, or nothing says which it was.
    """
    try:
        before = dict(json.loads(_run_file(path).read_text()))
    except (OSError, ValueError, TypeError, RecursionError):
        problem = f"{_run_file(path).name} is not readable; overwrite it or write another output"
        raise ResumeError(f"{path}: cannot be resumed, {problem}") from None
    for name in sorted({*before, *run}):
        if before.get(name) != run.get(name):
            change = f"{name} was {before.get(name)!r} and is now {run.get(name)!r}"
            raise ResumeError(f"{path}: cannot be resumed: {change}; restore it or write another output")


def _schema() -> pa.Schema:
    import pyarrow as pa

    turns = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    check = pa.struct([("name", pa.string()), ("passed", pa.bool_()), ("detail", pa.string())])
    figures = pa.struct([("nll", pa.float64()), ("p95", pa.float64()), ("tokens", pa.int64())])
    return pa.schema(
        [
            ("id", pa.string()),
            ("prompt", turns),
            ("completion", turns),
            ("status", pa.string()),
            ("proposer", pa.string()),
            ("attempts", pa.int64()),
            ("gate", pa.struct([("passed", pa.bool_()), ("checks", pa.list_(check))])),
            ("mismatch", pa.struct([("expert", figures), ("target", figures)])),
            ("adapter", pa.string()),
            ("model", pa.string()),
            ("error", pa.struct([("line", pa.int64()), ("field", pa.string()), ("message", pa.string())])),
            ("source", pa.string()),
        ]
    )


def _cut_partial_line(file: IO[bytes]) -> None:
    """Cut off a last line without its newline, and stand at the end."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - _CHUNK)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    file.truncate(end)
    file.seek(end)
