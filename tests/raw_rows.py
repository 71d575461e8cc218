"""Files of demonstrations as their bytes, and what was read of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from agent.demonstrations import BadRow, Demonstration

GOOD = b'{"question": "2+2?", "answer": "4"}'
Write = Callable[..., Path]


def write_rows(folder: Path, data: bytes, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def kinds(rows: list[Demonstration | BadRow]) -> str:
    return "".join("b" if isinstance(row, BadRow) else "g" for row in rows)
