"""A training whose numbers are no longer finite is to be noticed, and what made them so to be named."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import pytest
from peft import LoraConfig

from agent.demonstrations import Demonstration, Message
from agent.engine import Completion
from agent.engine.lora import LoraHost
from agent.reward import GroupReward
from tests.one_step import END, train_on
from tests.tiny_chat import tiny_model
from trainer.exceptions import DivergedError
from trainer.grpo import RewriteTrainer, grpo_config
from trainer.rollout import Rewrite, RolloutGroup
from trainer.settings import TrainSettings

RUINED = "step 2: the norm of the gradient is nan, and no row is to blame: the updates before have ruined the weights; "
OF_ROWS = "step 2: the norm of the gradient is nan in the batch of rows row; look at these rows, or "
ADVICE = "start again in another output with a lower learning rate"


def test_a_loss_that_is_no_number_is_not_logged_as_another(tmp_path: Path) -> None:
    config = grpo_config(TrainSettings(), tmp_path, groups=4, max_tokens=8, use_cpu=True)
    assert config.logging_nan_inf_filter is False


@pytest.mark.parametrize(("grown", "said"), [(1.0, OF_ROWS), (1e4, RUINED), (math.inf, RUINED)])
def test_rows_are_not_blamed_for_weights_that_the_updates_before_have_ruined(
    grown: float, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one real step the model makes no numbers any more, and its trained weights have `grown`."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    policy = LoraHost(tiny_model()).add_trainable("policy", LoraConfig(r=2, target_modules=["q_proj"]))
    rewrites = [Rewrite(Completion(ids, "", [-1.0] * len(ids), "stop")) for ids in ([8, 9, END], [10, END])]
    row = Demonstration("row", (Message("user", "What"),), "It")
    group = RolloutGroup(row, [4, 5], 3, rewrites, reward=GroupReward([1.0, 0.0], [0.0, 0.0], [0.0, 0.0]))
    settings = TrainSettings.model_validate(
        {"steps": 2, "groups": 1, "samples": 2, "optimizer": {"groups_per_pass": 1, "learning_rate": 1e-4}}
    )

    def ruin(*_: object) -> None:
        for weight in policy.parameters():
            weight.data *= grown if weight.requires_grad else math.nan

    with pytest.raises(DivergedError) as caught:
        train_on(RewriteTrainer, [group], policy, settings, tmp_path, on_log=ruin)
    assert str(caught.value) == said + ADVICE


def test_what_a_worker_says_of_its_divergence_arrives() -> None:
    error = DivergedError.of_rows("the loss is nan", [f"row-{i}" for i in range(20)])
    assert "row-15 and 4 more; look at these rows" in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
