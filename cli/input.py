"""The argument IN: a path, or `-` for standard input."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from agent.demonstrations import BadRow, Demonstration
from agent.intake import on_hub, read_rows, read_stream
from cli.console import say

STANDARD_INPUT = Path("-")


def open_rows(source: Path, limit: int | None) -> Iterator[Demonstration | BadRow]:
    """The rows of `source`, at most `limit` of them. Raises InputFileError at the first."""
    if source == STANDARD_INPUT:
        # Not `sys.stdin`: a thread may still wait for it when the process ends, which would then abort.
        return read_stream(open(0, "rb", closefd=False), limit=limit)
    return read_rows(source, limit=limit)


def is_pipe(source: Path) -> bool:
    """Whether `source` can be read only once: standard input, a named pipe, what `<(command)` stands for."""
    return source == STANDARD_INPUT or source.is_fifo() or source.is_socket()


def count_rows(source: Path, limit: int | None) -> int | None:
    """How many rows there will be, None for a pipe or the hub; none at all is said, since it is seldom what was meant.

    Reads everything: little beside the work on the rows, and an unreadable file is told before any work. A data set of
    the hub, which would be fetched twice, shows its first row only.

    Raises:
        InputFileError: missing, unreadable, or not what it claims to be.
    """
    if is_pipe(source):
        return None
    fetched = on_hub(source)
    count = sum(1 for _ in read_rows(source, limit=1 if fetched else limit))
    if not count:
        say(f"{source} holds no rows")
    return None if fetched else count
