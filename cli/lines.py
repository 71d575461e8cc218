"""JSON lines as the result of a command that is cheap to run again: no resuming, an old file is replaced."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from agent.disk import replacing
from agent.intake import overlap
from cli.exceptions import UsageError


def refuse_target(source: Path, *targets: Path | None) -> None:
    """Raises UsageError for a target that is the input itself, lies in it, has no folder, or is one."""
    for target in targets:
        if target is None:
            continue
        refuse_place(target)
        if problem := overlap(source, target):
            raise UsageError(f"{target}: {problem}: choose another output")


def refuse_place(target: Path) -> None:
    """Raises UsageError for a target that has no folder, or is one."""
    if not target.absolute().parent.is_dir():
        raise UsageError(f"{target}: there is no folder {target.absolute().parent}")
    if target.is_dir():
        raise UsageError(f"{target}: is a folder: name a file")


def refuse_parquet(target: Path | None) -> None:
    """Raises UsageError for a target whose name says Parquet, which `json_lines` does not write."""
    if target is not None and target.suffix == ".parquet":
        raise UsageError(f"{target}: these rows come as JSON lines: name it .jsonl")


@contextmanager
def json_lines(output: Path | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yields a function that writes one object a line, to standard output when `output` is None.

    A file appears whole: it takes its name when the block is left without an exception. A pipe or a device is written
    as it is.
    """
    if output is None:
        yield lambda value: print(json.dumps(value, ensure_ascii=False), flush=True)
        return
    in_place = output.exists() and not output.is_file()
    place = nullcontext(output) if in_place else replacing(output)
    with place as written, written.open("w", encoding="utf-8") as file:
        yield lambda value: print(json.dumps(value, ensure_ascii=False), file=file)
