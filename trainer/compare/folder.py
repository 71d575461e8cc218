"""The folder of a comparison on disk: whose it is, which units are done, and that one process works in it.

A unit is done once its folder holds `done`, written last and by rename; what is there without it is gone on with.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from agent.disk import write_whole
from trainer.compare.plan import Unit
from trainer.exceptions import CheckpointError, TrainingSettingsError
from trainer.lock import lock

CLAIM, DONE = "compare.json", "done"


@contextmanager
def claimed(output: Path, described: Mapping[str, Any]) -> Iterator[None]:
    """Within: `output` is there, is of this comparison, and is written by this process alone.

    Args:
        output: made if it is not there.
        described: what all its units share.

    Raises:
        TrainingSettingsError: it is a file, holds other things, or cannot be written.
        FolderInUseError: another process writes it.
        CheckpointError: it belongs to another comparison; says in what that differs.
    """
    with _opened(output) as file:
        _compare_or_write(file, described, output)
        yield


def _opened(output: Path) -> TextIO:
    """The claim on `output`, locked for this process until it is closed."""
    claim = output / CLAIM
    try:
        output.mkdir(parents=True, exist_ok=True)
        if not claim.exists() and any(output.iterdir()):
            raise TrainingSettingsError(f"{output} holds other files already; choose a folder of its own")
        file = claim.open("a+", encoding="utf-8")
    except (FileExistsError, NotADirectoryError):
        raise TrainingSettingsError(f"{output} is a file; a comparison is written to a folder") from None
    except PermissionError as error:
        raise TrainingSettingsError(f"{output} cannot be written: {error.strerror}") from error
    lock(file, output)
    return file


def _compare_or_write(file: TextIO, described: Mapping[str, Any], output: Path) -> None:
    file.seek(0)
    text, now = file.read(), json.loads(json.dumps(described))
    try:
        known = json.loads(text) if text else None
    except ValueError:  # killed while it was written, so before the first unit
        known = None
    if known is None:
        file.truncate(0)
        file.write(f"{json.dumps(now, indent=2)}\n")
        file.flush()
        os.fsync(file.fileno())
    elif different := [name for name in now if now[name] != known.get(name)]:
        raise CheckpointError(
            f"{output} belongs to another comparison: it was made with other {' and '.join(different)}; restore them, "
            "or choose another folder"
        )


def is_done(output: Path, unit: Unit) -> bool:
    """Whether a unit needs not be done again: an exam where it asked all tasks that it should."""
    asked = _asked(output, unit)
    return asked is not None and unit.tasks.items() <= asked.items()


def has_result(output: Path, unit: Unit) -> bool:
    """Whether a unit was done once: an exam may lack tasks that came later, but none may have had other rows."""
    asked = _asked(output, unit)
    return asked is not None and all(asked.get(name, rows) == rows for name, rows in unit.tasks.items())


def _asked(output: Path, unit: Unit) -> dict[str, str] | None:
    """What tells the rows of each task apart that a unit asked; None of one that was never done."""
    try:
        asked: dict[str, str] = json.loads((output / unit.folder / DONE).read_text()).get("tasks", {})
    except FileNotFoundError:
        return None
    return asked


def mark_done(output: Path, unit: Unit) -> None:
    """Note that all of a unit is on the disk."""
    text = json.dumps({"key": unit.key, "tasks": dict(unit.tasks)})
    write_whole(output / unit.folder / DONE, f"{text}\n")
