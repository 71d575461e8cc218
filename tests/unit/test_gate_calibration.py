"""Thresholds and their error rates from labelled scores."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.exceptions import GateError
from agent.gate.calibration import calibration

SCORES = [0.9, 0.8, 0.4, 0.6, 0.3, 0.1]
ACCEPT = [True, True, True, False, False, False]


def test_the_rates_of_a_threshold_count_the_wrong_side() -> None:
    measured = calibration(SCORES, ACCEPT)
    middle = next(p for p in measured.points if p.threshold == pytest.approx(0.5))
    assert (middle.false_accept_rate, middle.false_reject_rate) == pytest.approx((1 / 3, 1 / 3))
    assert measured.separation == pytest.approx(8 / 9)


def test_the_best_threshold_has_the_least_errors_and_respects_a_limit_on_false_accepts() -> None:
    measured = calibration(SCORES, ACCEPT)
    assert measured.best().threshold == pytest.approx(0.7)
    strict = measured.best(max_false_accept_rate=0.0)
    assert (strict.threshold, strict.false_reject_rate) == pytest.approx((0.7, 1 / 3))


def test_scores_that_separate_the_labels_make_no_errors() -> None:
    best = calibration([0.2, 0.9], [False, True]).best()
    assert (best.threshold, best.false_accept_rate, best.false_reject_rate) == pytest.approx((0.55, 0.0, 0.0))


def test_one_label_alone_cannot_be_calibrated() -> None:
    with pytest.raises(GateError, match="both labels"):
        calibration([0.2, 0.9], [True, True])


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2, max_size=40))
def test_rates_move_in_opposite_directions_along_the_thresholds(pairs: list[tuple[float, bool]]) -> None:
    labels = [accept for _, accept in pairs]
    if len(set(labels)) < 2:
        return
    points = calibration([score for score, _ in pairs], labels).points
    accepts = [p.false_accept_rate for p in points]
    rejects = [p.false_reject_rate for p in points]
    assert accepts == sorted(accepts, reverse=True)
    assert rejects == sorted(rejects)
    assert (accepts[0], rejects[-1], accepts[-1]) == (1.0, 1.0, 0.0)
