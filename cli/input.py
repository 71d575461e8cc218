"""The argument IN: a path, or `-` for standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import cast

from agent.demonstrations import BadRow, Demonstration
from agent.intake import read_rows, read_stream

STANDARD_INPUT = Path("-")


def open_rows(source: Path, limit: int | None) -> Iterator[Demonstration | BadRow]:
    """The rows of `source`, at most `limit` of them. Raises InputFileError at the first."""
    if source == STANDARD_INPUT:
        return read_stream(cast(BufferedIOBase, sys.stdin.buffer), limit=limit)
    return read_rows(source, limit=limit)


def is_pipe(source: Path) -> bool:
    """Whether `source` can be read only once: standard input, a named pipe, what `<(command)` stands for."""
    return source == STANDARD_INPUT or (source.exists() and not source.is_file() and not source.is_dir())


def count_rows(source: Path, limit: int | None) -> int | None:
    """How many rows there will be, None for a pipe.

    Reads everything: little beside the work on the rows, and an unreadable file is told before any work.

    Raises:
        InputFileError: missing, unreadable, or not what it claims to be.
    """
    return None if is_pipe(source) else sum(1 for _ in read_rows(source, limit=limit))
