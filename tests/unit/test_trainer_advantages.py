"""What TRL makes of a step's rewards: a small lead within a group stays small beside a large one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig

from agent.demonstrations import Demonstration, Message
from agent.engine import Completion
from agent.engine.lora import LoraHost
from agent.reward import group_reward
from tests.one_step import END, train_on
from tests.tiny_chat import tiny_model
from trainer.grpo import RewriteTrainer
from trainer.rollout import Rewrite, RolloutGroup
from trainer.settings import TrainSettings

COMPLETION = [8, 9, 10, END]
EXPERT = [1.5] * len(COMPLETION)
# Nats per token of the two rewrites of each group; all of them pass.
NARROW, WIDE = (0.995, 1.005), (0.5, 1.5)


class WatchedTrainer(RewriteTrainer):
    """Keeps the advantages that its loss gets, (B,)."""

    advantages: list[float]

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        samples = super()._generate_and_score_completions(inputs)
        self.advantages = samples["advantages"].tolist()
        return samples


def group_of(surprisals: tuple[float, float], settings: TrainSettings) -> RolloutGroup:
    targets = [[nats] * len(COMPLETION) for nats in surprisals]
    reward = group_reward(settings.reward, [True, True], targets, EXPERT, np.eye(2, dtype=np.float32))
    rewrites = [Rewrite(Completion(COMPLETION, "", [-1.0] * len(COMPLETION), "stop")) for _ in targets]
    return RolloutGroup(Demonstration("row", (Message("user", "What"),), "It"), [4, 5], 4, rewrites, reward=reward)


def leads(folder: Path, **optimizer: object) -> tuple[float, float]:
    """By how much the better rewrite of the narrow and of the wide group is preferred in one real step."""
    torch.manual_seed(0)
    settings = TrainSettings.model_validate(
        {"steps": 1, "groups": 2, "samples": 2, "optimizer": {"groups_per_pass": 1, **optimizer}}
    )
    groups = [group_of(surprisals, settings) for surprisals in (NARROW, WIDE)]
    policy = LoraHost(tiny_model()).add_trainable("policy", LoraConfig(r=2, target_modules=["q_proj"]))
    better, worse, much_better, much_worse = train_on(WatchedTrainer, groups, policy, settings, folder).advantages
    return better - worse, much_better - much_worse


@pytest.fixture(autouse=True)
def _silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of TRL's remark on roll-outs of one's own."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")


def test_a_lead_of_a_hundredth_nat_pushes_far_less_than_one_of_a_whole_nat(tmp_path: Path) -> None:
    narrow, wide = leads(tmp_path)
    assert 0 < 50 * narrow < wide


def test_divided_by_the_spread_of_their_own_group_both_leads_push_alike(tmp_path: Path) -> None:
    narrow, wide = leads(tmp_path, scale_rewards="group")
    assert narrow == pytest.approx(wide, rel=0.05)
