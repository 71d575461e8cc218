"""The learning rate of each update, against that of transformers one update later."""

from __future__ import annotations

import pytest
import torch
from transformers import get_scheduler

from trainer.schedule import rate_factor
from trainer.settings import OptimizerSettings


@pytest.mark.parametrize("schedule", ["constant_with_warmup", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_the_warm_up_begins_above_zero_and_all_else_is_as_in_transformers(schedule: str, warmup: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    settings = OptimizerSettings.model_validate({"schedule": schedule, "warmup_steps": warmup})
    later = get_scheduler(schedule, optimizer, num_warmup_steps=warmup + 1, num_training_steps=11)
    for update in range(10):
        optimizer.step()
        later.step()
        assert rate_factor(update, settings, 10) == pytest.approx(later.get_last_lr()[0])


def test_four_updates_of_warm_up_rise_by_fifths() -> None:
    settings = OptimizerSettings(warmup_steps=4)
    factors = [rate_factor(update, settings, 100) for update in range(6)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
