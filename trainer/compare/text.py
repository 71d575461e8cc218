"""Tables and figures as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.compare.methods import BASE
from trainer.compare.results import Figure

NOTHING = "–"
_SHARED = ("shape", "steps", "seeds")


@dataclass(frozen=True, slots=True)
class TextTable:
    """A table: what its columns are called, its rows, and what a reader must know of it."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""


def without_shared(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], note: str) -> TextTable:
    """A table without the columns in which all rows say the same of how they were trained: the note says it once."""
    shared = {}
    for i, column in enumerate(columns):
        values = {row[i] for row in rows if row[0] != BASE}
        if column in _SHARED and len(values) == 1:
            shared[i] = f"{column} {values.pop()}"
    told = f"All rows: {', '.join(shared.values())}. " if shared else ""
    kept = [i for i in range(len(columns)) if i not in shared]
    return TextTable(
        title, tuple(columns[i] for i in kept), [tuple(row[i] for i in kept) for row in rows], f"{told}{note}".strip()
    )


def markdown(table: TextTable) -> str:
    """The table as GitHub's Markdown."""
    lines = [_markdown_row(table.columns), "|" + "---|" * len(table.columns), *map(_markdown_row, table.rows)]
    return "\n".join(lines)


def _markdown_row(cells: Sequence[str]) -> str:
    escaped = (cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def figure(found: Figure, *, scale: float = 1.0, unit: str = "", signed: bool = False, digits: int = 2) -> str:
    """A figure with its interval."""
    if found.value is None:
        return NOTHING
    sign = "+" if signed else ""
    told = f"{scale * found.value:{sign}.{digits}f}{unit}"
    if found.low is None or found.high is None:
        return told
    return f"{told} [{scale * found.low:.{digits}f}, {scale * found.high:.{digits}f}]"
