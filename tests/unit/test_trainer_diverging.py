"""A training whose numbers are no longer finite ends, and says at which step and on which rows."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trainer.diverging import EndsWhenDiverged
from trainer.exceptions import DivergedError
from trainer.grpo import RewriteTrainer, grpo_config
from trainer.settings import TrainSettings
from trainer.sft.trainer import DownstreamTrainer


class Clips:
    """What TRL's trainers clip gradients with."""

    def __init__(self, norm: float) -> None:
        self.norm, self.state, self.update_rows = torch.tensor(norm), SimpleNamespace(global_step=6), ["a", "b"]
        self.model = torch.nn.Linear(2, 2)

    def _clip_grad_norm(self, _: Any) -> torch.Tensor:
        return self.norm


class Watched(EndsWhenDiverged, Clips):
    """A trainer as it is mixed together."""


@pytest.mark.parametrize("norm", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_ends_the_training_before_its_update(norm: float) -> None:
    said = rf"step 7: the norm of the gradient is {norm} in the batch of rows a, b; look at these rows, or start again"
    with pytest.raises(DivergedError, match=said) as caught:
        Watched(norm)._clip_grad_norm(None)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value), "as it comes from a worker"


@pytest.mark.parametrize("grown", [1e4, 1e30, float("nan")])
def test_rows_are_not_blamed_for_weights_that_updates_have_ruined(grown: float) -> None:
    watched = Watched(3.5)
    watched._clip_grad_norm(None)
    watched.model.weight.data *= grown
    watched.norm = torch.tensor(float("nan"))
    with pytest.raises(DivergedError) as caught:
        watched._clip_grad_norm(None)
    assert str(caught.value) == (
        "step 7: the norm of the gradient is nan, and no row is to blame: the updates before have ruined the weights; "
        "start again in another output with a lower learning rate"
    )


def test_before_the_first_update_no_update_is_blamed() -> None:
    watched = Watched(float("nan"))
    watched.state.global_step = 0
    watched.model.weight.data.fill_(float("nan"))
    with pytest.raises(DivergedError, match="step 1: the norm of the gradient is nan in the batch of rows a, b;"):
        watched._clip_grad_norm(None)


def test_a_finite_gradient_goes_on() -> None:
    assert Watched(3.5)._clip_grad_norm(None) == 3.5


@pytest.mark.parametrize("trainer", [RewriteTrainer, DownstreamTrainer])
def test_both_trainers_are_watched(trainer: type) -> None:
    assert trainer._clip_grad_norm is EndsWhenDiverged._clip_grad_norm  # type: ignore[attr-defined]


def test_a_loss_that_is_no_number_is_not_logged_as_another(tmp_path: Path) -> None:
    config = grpo_config(TrainSettings(), tmp_path, groups=4, max_tokens=8, use_cpu=True)
    assert config.logging_nan_inf_filter is False
