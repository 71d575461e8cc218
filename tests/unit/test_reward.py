"""Reward terms against values worked out by hand, and the ways in which published rewards can be gamed."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from agent.reward import anchored_distance, group_reward, marginal_diversity, mean_diversity, standardised_distance
from agent.settings import RewardSettings

ANCHORED = RewardSettings(preset="rewright")
PAPER = RewardSettings(preset="paper")
EXPERT = [1.5] * 40
NOTHING = np.zeros((0, 2), dtype=np.float32)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def unit(*degrees: float) -> np.ndarray:
    return np.array([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees], dtype=np.float32)


def test_the_gate_alone_pays_one_or_nothing() -> None:
    reward = group_reward(RewardSettings(preset="gate_only"), [True, False], [None, None], [], NOTHING)
    assert reward.reward == [1.0, 0.0]


@pytest.mark.parametrize("settings", [PAPER, ANCHORED])
def test_what_fails_the_gate_earns_nothing_however_natural_it_is(settings: RewardSettings) -> None:
    reward = group_reward(settings, [False, True], [[0.0] * 40, [2.0] * 40], EXPERT, unit(0))
    assert reward.reward[0] == reward.distance[0] == reward.diversity[0] == 0
    assert reward.reward[1] > 1


def test_the_reward_is_the_gate_times_one_plus_the_weighted_terms() -> None:
    reward = group_reward(PAPER, [True, True], [[1.0], [2.0]], EXPERT, unit(0, 60))
    # z = -1 and 1; (1 - cos 60) / 2 = 0.25, and without either no pair is left.
    assert reward.distance == pytest.approx([sigmoid(1), sigmoid(-1)])
    assert reward.diversity == pytest.approx([0.25, 0.25], abs=1e-6)
    assert reward.reward == pytest.approx(
        [1 + 0.35 * sigmoid(1) + 0.5 * 0.25, 1 + 0.35 * sigmoid(-1) + 0.5 * 0.25], abs=1e-6
    )


def test_the_published_distance_hides_magnitude() -> None:
    near, far = standardised_distance([[1.0], [1.01]]), standardised_distance([[1.0], [2.0]])
    assert near == pytest.approx(far)


def test_the_anchored_distance_tells_a_small_lead_from_a_large_one() -> None:
    small = anchored_distance([[1.0] * 40, [1.01] * 40], EXPERT, ANCHORED)
    large = anchored_distance([[1.0] * 40, [2.0] * 40], EXPERT, ANCHORED)
    assert small[0] - small[1] == pytest.approx(0.004, abs=0.001)
    assert large[0] - large[1] > 0.3


def test_the_anchored_distance_is_worked_out_by_hand() -> None:
    # body 1.5 against 1.0 over tau 0.5, weight 0.75; tail 1.5 against 1.0 over tau 2, weight 0.25
    expected = 0.75 * sigmoid(0.5 / 0.5) + 0.25 * sigmoid(0.5 / 2.0)
    assert anchored_distance([[1.0] * 40], EXPERT, ANCHORED) == pytest.approx([expected])


def test_a_rewrite_as_surprising_as_the_expert_gets_one_half() -> None:
    assert anchored_distance([EXPERT], EXPERT, ANCHORED) == pytest.approx([0.5])


def test_one_feasible_rewrite_alone_has_a_signal() -> None:
    natural, odd = (anchored_distance([[nats] * 40], EXPERT, ANCHORED)[0] for nats in (0.5, 2.5))
    assert natural > 0.7 > 0.3 > odd
    assert standardised_distance([[0.5] * 40]) == standardised_distance([[2.5] * 40]) == [0.5]


def test_beyond_twice_the_experts_length_appended_filler_never_raises_the_anchored_distance() -> None:
    rewrite = [0.2, 3.0, 1.0, 0.1] * 20
    padded = [rewrite + [0.01] * filler for filler in (0, 1, 20, 400)]
    values = anchored_distance(padded, EXPERT, ANCHORED)
    assert all(later < earlier for earlier, later in pairwise(values))
    means = [sum(p) / len(p) for p in padded]
    assert all(later < earlier for earlier, later in pairwise(means)), "while it does lower the plain mean"


def test_a_padded_copy_of_the_expert_loses_to_a_natural_rewrite_of_a_higher_mean() -> None:
    surprising = [0.5, 0.5, 1.0, 4.0] * 10
    padded, natural = surprising + [0.01] * 120, [0.2, 0.6, 0.9, 1.2] * 15
    assert sum(padded) / len(padded) < sum(natural) / len(natural)
    filler, rewrite = anchored_distance([padded, natural], surprising, ANCHORED)
    assert rewrite - filler > 0.05


def test_a_longer_rewrite_in_words_that_the_base_model_expects_beats_a_terse_one() -> None:
    terse, longer = [1.2] * 40, [0.9] * 70
    less, more = anchored_distance([terse, longer], EXPERT, ANCHORED)
    assert more > less > 0.5


def test_the_published_weights_are_those_of_the_published_reward() -> None:
    published = RewardSettings.model_validate({"preset": "paper"})
    assert (published.distance_weight, published.diversity_weight) == (0.35, 0.5)
    given = RewardSettings.model_validate({"preset": "paper", "distance_weight": 1.0})
    assert (given.distance_weight, given.diversity_weight) == (1.0, 0.5)


def test_one_shocking_token_costs_more_than_its_share_of_the_mean() -> None:
    even, spiked = [1.0] * 40, [0.8] * 39 + [8.8]
    assert sum(even) == pytest.approx(sum(spiked))
    fair, shocking = anchored_distance([even, spiked], EXPERT, ANCHORED)
    assert fair - shocking > 0.1


def test_the_marginal_diversity_is_worked_out_by_hand() -> None:
    # angles 0, 0, 90: pair distances 0, 0.5, 0.5, their mean 1/3; without the third 0, without another 0.5
    assert marginal_diversity(unit(0, 0, 90)) == pytest.approx([1 / 3 - 0.5, 1 / 3 - 0.5, 1 / 3], abs=1e-6)


def test_near_copies_and_other_wordings_differ_by_a_factor_that_matters() -> None:
    copies, wordings = mean_diversity(unit(0, 3)), mean_diversity(unit(0, 20))
    assert copies[0] == pytest.approx(1 - math.exp(-(1 - math.cos(math.radians(3))) / 2 / 0.01), abs=1e-5)
    assert wordings[0] / copies[0] > 10
    assert wordings[0] > 0.9


def test_equally_distinct_rewrites_earn_diversity_where_the_marginal_term_vanishes() -> None:
    triangle = unit(0, 120, 240)
    assert marginal_diversity(triangle) == pytest.approx([0, 0, 0], abs=1e-6)
    assert min(mean_diversity(triangle)) > 0.99


def test_one_alone_has_no_diversity() -> None:
    assert mean_diversity(unit(0)) == marginal_diversity(unit(0)) == [0.0]


def test_a_group_without_a_feasible_rewrite_earns_nothing() -> None:
    assert group_reward(ANCHORED, [False, False], [None, None], [], NOTHING).reward == [0.0, 0.0]


def test_a_feasible_rewrite_without_surprisals_is_refused() -> None:
    with pytest.raises(ValueError, match="surprisals"):
        group_reward(ANCHORED, [True], [None], EXPERT, unit(0))


def test_embeddings_must_be_one_a_feasible_rewrite() -> None:
    with pytest.raises(ValueError, match="2 embeddings for 1"):
        group_reward(ANCHORED, [True, False], [[1.0], None], EXPERT, unit(0, 1))
