"""Figures of all points of a comparison in every resample of the rows; see `trainer.compare.numbers`."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from trainer.compare.finished import Finished
from trainer.compare.numbers import POINTS, TaskRows, Values, forgetting, gain, ratios, relative_forgetting


@dataclass(frozen=True, slots=True)
class Drawn:
    """Figures of all points in every resample, (D, P); the base model is not among the points."""

    gain: Values
    lenient: Values
    forgetting: Values
    relative: Values
    kl: Values
    losses: Values
    changes: dict[str, Values]

    def less(self, own: int, other: int) -> tuple[Values, dict[str, Values]]:
        """What point `own` forgets more than `other`, (D,), and by how much each of its tasks changed more."""
        changes = {name: table[:, own] - table[:, other] for name, table in self.changes.items()}
        return self.forgetting[:, own] - self.forgetting[:, other], changes


def averaged(task: TaskRows, points: Sequence[Sequence[int]]) -> TaskRows:
    """The base model and each point, a row's metric averaged over seeds; runs are models 1, 2, ... of `task`."""
    groups = [[0], *([i + 1 for i in members] for members in points)]
    values, weights = (
        np.stack([table[group].mean(axis=0) for group in groups]) for table in (task.values_MN, task.weights_MN)
    )
    return replace(task, values_MN=values, weights_MN=weights)


def initial_losses(points: Sequence[Sequence[Finished]], draws: int, seed: int) -> Values:
    """The base model's loss on each point's rows in every resample, (D, P); rows that a point has not weigh nothing."""
    rows = sorted({loss.row for members in points for one in members for loss in one.losses})
    if not rows:
        return np.empty((1 + draws, len(points)))
    columns = {row: number for number, row in enumerate(rows)}
    nats_PN, tokens_PN = np.zeros((2, len(points), len(rows)))
    for number, members in enumerate(points):
        for loss in (loss for one in members for loss in one.losses):
            nats_PN[number, columns[loss.row]] += loss.nats
            tokens_PN[number, columns[loss.row]] += loss.tokens
    return ratios(nats_PN, tokens_PN, draws, [seed, zlib.crc32(b"initial loss")])


def draw(tasks: Sequence[TaskRows], scored: dict[str, Values], losses: Values) -> Drawn:
    """The figures, from the scores of the base model and all points, (D, 1 + P), by task."""
    shape = next(iter(scored.values())).shape
    asked, lenient, moved = (
        [scored[task.name] for task in tasks if task.kind == kind] for kind in ("accuracy", "lenient", "divergence")
    )
    kept = [task for task in tasks if task.kind == "retention"]
    shares = [scored[task.name] for task in kept if task.in_points]
    nothing = np.full(shape, np.nan)
    relative = [(scored[task.name], task.higher_is_better) for task in kept]
    changes = {
        task.name: (POINTS if task.in_points else 1.0) * (scored[task.name] - scored[task.name][:, :1])
        for task in tasks
    }
    return Drawn(
        gain=(gain(asked) if asked else nothing)[:, 1:],
        lenient=(gain(lenient) if lenient else nothing)[:, 1:],
        forgetting=(forgetting(shares) if shares else nothing)[:, 1:],
        relative=(relative_forgetting(relative) if relative else nothing)[:, 1:],
        kl=(np.mean(moved, axis=0) if moved else nothing)[:, 1:],
        losses=losses,
        changes={name: change[:, 1:] for name, change in changes.items()},
    )
