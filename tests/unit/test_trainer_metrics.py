"""Figures of a batch of groups, worked out by hand."""

from __future__ import annotations

import math

import pytest

from agent.demonstrations import Demonstration, Message
from agent.engine import Completion
from agent.records import Check, Verdict
from agent.reward import GroupReward
from trainer.evaluation import keep
from trainer.metrics import mean, repeated_share, rollout_metrics
from trainer.rollout import Rewrite, RolloutGroup

ROW = Demonstration("a", (Message("user", "?"),), "expert", "1")
PASSED = Verdict(True, (Check("hygiene", True, ""),))
FAILED = Verdict(False, (Check("hygiene", True, ""), Check("math_answer", False, "2 is not 1")))


def rewrite(verdict: Verdict, nats: list[float] | None, tokens: int = 4, finish: str = "stop") -> Rewrite:
    return Rewrite(Completion([7] * tokens, "text", [0.0] * tokens, finish), verdict, nats)  # type: ignore[arg-type]


def group(rewrites: list[Rewrite], rewards: list[float], expert: list[float]) -> RolloutGroup:
    zeros = [0.0] * len(rewards)
    return RolloutGroup(ROW, [1, 2], 8, rewrites, expert, GroupReward(rewards, zeros, zeros))


MIXED = group([rewrite(PASSED, [1.0, 3.0]), rewrite(FAILED, None, 8, "length")], [1.5, 0.0], [4.0, 4.0])
IDLE = group([rewrite(FAILED, None), rewrite(FAILED, None)], [0.0, 0.0], [])


def test_shares_are_of_all_rewrites_and_terms_of_the_feasible_ones() -> None:
    metrics = rollout_metrics([MIXED, IDLE])
    assert metrics["reward"] == pytest.approx(1.5 / 4)
    assert metrics["pass_rate"] == 0.25
    assert metrics["no_signal"] == 0.5
    assert metrics["truncated"] == 0.25
    assert metrics["mismatch"] == 2.0
    assert metrics["expert_mismatch"] == 4.0
    assert metrics["length_ratio"] == 0.5
    assert metrics["failed/math_answer"] == 0.75
    assert "failed/hygiene" not in metrics


def test_without_a_feasible_rewrite_its_terms_are_not_numbers() -> None:
    metrics = rollout_metrics([IDLE])
    assert math.isnan(metrics["mismatch"])
    assert math.isnan(metrics["r_dist"])


def test_repetition_counts_four_grams_that_came_before() -> None:
    assert repeated_share([1, 2, 3, 4, 5]) == 0
    assert repeated_share([1, 2, 3]) == 0
    assert repeated_share([1] * 7) == pytest.approx(3 / 4)


def test_the_mean_of_nothing_is_not_a_number() -> None:
    assert math.isnan(mean([]))


def test_the_least_surprising_feasible_rewrite_is_kept() -> None:
    best = rewrite(PASSED, [1.0])
    assert keep(group([rewrite(PASSED, [2.0]), best, rewrite(FAILED, None)], [1, 1, 0], [3.0])) is best


def test_a_rewrite_no_nearer_than_the_expert_is_not_kept() -> None:
    assert keep(group([rewrite(PASSED, [3.0])], [1.0], [3.0])) is None
