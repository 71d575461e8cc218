"""The best adapter so far, by its score on the held-out rows: kept beside the checkpoints until it is published."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

from peft import PeftModel

from agent.disk import commit, sync_tree
from trainer.checkpoints import STATE, checkpoints, remove_whole
from trainer.exceptions import DivergedError


class BestAdapter:
    """Keeps the adapter with the highest score as `best-<step>`.

    Args:
        folder: of the training.

    Attributes:
        metrics: what was measured of it, with its `step`; empty before the first.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.metrics: dict[str, float] = {}

    @property
    def step(self) -> int:
        """Optimiser steps that its weights have seen."""
        return int(self.metrics["step"])

    @property
    def path(self) -> Path:
        """Where PEFT saved it."""
        return self._folder / _name(self.step)

    def consider(self, step: int, metrics: Mapping[str, float], model: PeftModel) -> None:
        """Keep the adapter of `step` if it scores higher; the one before goes when no checkpoint needs it.

        Raises:
            DivergedError: the score is no finite number, which none is higher or lower than.
        """
        if not math.isfinite(metrics["score"]):
            raise DivergedError(
                f"step {step}: the score on the held-out rows is {metrics['score']}, no finite number; check the base "
                'model\'s weights, or start again in another output with engine.dtype = "float32"'
            )
        if self.metrics and metrics["score"] <= self.metrics["score"]:
            return
        self.metrics = {**metrics, "step": step}
        unfinished = self._folder / ".best-unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        remove_whole(self.path)
        model.save_pretrained(str(unfinished))
        sync_tree(unfinished)
        commit(unfinished, self.path)

    def forget_others(self) -> None:
        """Delete those before, but for what a checkpoint that is there names: training may go on from it."""
        states = [json.loads((checkpoint / STATE).read_text()) for checkpoint in checkpoints(self._folder)]
        needed = {self.path.name, *(_name(int(state["best"]["step"])) for state in states)}
        for path in self._folder.glob("best-*"):
            if path.name not in needed:
                remove_whole(path)


def _name(step: int) -> str:
    return f"best-{step}"
