"""What is drawn: the picture itself is judged by eye, here it is that it comes whole from whatever was measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from trainer.curves import _failures, _trailing_mean, draw_curves
from trainer.history import StepMetrics

TRAIN = {"pass_rate": 0.5, "mismatch": 0.9, "reward": 0.7, "r_dist": 0.6, "r_div": 0.3, "length_ratio": 1.1}
EVAL = {"pass_rate": 0.4, "accepted": 0.6, "mismatch": 1.1, "expert_mismatch": 1.5, "length_ratio": 1.0}


def train(step: int, **metrics: float) -> StepMetrics:
    return StepMetrics(step, "train", metrics)


@pytest.mark.parametrize(
    "records",
    [
        [],
        [StepMetrics(0, "eval", EVAL)],
        [train(1, **TRAIN)],
        [train(1, entropy=0.5), train(2, kl=0.1), train(3)],
        [StepMetrics(0, "eval", EVAL), *(train(step, **TRAIN, kl=0.1, entropy=0.4) for step in range(1, 50))],
        [train(1, **{f"failed/check {number}": 0.05 for number in range(12)})],
        [train(1, surprise=3.0)],
    ],
    ids=["nothing", "an evaluation", "one step", "gaps", "all", "many checks", "an unknown metric"],
)
def test_whatever_was_measured_is_drawn(records: list[StepMetrics], tmp_path: Path) -> None:
    draw_curves(records, tmp_path / "curves.png")
    assert imread(tmp_path / "curves.png").shape == (880, 1650, 4)


def test_values_change_the_picture(tmp_path: Path) -> None:
    for name, reward in (("low", 0.1), ("high", 0.9)):
        draw_curves([train(1, reward=0.0), train(2, reward=reward)], tmp_path / name)
    assert not np.array_equal(imread(tmp_path / "low", "png"), imread(tmp_path / "high", "png"))


def test_an_older_picture_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    png = tmp_path / "curves.png"
    png.write_text("old")
    draw_curves([], png)
    assert imread(png).ndim == 3
    assert list(tmp_path.iterdir()) == [png]


def test_the_mean_of_a_step_looks_back_only() -> None:
    assert _trailing_mean(np.array([3.0, 6.0, 0.0, 3.0])).tolist() == [3.0, 4.5, 3.0, 3.0]


def test_a_long_training_is_smoothed_over_a_twentieth_of_it() -> None:
    step = np.repeat([0.0, 1.0], 50)
    assert _trailing_mean(step)[49:56] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1, 1])


def test_a_check_that_refused_nothing_at_a_step_counts_as_zero() -> None:
    steps, shares = _failures(
        [train(1, **{"failed/a": 0.5}), train(2, **{"failed/b": 0.1}), StepMetrics(2, "eval", {})]
    )
    assert steps.tolist() == [1, 2]
    assert {name: values.tolist() for name, values in shares.items()} == {"a": [0.5, 0.0], "b": [0.0, 0.1]}


def test_the_checks_that_refuse_least_are_shown_together() -> None:
    _, shares = _failures([train(1, **{f"failed/{number}": number / 100 for number in range(1, 10)})])
    assert list(shares) == ["9", "8", "7", "6", "5", "4", "3", "others"]
    assert shares["others"] == pytest.approx([0.03])
