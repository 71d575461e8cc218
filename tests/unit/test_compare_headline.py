"""The sentences that come first in a report: who forgets least at equal gain, and whether it could be chance."""

from __future__ import annotations

from typing import Any

import numpy as np

from trainer.compare.headline import Standing, headline
from trainer.compare.results import Figure

NOTHING_KNOWN = Figure(value=None, low=None, high=None)


def standing(*facts: Any, difference: Figure = NOTHING_KNOWN) -> Standing:
    """How a method stands, by the fields of `Standing` up to its last."""
    return Standing(*facts, difference)


def test_a_cheap_baseline_that_wins_is_the_first_thing_said() -> None:
    draws = np.full(50, 0.4)
    cheap, trained = (
        standing("mask", "small", True, 60, 2.0, draws),
        standing("rewright", "small", False, 60, 2.0, draws - 0.3),
    )
    said = headline([trained, cheap], [], failures=0)
    assert said.startswith("With shape small, at equal gain after the same 60 steps, the cheap baseline mask")
    assert "before rewright (1 - F/F_sft = 0.10" in said
    assert "chance" not in said


def test_a_difference_that_chance_could_make_is_said_to_be_one() -> None:
    random = np.random.default_rng(0)
    cheap = standing("mask", "small", True, 60, 2.0, random.normal(0.30, 0.2, 300))
    trained = standing("rewright", "small", False, 60, 2.0, np.r_[0.9, random.normal(0.31, 0.2, 299)])
    said = headline([cheap, trained], [], failures=2)
    assert "rewright (1 - F/F_sft = 0.90" in said.split(" forgets least")[0]
    assert "chance alone could be the difference" in said
    assert said.endswith("2 units failed or were left out, and are missing here.")


def test_a_method_that_was_picked_among_many_has_the_luck_of_being_picked_in_its_interval() -> None:
    """Ten methods that differ from sft by chance alone: the best of them leads by its luck, and it is said."""
    random = np.random.default_rng(1)
    noise = [np.r_[0.05 * i, random.normal(0, 0.3, 500)] for i in range(10)]
    cheap = [standing(f"cheap{i}", "small", True, 60, 2.0, saved) for i, saved in enumerate(noise[:9])]
    trained = standing("rewright", "small", False, 60, 2.0, np.r_[0.9, random.normal(0.9, 0.1, 500)])
    said = headline([*cheap, trained], [], failures=0)
    assert "before cheap8 (1 - F/F_sft = 0.40" in said
    assert "at gain 2.00, the best of 9 methods of its kind)" in said
    best_of_all = np.maximum.reduce([s.saved_D[1:] for s in cheap] + [np.zeros(500)])
    low, high = np.quantile(trained.saved_D[1:] - best_of_all, [0.025, 0.975])
    assert f"a difference of 0.50 [{low:.2f}, {high:.2f}]" in said


def test_a_figure_that_many_resamples_do_not_have_is_no_proof_and_says_so() -> None:
    holed = np.r_[np.full(90, 0.5), np.full(11, np.nan)]
    cheap = standing("mask", "small", True, 60, 2.0, holed)
    alone = headline([cheap], [], failures=0)
    assert "mask (1 - F/F_sft = 0.50 [0.50, 0.50] (not defined in 11.0% of the resamples) at gain 2.00)" in alone
    assert "; chance alone could be the lead of mask over sft; no method with a trained rewriter" in alone
    assert "chance alone could be the lead of mask" not in headline([cheap], [], failures=0, level=0.85)
    ahead = standing("rewright", "small", False, 60, 2.0, holed + 0.2)
    assert "chance alone could be the difference" in headline([cheap, ahead], [], failures=0)


def test_what_is_saved_at_less_gain_is_not_ranked_and_hides_no_cheap_baseline_that_wins() -> None:
    """To save nearly all where nothing is gained yet is no feat: mask beats rewright where both gain as much as sft."""
    mask = standing("mask", "small", True, 60, 8.0, np.full(20, 0.7))
    rewright = standing("rewright", "small", False, 60, 7.9, np.full(20, 0.6))
    paper = standing("paper", "small", False, 60, 0.3, np.full(20, 0.95))
    first, _, second = headline([paper, rewright, mask], [], failures=0).partition(" Not ranked")
    assert (
        "the cheap baseline mask (1 - F/F_sft = 0.70 [0.70, 0.70] at gain 8.00) forgets least, before rewright" in first
    )
    assert first.endswith("a difference of 0.10 [0.10, 0.10].")
    assert "paper" not in first
    assert second == " with these, since they reach only less: paper gain 0.30 (1 - F/F_sft = 0.95 [0.95, 0.95] there)."
    alone = headline([paper, mask], [], failures=0)
    assert "forgets least; no method with a trained rewriter could be matched there. Not ranked" in alone


def test_what_is_saved_after_fewer_steps_is_not_ranked() -> None:
    mask = standing("mask", "small", True, 120, 4.0, np.full(20, 0.2))
    rewright = standing("rewright", "small", False, 60, 6.0, np.full(20, 0.9))
    said = headline([rewright, mask], [], failures=1)
    assert said.startswith("With shape small, at equal gain after the same 120 steps, mask (1 - F/F_sft = 0.20")
    assert "less: rewright gain 6.00 after 60 steps (1 - F/F_sft = 0.90 [0.90, 0.90] there). 1 units failed" in said


def test_where_every_cheap_method_forgets_more_sft_is_the_first_named() -> None:
    said = headline([standing("mask", "small", True, 60, 2.0, np.full(20, -0.5))], [], failures=0)
    assert (
        "plain fine-tuning (sft) forgets least, before mask (1 - F/F_sft = -0.50 [-0.50, -0.50] at gain 2.00)" in said
    )


def test_where_sft_forgets_nothing_it_is_told_in_points_who_forgets_more() -> None:
    nowhere = np.full(20, np.nan)
    mask = standing("mask", "small", True, 60, 2.1, nowhere, difference=Figure(value=-0.5, low=-1.5, high=0.7))
    agent = standing("rewright", "small", False, 60, 1.9, nowhere, difference=Figure(value=-1.5, low=-2.7, high=-0.5))
    said = headline([agent, mask], [], failures=0)
    assert said == (
        "With shape small plain fine-tuning (sft) forgets nothing at the gain of 2 of the methods, so there is no "
        "share of that to save. What they forget less than sft, in points, below 0 for more: mask -0.50 [-1.50, 0.70] "
        "(gain 2.10, 60 steps), rewright -1.50 [-2.70, -0.50] (gain 1.90, 60 steps)."
    )


def test_a_share_is_told_before_what_has_none() -> None:
    agent = standing("rewright", "small", False, 60, 2.0, np.full(20, 0.5))
    nothing = Figure(value=0.0, low=-1.0, high=1.0)
    mask = standing("mask", "small", True, 60, 0.4, np.full(20, np.nan), difference=nothing)
    said = headline([mask, agent], [], failures=0)
    assert (
        said.index("rewright (1 - F/F_sft = 0.50") < said.index("at the gain of 1 of the methods") < said.index("mask")
    )


def test_without_a_match_no_method_is_said_to_win() -> None:
    assert headline([], [], failures=0).startswith("No method could be matched")


def test_a_method_that_forgets_more_than_sft_leaves_sft_the_winner() -> None:
    worse = standing("rewright", "small", False, 60, 2.0, np.full(20, -0.5))
    assert "the cheap baseline plain fine-tuning (sft) forgets least" in headline([worse], [], failures=0)
