"""The numbers of a comparison against values worked out by hand."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest

from trainer.compare.matching import Line, match
from trainer.compare.numbers import (
    AtGain,
    TaskRows,
    at_budget,
    forgetting,
    forgetting_at,
    gain,
    interval,
    match_gain,
    pareto_front,
    relative_forgetting,
    scores,
)


def task(values: list[list[float]], name: str = "sums", **further: object) -> TaskRows:
    table = np.array(values)
    return TaskRows(name, "accuracy", table, np.ones_like(table), **further)  # type: ignore[arg-type]


def test_a_score_is_the_mean_over_rows_first_on_the_rows_themselves() -> None:
    found = scores(task([[1, 0, 0, 0], [1, 1, 1, 0]]), draws=100, seed=0)
    assert found.shape == (101, 2)
    assert found[0].tolist() == [0.25, 0.75]


def test_perplexity_and_bits_are_ratios_over_the_weights() -> None:
    values, weights = np.array([[-2.0, -4.0]]), np.array([[1.0, 2.0]])
    perplexity = TaskRows("wikitext", "retention", values, weights, "perplexity", higher_is_better=False)
    bits = TaskRows("wikitext", "retention", values, weights, "bits", higher_is_better=False)
    assert scores(perplexity, 1, 0)[0, 0] == pytest.approx(math.exp(2))
    assert scores(bits, 1, 0)[0, 0] == pytest.approx(2 / math.log(2))
    assert not perplexity.in_points


def test_resamples_are_paired() -> None:
    """Two models that are right on the same rows differ in no resample, however the rows fall."""
    right = [1.0, 0.0, 1.0, 0.0, 0.0, 1.0]
    found = scores(task([[0.0] * 6, right, right]), draws=200, seed=3)
    assert (found[:, 1] == found[:, 2]).all()
    assert found[:, 1].std() > 0.1


def test_the_interval_of_a_mean_is_about_as_wide_as_theory_says() -> None:
    rows = np.tile([[0.0], [1.0]], (1, 400))
    rows[1, ::2] = 0
    found = scores(task(rows.tolist()), draws=4000, seed=1)[:, 1]
    low, high = interval(found, 0.95).low, interval(found, 0.95).high
    assert low is not None
    assert high is not None
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(400), rel=0.1)


def test_the_same_seed_draws_the_same_and_tasks_draw_apart() -> None:
    rows = [[0.0, 1.0, 1.0, 0.0, 1.0]]
    first, again = scores(task(rows), 50, 7), scores(task(rows), 50, 7)
    assert (first == again).all()
    assert (first != scores(task(rows, "other"), 50, 7)).any()


def test_resamples_are_drawn_in_parts_from_one_stream() -> None:
    rows = np.array([[0.0, 1.0, 1.0, 0.0, 1.0]])
    random = np.random.default_rng([7, zlib.crc32(b"sums")])
    counts = random.multinomial(5, np.full(5, 0.2), size=2500)
    assert scores(task(rows.tolist()), 2500, 7)[1:, 0] == pytest.approx((counts @ rows[0]) / 5)


def test_gain_and_forgetting_are_points_over_tasks() -> None:
    first, second = np.array([[0.10, 0.30]]), np.array([[0.50, 0.40]])
    assert gain([first]).tolist() == [[0, pytest.approx(20)]]
    assert gain([first, second])[0, 1] == pytest.approx((20 - 10) / 2)
    assert forgetting([second])[0, 1] == pytest.approx(10)


def test_relative_forgetting_counts_a_perplexity_that_rose() -> None:
    share, perplexity = np.array([[0.50, 0.40]]), np.array([[20.0, 26.0]])
    found = relative_forgetting([(share, True), (perplexity, False)])
    assert found[0] == pytest.approx([0, (0.2 + 0.3) / 2])
    assert np.isnan(relative_forgetting([(np.array([[0.0, 0.1]]), True)])).all()


def test_an_interval_says_in_how_many_resamples_the_figure_is_not_defined() -> None:
    found = interval(np.array([2.0, 1.0, 3.0, math.nan, math.nan]), 0.5)
    assert (found.value, found.low, found.high, found.undefined) == (2.0, 1.5, 2.5, 0.5)
    assert interval(np.array([math.nan, 1.0]), 0.5).value is None


def test_the_front_keeps_what_nothing_beats() -> None:
    gains, lost = [1.0, 3.0, 2.0, 3.0, 5.0], [0.0, 2.0, 2.5, 4.0, 4.0]
    assert pareto_front(gains, lost) == [0, 1, 4]
    assert pareto_front([1.0, 1.0], [1.0, 1.0]) == [0, 1]


def test_a_budget_between_two_trainings_is_read_between_them() -> None:
    figures = np.array([[10.0], [30.0]])
    assert at_budget([100, 200], figures, 0, 150).tolist() == [20]
    assert at_budget([100, 200], figures, 0, 200).tolist() == [30]
    assert at_budget([100, 200], figures, 0, 50).tolist() == [5]
    assert at_budget([100, 200], figures, 60, 80).tolist() == [5]
    assert at_budget([100, 200], figures, 60, 60).tolist() == [0]


def test_forgetting_at_a_gain_is_the_least_between_neighbouring_learning_rates() -> None:
    assert forgetting_at([0, 10], [1, 3], 5) == 2
    assert forgetting_at([0, 10, 0], [1, 3, 9], 5) == 2
    assert forgetting_at([0, 10], [1, 3], 10) == 3


def test_two_methods_are_compared_at_the_largest_gain_that_both_reach() -> None:
    found = match_gain(([0.0, 2.0, 8.0], [0.0, 0.0, 3.0]), ([0.0, 1.0, 5.0], [0.0, 2.0, 6.0]))
    assert found == AtGain(gain=5.0, own=1.5, reference=6.0)
    assert found.saved == 0.75


def test_where_one_of_two_gains_nothing_they_cannot_be_matched() -> None:
    assert match_gain(([0.0, -1.0, 0.0], [0.0, 1.0, 2.0]), ([0.0, 3.0, 4.0], [0.0, 1.0, 2.0])) is None


def test_a_reference_that_forgets_nothing_leaves_nothing_to_save() -> None:
    assert math.isnan(AtGain(1, 0.5, 0).saved)


def line(
    budgets: list[float], gains: list[float], lost: list[float], start: float = 0, steps: int = 1, rate: float = 0.1
) -> Line:
    """The same figures in every one of three resamples."""
    gains_KD, lost_KD = (np.tile(np.array(column)[:, None], 3) for column in (gains, lost))
    return Line(rate, steps, budgets, gains_KD, lost_KD, start)


def test_a_method_that_trains_on_longer_rows_is_read_where_the_reference_ends() -> None:
    reference = [line([100], [4], [4]), line([100], [8], [10])]
    found = match([line([200], [8], [4]), line([200], [20], [8])], reference, 0.9)
    assert found.budget == 100
    assert found.saved is not None
    assert found.gain is not None
    # Halfway: (4, 2) and (10, 4), so 2 + 2 * 4 / 6 at the reference's gain of 8.
    assert found.gain.value == 8
    assert found.saved.value == pytest.approx(1 - (2 + 4 / 3) / 10)
    assert found.saved.low == pytest.approx(found.saved.value)


def test_a_method_that_gains_more_at_every_learning_rate_is_read_between_its_smallest_and_the_base_model() -> None:
    """sft gains 1 to 4 points and forgets as many; the other has 5 points for 0.1 already, so 0.08 at 4."""
    reference = [line([100], [gain], [gain]) for gain in (1, 2, 3, 4)]
    own = [line([100], [5], [0.1]), line([100], [6], [0.2]), line([100], [8], [0.4])]
    found = match(own, reference, 0.9)
    assert found.gain is not None
    assert found.own is not None
    assert found.saved is not None
    assert (found.gain.value, found.own.value) == (4, pytest.approx(0.08))
    assert (found.saved.value, found.saved.undefined) == (pytest.approx(1 - 0.08 / 4), 0)
    turned = match(reference, own, 0.9)
    assert turned.saved is not None
    assert turned.saved.value == pytest.approx(1 - 4 / 0.08)


def test_a_resample_in_which_the_smallest_learning_rate_gains_more_than_is_wanted_has_its_figure() -> None:
    smallest = Line(0.1, 1, [100], np.array([[3.0, 9.0, 9.0]]), np.array([[1.0, 1.0, 1.0]]))
    found = match([smallest, line([100], [8], [2])], [line([100], [4], [4]), line([100], [6], [6])], 0.9)
    assert found.saved is not None
    assert found.saved.undefined == 0


def test_what_cannot_be_matched_says_why() -> None:
    nothing, broken = line([1], [-1], [1]), line([1], [math.nan], [1])
    assert match([nothing], [line([1], [3], [1])], 0.9).reason == "there is no gain that both reach"
    assert match([broken], [line([1], [3], [1])], 0.9).reason == "no model of one of the two has figures"


def test_a_missing_training_takes_its_learning_rate_away_and_moves_no_budget() -> None:
    whole = [line([60, 120], [4, 8], [4, 8], steps=120), line([60, 120], [6, 10], [6, 10], steps=120)]
    cut = [line([60], [4], [1], steps=60), line([60, 120], [5, 10], [1, 2], steps=120)]
    for own, reference, saved in ((cut, whole, 1 - 2 / 10), (whole, cut, 1 - 10 / 2)):
        found = match(own, reference, 0.9)
        assert found.saved is not None
        assert (found.budget, found.saved.value) == (120, pytest.approx(saved))
    ended = match(cut[:1], whole, 0.9)
    assert ended.budget == 60, "where a method has no longer training the budget is its own"


def test_a_learning_rate_that_one_of_two_lacks_is_taken_from_the_other() -> None:
    """At the highest rate, which `own` lacks, sft would forget nothing."""
    own = [line([100], [4], [1], rate=1e-4), line([100], [8], [2], rate=1e-3)]
    reference = [line([100], [4], [4], rate=1e-4), line([100], [8], [8], rate=1e-3), line([100], [9], [0], rate=1e-2)]
    for ours, theirs, saved in ((own, reference, 1 - 2 / 8), (reference, own, 1 - 8 / 2)):
        found = match(ours, theirs, 0.9)
        assert found.saved is not None
        assert found.saved.value == pytest.approx(saved)
    assert match(own[:1], reference[1:], 0.9).reason == "the two have no learning rate in common"


def test_a_learning_rate_that_trained_on_a_few_tokens_less_after_the_same_steps_is_kept() -> None:
    own = [line([1000], [4], [1], steps=60), line([1001], [-1], [1], steps=60)]
    found = match(own, [line([1000], [4], [4], steps=60)], 0.9)
    assert (found.budget, found.reason) == (1000, None)


def test_rows_that_cost_more_than_all_of_the_reference_cannot_be_matched() -> None:
    found = match([line([900], [8], [4], start=500)], [line([300], [8], [4])], 0.9)
    assert found.saved is None
    assert found.reason == "its rows alone cost 500, and the reference ends at 300"


def test_without_a_benchmark_in_points_nothing_is_matched() -> None:
    found = match([line([1], [8], [math.nan])], [line([1], [8], [math.nan])], 0.9)
    assert found.reason == "no retention benchmark has a score in points"


def test_a_learning_rate_whose_model_diverged_does_not_count() -> None:
    reference = [line([100], [4], [4]), line([100], [8], [10]), line([100], [math.nan], [math.nan])]
    found = match([line([100], [8], [4])], reference, 0.9)
    assert found.saved is not None
    assert found.saved.value == pytest.approx(1 - 4 / 10)
