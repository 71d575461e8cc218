"""Figures and their standard errors, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from trainer.exam.results import Measure
from trainer.exam.statistics import bits, mean, perplexity, ratio


def test_a_mean_has_the_usual_standard_error() -> None:
    found = mean([1.0, 0.0, 1.0, 1.0])
    assert found.value == 0.75
    # s^2 = (3 * 0.0625 + 0.5625) / 3 = 0.25; s / sqrt(4) = 0.25
    assert found.stderr == pytest.approx(0.25)


def test_a_ratio_weighs_its_rows() -> None:
    found = ratio([(2.0, 1.0), (3.0, 4.0)])
    assert found.value == 1.0
    # residuals 1 and -1: sqrt(2 / 1 * 2) / 5
    assert found.stderr == pytest.approx(0.4)


def test_one_row_has_no_standard_error() -> None:
    assert mean([0.5]).stderr is None
    assert perplexity([(-1.0, 2.0)]).stderr is None


def test_perplexity_and_bits_are_of_the_log_likelihood_over_the_weights() -> None:
    terms = [(-2.0, 1.0), (-3.0, 4.0)]
    assert perplexity(terms).value == pytest.approx(math.e)
    assert perplexity(terms).stderr == pytest.approx(0.4 * math.e)
    assert bits(terms).value == pytest.approx(1 / math.log(2))
    assert bits(terms).stderr == pytest.approx(0.4 / math.log(2))


def test_a_model_that_diverged_has_figures_that_can_be_written_and_read() -> None:
    lost = perplexity([(-1000.0, 1.0), (-2000.0, 1.0)])
    assert lost.value == math.inf
    assert Measure.model_validate_json(lost.model_dump_json()) == lost
    broken = mean([math.nan, 1.0])
    assert math.isnan(Measure.model_validate_json(broken.model_dump_json()).value)
