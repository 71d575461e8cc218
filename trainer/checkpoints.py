"""The checkpoints of one training on disk: their names, which are whole, and what may go.

Not here: what is in them, which is the trainer's (`trainer.grpo`).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from trainer.exceptions import CheckpointError

STATE = "rewright_state.json"
UNFINISHED = ".staging-"

_PREFIX = "checkpoint-"


def checkpoint_name(step: int) -> str:
    """Name of the folder with the checkpoint of a step."""
    return f"{_PREFIX}{step}"


def step_of(checkpoint: Path) -> int:
    """Optimiser steps that the weights in `checkpoint` have seen."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints in `folder`, oldest first."""
    found = [path for path in folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit()]
    return sorted(found, key=step_of)


def last_checkpoint(folder: Path, steps: int) -> Path | None:
    """The checkpoint to go on from, None before the first.

    Raises:
        CheckpointError: its weights have seen more than the `steps` updates that are asked for.
    """
    saved = checkpoints(folder)
    if not saved:
        return None
    checkpoint = saved[-1]
    if (seen := step_of(checkpoint)) > steps:
        raise CheckpointError(
            f"{folder}: the checkpoint has seen {seen} updates already, and {steps} are asked for; ask for {seen} or "
            "more, or choose another output"
        )
    return checkpoint


def remove_old_checkpoints(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep`."""
    for path in checkpoints(folder)[:-keep]:
        remove_whole(path)


def remove_whole(path: Path) -> None:
    """Delete a folder of a training, if it is there: killed in between, it leaves nothing that bears the name."""
    removed = path.with_name(f"{UNFINISHED}removed-{path.name}")
    shutil.rmtree(removed, ignore_errors=True)
    if path.exists():
        path.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)


def remove_unfinished_checkpoints(folder: Path) -> None:
    """Delete what a killed run left half written, or half deleted."""
    for path in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True)
