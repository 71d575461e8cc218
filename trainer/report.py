"""What a caller may show while a training runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["train", "eval"]


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a caller may show after each step.

    Attributes:
        step, steps: done and planned optimiser steps.
        kind: `train`, `eval`, or `warm start`, whose steps are counted apart.
        metrics: names as in the history.
    """

    step: int
    steps: int
    kind: Kind | Literal["warm start"]
    metrics: dict[str, float]

    def told(self, names: Sequence[str]) -> str:
        """Those of the metrics that were measured, as one line."""
        return ", ".join(f"{name} {self.metrics[name]:.3f}" for name in names if name in self.metrics)
