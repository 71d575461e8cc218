"""The summary of per-token surprisal."""

from __future__ import annotations

import numpy as np
import pytest

from agent.exceptions import MismatchError
from agent.mismatch import Surprisal, nats_of, summarise


def test_the_mean_counts_every_token_once() -> None:
    assert summarise([1.0, 2.0, 6.0]).nll == pytest.approx(3.0)


def test_the_95th_percentile_interpolates_as_numpy_does() -> None:
    nats = [0.1, 4.0, 0.2, 9.0, 0.5, 0.7, 3.0]
    assert summarise(nats).p95 == pytest.approx(float(np.percentile(nats, 95)))


def test_one_token_is_its_own_mean_and_percentile() -> None:
    summary = Surprisal([5], ["x"], [2.5]).summary()
    assert (summary.nll, summary.p95, summary.tokens) == (2.5, 2.5, 1)


def test_surprisal_is_the_negative_log_probability() -> None:
    assert nats_of([-1.5, 0.0]) == [1.5, 0.0]


@pytest.mark.parametrize(("logprob", "value"), [(float("nan"), "nan"), (float("-inf"), "inf")])
def test_a_score_that_is_no_finite_number_is_refused_with_its_token(logprob: float, value: str) -> None:
    with pytest.raises(MismatchError, match=f"surprisal at token 2 of 3 is {value}, no finite number"):
        nats_of([-1.0, logprob, -2.0])
