"""Rows that are finished before an earlier one: on disk until their turn comes, so that a kill loses none of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from agent.demonstrations import BadRow, Demonstration
from agent.disk import write_whole
from agent.exceptions import OutputFailedError
from agent.records import file_row, made_of, read_file_row

_SPENT_LINES = 1024  # lines of rows that have been written since; more of them, and the file is made anew


class EarlyRows:
    """A file of finished rows beside an output that is written in order.

    Its size is bounded by the rows that wait, not by those that passed through. A row that cannot be read back, or was
    made from other input, is as if it were not there, and so made again.

    Args:
        path: the file; it is there only while a run is unfinished.
        before_row: called before a row is kept, where the file may not be open yet; may raise OSError.

    Attributes:
        on_kept: called after a row is kept.
    """

    def __init__(self, path: Path, before_row: Callable[[], None] = lambda: None) -> None:
        self.path = path
        self.on_kept: Callable[[], None] = lambda: None
        self._before_row = before_row
        self._lines: dict[str, bytes] = {}
        self._file: IO[bytes] | None = None
        self._spent = 0

    def open(self, *, resume: bool) -> None:
        """Read the rows that an earlier run has left, or forget them. Raises OSError."""
        self._lines = _read(self.path) if resume and self.path.exists() else {}
        self._renew()

    def keep(self, row: Mapping[str, Any]) -> None:
        """Add a finished row; once this returns, it survives a kill of the process.

        Raises:
            OutputFailedError: the disk is full or failing.
        """
        line = f"{json.dumps(file_row(row), ensure_ascii=False, allow_nan=False)}\n".encode()
        try:
            self._before_row()
            assert self._file is not None, "EarlyRows is used before it is open"
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise failed_write(self.path, error) from None
        self._lines[row["id"]] = line
        self.on_kept()

    @property
    def waiting(self) -> int:
        """Number of rows that wait."""
        return len(self._lines)

    def find(self, row: Demonstration | BadRow) -> dict[str, Any] | None:
        """What was finished of an input row, in the form of `file_row`; None when that is nothing."""
        line = self._lines.get(row.id)
        finished: dict[str, Any] | None = None if line is None else json.loads(line)
        return finished if finished and made_of(finished, row) else None

    def drop(self, row_id: str) -> None:
        """Forget a row: it is in the output. Raises OSError."""
        if self._lines.pop(row_id, None) is not None:
            self._spent += 1
            if self._spent > _SPENT_LINES + len(self._lines):
                self._renew()

    def close(self) -> None:
        """Close the file, and remove it when no row waits in it."""
        if self._file is not None:
            self._file.close()
            self._file = None
            if not self._lines:
                self.path.unlink(missing_ok=True)

    def _renew(self) -> None:
        """Make the file anew, of the rows that wait."""
        if self._file is not None:
            self._file.close()
        write_whole(self.path, b"".join(self._lines.values()))
        self._file = self.path.open("ab")
        self._spent = 0


def failed_write(path: Path, error: OSError) -> OutputFailedError:
    """What to raise where an output that was open cannot be written any further."""
    return OutputFailedError(f"{path}: cannot be written: {error.strerror or error}; resume when it can")


def _read(path: Path) -> dict[str, bytes]:
    lines = {}
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n") and (row := read_file_row(line)):
                lines[row["id"]] = line
    return lines
