"""Gain, forgetting, and what of it chance alone could be: pure functions over the rows of exams.

Everything is computed for D resamples of the rows at once, the first of which is the rows themselves. A resample draws
the rows of each task with replacement, the same rows for every model: a paired bootstrap (Efron and Tibshirani, 1993),
with percentile intervals. Arrays carry their shape: D resamples, M models (the base model first), N rows.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.compare.results import Figure, RowsKind
from trainer.exam.benchmarks import Aggregation

Values = npt.NDArray[np.float64]

POINTS = 100.0
# Drawn and summed up together; bounds memory to as many times the rows of a task.
_DRAWS_A_PART = 1000


@dataclass(frozen=True, slots=True)
class TaskRows:
    """The rows of one task that every model has been asked.

    Attributes:
        values_MN, weights_MN: a row's metric as `sum(values) / sum(weights)` reads it; see `trainer.exam.statistics`.
        aggregation: how the ratio becomes the score.
        metric: what the score is called.
    """

    name: str
    kind: RowsKind
    values_MN: Values
    weights_MN: Values
    aggregation: Aggregation = "mean"
    higher_is_better: bool = True
    metric: str = ""

    @property
    def in_points(self) -> bool:
        """Whether its score is a share, of which differences are points."""
        return self.aggregation == "mean" and self.higher_is_better


def scores(task: TaskRows, draws: int, seed: int) -> Values:
    """The score of every model on the rows and on `draws` resamples of them, (1 + draws, M)."""
    ratio = ratios(task.values_MN, task.weights_MN, draws, [seed, zlib.crc32(task.name.encode())])
    if task.aggregation == "perplexity":
        return np.exp(-ratio)
    return -ratio / np.log(2) if task.aggregation == "bits" else ratio


def ratios(values_MN: Values, weights_MN: Values, draws: int, seed: Sequence[int]) -> Values:
    """`sum(values) / sum(weights)` on the rows and on `draws` resamples of them, (1 + draws, M); NaN without weight."""
    rows = values_MN.shape[1]
    share = np.full(rows, 1 / rows)
    random = np.random.default_rng(seed)

    def of(counts_DN: npt.NDArray[Any]) -> Values:
        weights = counts_DN @ weights_MN.T
        undefined: Values = np.full(weights.shape, np.nan)
        return np.asarray(np.divide(counts_DN @ values_MN.T, weights, out=undefined, where=weights != 0))

    sizes = [min(_DRAWS_A_PART, draws - first) for first in range(0, draws, _DRAWS_A_PART)]
    resampled = (of(random.multinomial(rows, share, size=size)) for size in sizes)
    return np.concatenate([of(np.ones((1, rows))), *resampled])


def gain(scored: Sequence[Values]) -> Values:
    """G = acc(theta) - acc(pi0) in points, mean over the task's files, (D, M); `scored` has each file's (D, M)."""
    return np.asarray(POINTS * np.mean([score - score[:, :1] for score in scored], axis=0))


def forgetting(scored: Sequence[Values]) -> Values:
    """F = score(pi0) - score(theta) in points, mean over benchmarks whose score is a share, (D, M)."""
    return 0.0 - gain(scored)  # and no negative zero


def relative_forgetting(scored: Sequence[tuple[Values, bool]]) -> Values:
    """What is lost as a share of the base model's score, mean over benchmarks, (D, M).

    Args:
        scored: each benchmark's (D, M) and whether higher is better; perplexity counts by how much it rose.
    """
    losses = []
    for score, higher_is_better in scored:
        base = score[:, :1]
        lost = base - score if higher_is_better else score - base
        losses.append(np.divide(lost, base, out=np.full_like(lost, np.nan), where=base > 0))
    return np.asarray(np.mean(losses, axis=0))


def interval(figure_D: Values, level: float) -> Figure:
    """A figure with its bootstrap interval, of its values in every resample, (D,); one that is not finite is none."""
    value = float(figure_D[0]) if np.isfinite(figure_D[0]) else None
    defined = figure_D[1:][np.isfinite(figure_D[1:])]
    undefined = round(1.0 - defined.size / max(1, figure_D.size - 1), 4)
    if value is None or not defined.size:
        return Figure(value=value, low=None, high=None, undefined=undefined)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Figure(value=value, low=float(low), high=float(high), undefined=undefined)


def pareto_front(gains: Sequence[float], forgettings: Sequence[float]) -> list[int]:
    """Indices of the points than which no other gains at least as much and forgets at most as much, one of it more."""
    points = list(zip(gains, forgettings, strict=True))
    return [
        i
        for i, (own_gain, own_lost) in enumerate(points)
        if not any(
            other_gain >= own_gain and other_lost <= own_lost and (other_gain, other_lost) != (own_gain, own_lost)
            for other_gain, other_lost in points
        )
    ]


def at_budget(budgets: Sequence[float], figures_KD: Values, start: float, budget: float) -> Values:
    """A figure after exactly `budget` was spent, (D,): linear between the trainings around it.

    Args:
        budgets: what each of K trainings of growing length spent, ascending, none below `start`.
        figures_KD: its figure, which is 0 for the base model.
        start: what is spent before the first update; until then the model is the base model.
        budget: at most the last of `budgets`.
    """
    if budget <= start:
        return np.zeros(figures_KD.shape[1])
    spent = [start, *budgets]
    above = next(k for k in range(1, len(spent)) if spent[k] >= budget)
    share = (budget - spent[above - 1]) / (spent[above] - spent[above - 1])
    before = figures_KD[above - 2] if above > 1 else np.zeros(figures_KD.shape[1])
    return np.asarray(before + share * (figures_KD[above - 1] - before))


def forgetting_at(gains: Sequence[float], forgettings: Sequence[float], wanted: float) -> float:
    """The least that is forgotten at a gain of `wanted`, linear between neighbouring learning rates.

    Args:
        gains, forgettings: by ascending learning rate; the base model, which gains and forgets 0, is the first.
        wanted: the gain; from 0 to the largest of `gains`.
    """
    found = [lost for gained, lost in zip(gains, forgettings, strict=True) if gained == wanted]
    for i in range(len(gains) - 1):
        if (gains[i] - wanted) * (gains[i + 1] - wanted) < 0:
            share = (wanted - gains[i]) / (gains[i + 1] - gains[i])
            found.append(forgettings[i] + share * (forgettings[i + 1] - forgettings[i]))
    return min(found)


@dataclass(frozen=True, slots=True)
class AtGain:
    """Two methods at the largest gain that both reach.

    Attributes:
        gain: that gain, points.
        own, reference: what each forgets there, points.
    """

    gain: float
    own: float
    reference: float

    @property
    def saved(self) -> float:
        """1 - F / F_reference; NaN where the reference forgets nothing."""
        return 1 - self.own / self.reference if self.reference > 0 else float("nan")


def match_gain(
    own: tuple[Sequence[float], Sequence[float]], reference: tuple[Sequence[float], Sequence[float]]
) -> AtGain | None:
    """Compare two methods at the largest gain that both reach.

    Args:
        own, reference: gains and forgettings of each, as `forgetting_at` takes them.

    Returns:
        None where one of the two gains nothing.
    """
    wanted = min(max(own[0]), max(reference[0]))
    return AtGain(wanted, forgetting_at(*own, wanted), forgetting_at(*reference, wanted)) if wanted > 0 else None
