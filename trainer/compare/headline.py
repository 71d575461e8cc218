"""The sentences that come first in a report, computed from its figures: a cheap baseline that wins is told first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.compare.methods import REFERENCE
from trainer.compare.numbers import Interval, Values, interval
from trainer.compare.results import Point

_SAME_GAIN = 0.02  # of the larger: nearer, two gains count as one


@dataclass(frozen=True, slots=True)
class Standing:
    """How a method stands against the reference after the same steps.

    Attributes:
        is_cheap: whether it needs no trained rewriter.
        gain: where it is compared with the reference: the largest that both reach, so its own.
        saved_D: 1 - F / F of the reference in every resample, NaN where it is not defined.
    """

    method: str
    shape: str
    is_cheap: bool
    gain: float
    saved_D: Values

    @property
    def saved(self) -> float:
        return float(self.saved_D[0])


def headline(standings: Sequence[Standing], points: Sequence[Point], *, failures: int, level: float = 0.95) -> str:
    """What a reader must know first.

    Args:
        standings: the methods that could be matched with the reference.
        points: all points, for their initial losses.
        failures: units that are missing.
        level: of intervals.
    """
    said = [*_retention(standings, level), *_losses(points)]
    if failures:
        said.append(f"{failures} units failed or were left out, and are missing here.")
    return " ".join(said)


def _retention(standings: Sequence[Standing], level: float) -> list[str]:
    """A sentence for each shape on what keeps most, or that nothing can be said."""
    known = [standing for standing in standings if not np.isnan(standing.saved)]
    if not known:
        return [
            "No method could be matched with plain fine-tuning (sft) at equal gain, so none is shown to forget less."
        ]
    shapes = dict.fromkeys(standing.shape for standing in known)
    return [_of_shape([s for s in known if s.shape == shape], shape, level) for shape in shapes]


def _of_shape(standings: Sequence[Standing], shape: str, level: float) -> str:
    reference = Standing(REFERENCE, shape, True, float("nan"), np.zeros_like(standings[0].saved_D))
    cheap = max((s for s in (reference, *standings) if s.is_cheap), key=lambda s: s.saved)
    trained = max((s for s in standings if not s.is_cheap), key=lambda s: s.saved, default=None)
    where = f"With shape {shape}, at equal gain after the same steps,"
    if trained is None:
        if cheap is reference:
            return f"{where} no method forgets less than plain fine-tuning (sft)."
        return f"{where} {_told(cheap, level)} forgets least; no method with a trained rewriter could be matched."
    winner, other = (trained, cheap) if trained.saved > cheap.saved else (cheap, trained)
    kind = "the cheap baseline " if winner.is_cheap else ""
    order = f"{where} {kind}{_told(winner, level)} forgets least, before {_told(other, level)}"
    if abs(winner.gain - other.gain) > _SAME_GAIN * max(abs(winner.gain), abs(other.gain)):
        return f"{order}; each is compared with sft at another gain, so the two figures are not of one scale."
    difference = interval(winner.saved_D - other.saved_D, level)
    chance = "" if (difference.low or 0) > 0 else "; chance alone could be the difference"
    return f"{order}: a difference of {_with_span(difference)}{chance}."


def _told(standing: Standing, level: float) -> str:
    if standing.method == REFERENCE:
        return "plain fine-tuning (sft)"
    saved = _with_span(interval(standing.saved_D, level))
    return f"{standing.method} (1 - F/F_sft = {saved} at gain {standing.gain:.2f})"


def _with_span(figure: Interval) -> str:
    span = "" if figure.low is None or figure.high is None else f" [{figure.low:.2f}, {figure.high:.2f}]"
    return f"{figure.value:.2f}{span}"


def _losses(points: Sequence[Point]) -> list[str]:
    """The loss of the base model on each method's rows, highest first."""
    losses: dict[str, list[float]] = {}
    for point in points:
        losses.setdefault(point.method, []).append(point.initial_loss)
    if not losses:
        return []
    means = {method: sum(values) / len(values) for method, values in losses.items()}
    ordered = sorted(means.items(), key=lambda item: -item[1])
    return [f"Loss before training, nats a token: {', '.join(f'{name} {loss:.3f}' for name, loss in ordered)}."]
