"""A training whose numbers are no longer finite is to be noticed: the logs must not hide it."""

from __future__ import annotations

from pathlib import Path

from trainer.grpo import grpo_config
from trainer.settings import TrainSettings


def test_a_loss_that_is_no_number_is_not_logged_as_another(tmp_path: Path) -> None:
    config = grpo_config(TrainSettings(), tmp_path, groups=4, max_tokens=8, use_cpu=True)
    assert config.logging_nan_inf_filter is False
