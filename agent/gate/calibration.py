"""Choosing a threshold on labelled pairs, with the errors it makes: for the reasoning judge and for similarity.

A threshold accepts scores at or above it. False-accept rate: accepted share of the pairs labelled reject;
false-reject rate: rejected share of those labelled accept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from agent.demonstrations import Demonstration
from agent.exceptions import GateError, PromptTooLongError
from agent.gate.reasoning import ReasoningJudge


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """A candidate for a demonstration, and whether it ought to be accepted."""

    demonstration: Demonstration
    candidate: str
    accept: bool


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A threshold and the errors it makes, both rates in [0, 1]."""

    threshold: float
    false_accept_rate: float
    false_reject_rate: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a score is worth as a check.

    Attributes:
        points: one per distinct score, thresholds rising; the last rejects everything.
        accepts, rejects: scored pairs of each label.
        unscored: pairs that did not fit the judge's context; the check fails them whatever the threshold.
        separation: chance that a pair to accept scores above one to reject, ties half (area under the ROC curve).
    """

    points: tuple[OperatingPoint, ...]
    accepts: int
    rejects: int
    unscored: int
    separation: float

    def best(self, max_false_accept_rate: float | None = None) -> OperatingPoint:
        """The point of the least summed error rates, or the least false rejects under a false-accept limit.

        Of equal points the highest threshold is taken.
        """
        if max_false_accept_rate is None:
            return min(reversed(self.points), key=lambda p: p.false_accept_rate + p.false_reject_rate)
        allowed = [p for p in reversed(self.points) if p.false_accept_rate <= max_false_accept_rate]
        return min(allowed, key=lambda p: p.false_reject_rate)


def calibration(scores: Sequence[float], accept: Sequence[bool], *, unscored: int = 0) -> Calibration:
    """Operating points of `scores` against the labels `accept`, both of length N.

    Thresholds lie halfway between neighbouring scores, so that they do not hang on the last digit of one pair.

    Raises:
        GateError: either label is missing.
    """
    good = sorted(s for s, label in zip(scores, accept, strict=True) if label)
    bad = sorted(s for s, label in zip(scores, accept, strict=True) if not label)
    if not good or not bad:
        raise GateError(f"calibration needs pairs of both labels, got {len(good)} to accept and {len(bad)} to reject")
    distinct = sorted({*good, *bad})
    thresholds = [distinct[0], *((a + b) / 2 for a, b in pairwise(distinct))]
    points = [
        OperatingPoint(t, sum(s >= t for s in bad) / len(bad), sum(s < t for s in good) / len(good)) for t in thresholds
    ]
    points.append(OperatingPoint(distinct[-1] + 1e-9, 0.0, 1.0))
    above = sum((g > b) + 0.5 * (g == b) for g in good for b in bad)
    return Calibration(tuple(points), len(good), len(bad), unscored, above / (len(good) * len(bad)))


async def calibrate(judge: ReasoningJudge, pairs: Iterable[LabelledPair]) -> Calibration:
    """Score every pair with the judge, all at once, and lay out its operating points.

    Raises:
        GateError: no pair of one of the labels could be scored.
    """
    pairs = list(pairs)
    scores = await asyncio.gather(*(_score(judge, pair) for pair in pairs))
    scored = [(score, pair.accept) for score, pair in zip(scores, pairs, strict=True) if score is not None]
    return calibration([s for s, _ in scored], [label for _, label in scored], unscored=len(pairs) - len(scored))


async def _score(judge: ReasoningJudge, pair: LabelledPair) -> float | None:
    try:
        return await judge.probability(pair.demonstration, pair.candidate)
    except PromptTooLongError:
        return None
