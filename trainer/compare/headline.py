"""The sentences that come first in a report, computed from its figures: a cheap baseline that wins is told first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.compare.methods import METHODS, REFERENCE
from trainer.compare.numbers import Values, interval
from trainer.compare.results import Figure, Point, TaskFacts, initial_losses, near_floor
from trainer.compare.samples import LENIENT

_SAME_GAIN = 0.02  # of the largest: nearer to it, a gain counts as the same


@dataclass(frozen=True, slots=True)
class Standing:
    """How a method stands against the reference after the same steps.

    Attributes:
        is_cheap: whether it needs no trained rewriter.
        steps: updates after which it is compared.
        gain: where it is compared with the reference: the largest that both reach, so its own.
        saved_D: 1 - F / F of the reference in every resample, NaN where the reference forgets nothing.
        difference: F of the reference - F, points.
    """

    method: str
    shape: str
    is_cheap: bool
    steps: int
    gain: float
    saved_D: Values
    difference: Figure

    @property
    def saved(self) -> float:
        return float(self.saved_D[0])


def headline(
    standings: Sequence[Standing],
    points: Sequence[Point],
    tasks: Sequence[TaskFacts] = (),
    *,
    failures: int,
    level: float = 0.95,
) -> str:
    """What a reader must know first.

    Args:
        standings: the methods that could be matched with the reference.
        points: all points, for their initial losses.
        tasks: what the base model knows of them.
        failures: units that are missing.
        level: of intervals.
    """
    said = [*_retention(standings, level), *_losses(points)]
    if near_floor(tasks, points):
        said = [_floor(tasks), *_losses(points), *_retention(standings, level)]
    if failures:
        said.append(f"{failures} units failed or were left out, and are missing here.")
    return " ".join(said)


def _floor(tasks: Sequence[TaskFacts]) -> str:
    """How little of the task the base model can do."""
    lenient = {task.name: task.base.value for task in tasks if task.kind == "lenient"}
    told = [
        f"{task.base.value or 0.0:.1%} of {task.name} "
        f"(leniently {lenient.get(LENIENT + task.name) or 0.0:.1%}, without an answer {task.no_answer or 0.0:.1%})"
        for task in tasks
        if task.kind == "accuracy"
    ]
    return (
        f"All models are near the floor of the task, of which the base model answers {', '.join(told)}: gains are "
        "small and mostly chance, so read the loss before training, retention and KL first."
    )


def _retention(standings: Sequence[Standing], level: float) -> list[str]:
    """A sentence for each shape on what keeps most, in points where there is no share; or that nothing can be said."""
    if not standings:
        return [
            "No method could be matched with plain fine-tuning (sft) at equal gain, so none is shown to forget less."
        ]
    said = []
    for shape in dict.fromkeys(standing.shape for standing in standings):
        own = [standing for standing in standings if standing.shape == shape]
        if known := [standing for standing in own if not np.isnan(standing.saved)]:
            said.append(_of_shape(known, shape, level))
        if without := [standing for standing in own if np.isnan(standing.saved)]:
            said.append(_in_points(without, shape))
    return said


def _in_points(standings: Sequence[Standing], shape: str) -> str:
    """Of methods that are matched where the reference forgets nothing, the one that forgets least first."""
    told = [
        f"{standing.method} {_with_span(standing.difference)} (gain {standing.gain:.2f}, {standing.steps} steps)"
        for standing in sorted(standings, key=lambda standing: -(standing.difference.value or 0.0))
    ]
    return (
        f"With shape {shape} plain fine-tuning (sft) forgets nothing at the gain of {len(told)} of the methods, so "
        f"there is no share of that to save. What they forget less than sft, in points, below 0 for more: "
        f"{', '.join(told)}."
    )


def _of_shape(standings: Sequence[Standing], shape: str, level: float) -> str:
    """Ranks the methods at the largest gain after the most steps alone: what others save is told apart.

    A figure at less gain, or after fewer steps since a longer training is missing, is of another scale.
    """
    steps = max(standing.steps for standing in standings)
    gain = max(standing.gain for standing in standings if standing.steps == steps)
    ranked: list[Standing] = []
    others: list[Standing] = []
    for standing in standings:
        is_ranked = standing.steps == steps and gain - standing.gain <= _SAME_GAIN * gain
        (ranked if is_ranked else others).append(standing)
    return f"{_ranking(ranked, shape, steps, level)}{_not_ranked(others, steps, level)}"


def _ranking(standings: Sequence[Standing], shape: str, steps: int, level: float) -> str:
    """Of methods at one gain after the same steps."""
    where = f"With shape {shape}, at equal gain after the same {steps} steps,"
    nothing, same = np.zeros_like(standings[0].saved_D), Figure(value=0.0, low=0.0, high=0.0)
    reference = Standing(REFERENCE, shape, True, steps, float("nan"), nothing, same)
    cheap = [reference, *(s for s in standings if s.is_cheap)]
    trained = [s for s in standings if not s.is_cheap]
    if not trained:
        winner = _best(cheap)
        nobody = "no method with a trained rewriter could be matched there"
        if winner is reference:
            return f"{where} {_told([reference], level)} forgets least, before {_told(cheap[1:], level)}; {nobody}."
        return f"{where} {_told(cheap, level)} forgets least{_doubt(winner, level)}; {nobody}."
    first, second = (trained, cheap) if _best(trained).saved > _best(cheap).saved else (cheap, trained)
    kind = "the cheap baseline " if _best(first).is_cheap else ""
    difference = interval(_best_of_draws(first) - _best_of_draws(second), level)
    chance = "" if _is_sure(difference, level) else "; chance alone could be the difference"
    return (
        f"{where} {kind}{_told(first, level)} forgets least, before {_told(second, level)}: a difference of "
        f"{_with_span(difference)}{chance}."
    )


def _not_ranked(standings: Sequence[Standing], steps: int, level: float) -> str:
    """The methods that do not get as far, the highest gain first; empty for none."""
    if not standings:
        return ""
    told = []
    for standing in sorted(standings, key=lambda standing: -standing.gain):
        short = "" if standing.steps == steps else f" after {standing.steps} steps"
        saved = _with_span(interval(standing.saved_D, level))
        told.append(f"{standing.method} gain {standing.gain:.2f}{short} (1 - F/F_sft = {saved} there)")
    return f" Not ranked with these, since they reach only less: {', '.join(told)}."


def _best(standings: Sequence[Standing]) -> Standing:
    return max(standings, key=lambda standing: standing.saved)


def _best_of_draws(standings: Sequence[Standing]) -> Values:
    """What the best of them keeps, chosen in each resample anew: the luck of being chosen is then in the interval."""
    return np.asarray(np.fmax.reduce([standing.saved_D for standing in standings]))


def _is_sure(figure: Figure, level: float) -> bool:
    """Whether all of its interval is above 0, and no more resamples are without a figure than it leaves out."""
    return figure.low is not None and figure.low > 0 and figure.undefined <= 1 - level + 1e-9


def _doubt(winner: Standing, level: float) -> str:
    if _is_sure(interval(winner.saved_D, level), level):
        return ""
    return f"; chance alone could be the lead of {winner.method} over sft"


def _told(standings: Sequence[Standing], level: float) -> str:
    """The best of the methods of one kind, and among how many it was chosen."""
    best, matched = _best(standings), sum(standing.method != REFERENCE for standing in standings)
    if best.method == REFERENCE:
        return "plain fine-tuning (sft)"
    chosen = f", the best of {matched} methods of its kind" if matched > 1 else ""
    saved = _with_span(interval(best.saved_D, level))
    return f"{best.method} (1 - F/F_sft = {saved} at gain {best.gain:.2f}{chosen})"


def _with_span(figure: Figure) -> str:
    span = "" if figure.low is None or figure.high is None else f" [{figure.low:.2f}, {figure.high:.2f}]"
    remark = f" ({figure.remark})" if figure.remark else ""
    return f"{figure.value:.2f}{span}{remark}"


def _losses(points: Sequence[Point]) -> list[str]:
    """The loss of the base model on each method's rows, highest first; apart where the rows are of fewer questions."""
    ordered = sorted(initial_losses(points).items(), key=lambda item: -(item[1].value or 0.0))
    whole, filtered = (
        ", ".join(f"{name} {loss.value:.3f}" for name, loss in ordered if METHODS[name].success_only is kept)
        for kept in (False, True)
    )
    said = [f"Loss before training, nats a token: {whole}."] if whole else []
    if filtered:
        said.append(f"On the questions alone whose rewrite passed the gate, which are easier ones: {filtered}.")
    return said
