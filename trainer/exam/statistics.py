"""Means and their standard errors over rows, some of which count for more than others.

A figure is a ratio of sums over rows, sum(value) / sum(weight): a mean where every weight is 1, nats per token where
the weight is a row's tokens. Its standard error is that of the ratio estimator (Cochran, Sampling Techniques, 6.13):
sqrt(n / (n - 1) * sum((value_i - ratio * weight_i)^2)) / sum(weight), which for weights of 1 is s / sqrt(n).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence

from trainer.exam.results import Measure

Term = tuple[float, float]

_LARGEST_EXPONENT = math.log(sys.float_info.max)


def ratio(terms: Sequence[Term]) -> Measure:
    """sum(value) / sum(weight) of `(value, weight)` of each row; at least one weight is positive."""
    total = math.fsum(weight for _, weight in terms)
    value = math.fsum(value for value, _ in terms) / total
    rows = len(terms)
    if rows < 2:
        return Measure(value=value, stderr=None)
    squares = math.fsum((x - value * weight) ** 2 for x, weight in terms)
    return Measure(value=value, stderr=math.sqrt(squares * rows / (rows - 1)) / total)


def mean(values: Iterable[float]) -> Measure:
    """The plain mean over rows; at least one."""
    return ratio([(value, 1.0) for value in values])


def perplexity(terms: Sequence[Term]) -> Measure:
    """exp(-ratio) of `(log-likelihood, words)` of each row; the error by the delta method."""
    log = ratio(terms)
    value = math.exp(-log.value) if -log.value < _LARGEST_EXPONENT else math.inf
    return Measure(value=value, stderr=None if log.stderr is None else value * log.stderr)


def bits(terms: Sequence[Term]) -> Measure:
    """-ratio / ln 2 of `(log-likelihood, bytes)` of each row."""
    log = ratio(terms)
    return Measure(value=-log.value / math.log(2), stderr=None if log.stderr is None else log.stderr / math.log(2))
