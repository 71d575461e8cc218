"""Methods against the reference after the same was spent: steps, trained tokens, or total compute.

A method has a line for each learning rate: what its trainings of growing length spent, and what they gained and forgot.
A line that ends early, because a longer training is missing, is left out where another of its method goes on, and so is
one at a learning rate that the other method lacks: a missing unit takes one learning rate away, from both, and moves no
budget. At the budget that all other lines of both methods reach each
line gives a point, by `at_budget`; the base model and the points of a method by ascending learning rate are matched at
equal gain, by `match_gain`, in every resample of the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.compare.numbers import AtGain, Values, at_budget, interval, match_gain
from trainer.compare.results import Figure


@dataclass(frozen=True, slots=True)
class Line:
    """The trainings of one method at one learning rate, by ascending length.

    Attributes:
        rate: the learning rate.
        steps: updates of the longest.
        budgets: what each of K trainings spent.
        gains_KD, forgettings_KD: points.
        start: what is spent before the first update.
    """

    rate: float
    steps: int
    budgets: Sequence[float]
    gains_KD: Values
    forgettings_KD: Values
    start: float = 0.0


@dataclass(frozen=True, slots=True)
class Matched:
    """What a matching found; `reason` says why there is nothing.

    Attributes:
        saved_D: 1 - F / F of the reference in every resample, NaN where it is not defined.
    """

    budget: float | None
    reason: str | None = None
    gain: Figure | None = None
    own: Figure | None = None
    reference: Figure | None = None
    difference: Figure | None = None
    saved: Figure | None = None
    saved_D: Values | None = None


def match(own: Sequence[Line], reference: Sequence[Line], level: float) -> Matched:
    """Match a method with the reference.

    Args:
        own, reference: the lines of both by ascending learning rate; at least one each.
        level: of the intervals.
    """
    steps = min(max(line.steps for line in lines) for lines in (own, reference))
    own, reference = ([line for line in lines if line.steps >= steps] for lines in (own, reference))
    shared = {line.rate for line in own} & {line.rate for line in reference}
    if not shared:
        return Matched(None, "the two have no learning rate in common")
    own, reference = ([line for line in lines if line.rate in shared] for lines in (own, reference))
    budget = min(line.budgets[-1] for line in (*own, *reference))
    if np.isnan([line.forgettings_KD[0][0] for line in (*own, *reference)]).all():
        return Matched(budget, "no retention benchmark has a score in points")
    if late := [line for line in own if line.start >= budget]:
        return Matched(budget, f"its rows alone cost {late[0].start:.0f}, and the reference ends at {budget:.0f}")
    own_points, reference_points = (_points(lines, budget) for lines in (own, reference))
    found = [_at(own_points, reference_points, draw) for draw in range(own_points[0].shape[1])]
    if isinstance(found[0], str):
        return Matched(budget, found[0])
    nowhere = AtGain(float("nan"), float("nan"), float("nan"))
    matched = [nowhere if isinstance(one, str) else one for one in found]
    saved_D = np.array([one.saved for one in matched])
    return Matched(
        budget,
        gain=interval(np.array([one.gain for one in matched]), level),
        own=interval(np.array([one.own for one in matched]), level),
        reference=interval(np.array([one.reference for one in matched]), level),
        difference=interval(np.array([one.reference - one.own for one in matched]), level),
        saved=interval(saved_D, level),
        saved_D=saved_D,
    )


def _points(lines: Sequence[Line], budget: float) -> tuple[Values, Values]:
    """Gains and forgettings of each line at the budget, (L, D)."""
    gains = [at_budget(line.budgets, line.gains_KD, line.start, budget) for line in lines]
    lost = [at_budget(line.budgets, line.forgettings_KD, line.start, budget) for line in lines]
    return np.stack(gains), np.stack(lost)


def _at(own: tuple[Values, Values], reference: tuple[Values, Values], draw: int) -> AtGain | str:
    """The match in one resample, of the learning rates whose models have figures: those that did not diverge.

    Before the smallest of them comes the base model, which is what a learning rate of 0 leaves.
    """
    lines = []
    for gains_LD, forgettings_LD in (own, reference):
        known = ~np.isnan(gains_LD[:, draw] + forgettings_LD[:, draw])
        if not known.any():
            return "no model of one of the two has figures"
        lines.append(([0.0, *gains_LD[known, draw].tolist()], [0.0, *forgettings_LD[known, draw].tolist()]))
    return match_gain(*lines) or "there is no gain that both reach"
