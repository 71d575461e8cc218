"""Options of the update on a real trainer: loss and gradient are those that can be worked out for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch import Tensor

from agent.demonstrations import Demonstration, Message
from agent.engine import Completion
from agent.engine.loading import load_model
from agent.engine.lora import LoraHost
from agent.reward import GroupReward
from agent.settings import EngineSettings
from tests.one_step import END, MAX_TOKENS, train_on
from tests.tiny_chat import write_tiny_model
from trainer.grpo import RewriteTrainer
from trainer.packing import completion_logprobs
from trainer.rollout import Rewrite, RolloutGroup
from trainer.settings import TrainSettings

BETA = 0.5
PROMPT = [4, 5, 6, 7]
# Two groups of two; the last was cut off.
COMPLETIONS = [[8, 9, END], [10, 11, 12, END], [9, 12, 8, 10, END], [13, 14]]
REWARDS = [[1.0, 0.0], [1.0, 0.5]]
# With `scale_rewards = "none"`: rewards less the mean of their group.
ADVANTAGES = torch.tensor([[0.5], [-0.5], [0.25], [-0.25]])


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def _silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of TRL's remark on roll-outs of one's own."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")


def new_policy(model_folder: Path) -> PeftModel:
    """A base model with an adapter of random weights, the same each time."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=256, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    return LoraHost(load_model(model_folder, EngineSettings(dtype="float32", device="cpu"))).add_trainable(
        "policy", config
    )


def group_of(number: int) -> RolloutGroup:
    drawn = [
        Rewrite(Completion(ids, "", [-1.0] * len(ids), "stop" if ids[-1] == END else "length"))
        for ids in COMPLETIONS[2 * number : 2 * number + 2]
    ]
    row = Demonstration(f"row {number}", (Message("user", "What"),), "It")
    return RolloutGroup(row, PROMPT, 3, drawn, reward=GroupReward(REWARDS[number], [0.0, 0.0], [0.0, 0.0]))


def train(policy: PeftModel, folder: Path, **optimizer: Any) -> list[dict[str, float]]:
    """What is logged of each update of one step on both groups."""
    options = {"groups_per_pass": 2, "warmup_steps": 0, "scale_rewards": "none", **optimizer}
    settings = TrainSettings.model_validate(
        {"steps": 1, "groups": 2, "samples": 2, "temperature": 1.0, "optimizer": options}
    )
    logged: list[dict[str, float]] = []
    groups = [group_of(number) for number in range(2)]
    train_on(RewriteTrainer, groups, policy, settings, folder, on_log=lambda step, logs: logged.append(dict(logs)))
    return [logs for logs in logged if "loss" in logs]


def mask_of(rows: slice = slice(None)) -> Tensor:
    return torch.tensor([[float(i < len(ids)) for i in range(5)] for ids in COMPLETIONS])[rows]


def logprobs_of(policy: PeftModel, rows: slice = slice(None)) -> Tensor:
    """Of the completions, (B, C), with gradients."""
    ids = torch.tensor([[*ids, *[0] * (5 - len(ids))] for ids in COMPLETIONS])[rows]
    prompts = torch.tensor([PROMPT] * len(ids))
    logprobs, _ = completion_logprobs(policy, prompts, torch.ones_like(prompts), ids, mask_of(rows).long(), 1.0)
    return logprobs


def gradient_norm(policy: PeftModel, loss: Tensor) -> float:
    policy.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    grads = [weight.grad for weight in policy.parameters() if weight.grad is not None]
    return float(torch.nn.utils.get_total_norm(grads))


def surrogate(logprobs: Tensor) -> Tensor:
    """Of tokens that were drawn from these very weights."""
    return -ADVANTAGES * torch.exp(logprobs - logprobs.detach())


def by_token(terms: Tensor, mask: Tensor) -> Tensor:
    return (terms * mask).sum() / mask.sum()


def by_rewrite(terms: Tensor, mask: Tensor) -> Tensor:
    return ((terms * mask).sum(1) / mask.sum(1)).mean()


def by_longest(terms: Tensor, mask: Tensor) -> Tensor:
    return (terms * mask).sum() / (len(mask) * MAX_TOKENS)


def without_cut(terms: Tensor, mask: Tensor) -> Tensor:
    kept = mask.clone()
    kept[-1] = 0
    return by_token(terms, kept)


@pytest.mark.parametrize(
    ("options", "mean"),
    [
        ({"loss": "dapo"}, by_token),
        ({"loss": "grpo"}, by_rewrite),
        ({"loss": "gspo"}, by_rewrite),
        ({"loss": "dr_grpo"}, by_longest),
        ({"mask_truncated": True}, without_cut),
        ({"gradient_checkpointing": False}, by_token),
    ],
)
def test_a_loss_weighs_the_tokens_of_rewrites_as_its_name_says(
    options: dict[str, Any], mean: Callable[[Tensor, Tensor], Tensor], model_folder: Path, tmp_path: Path
) -> None:
    policy = new_policy(model_folder)
    expected = mean(surrogate(logprobs_of(policy)), mask_of())
    norm = gradient_norm(policy, expected)
    [logged] = train(new_policy(model_folder), tmp_path, **options)
    assert logged["loss"] == pytest.approx(expected.item(), abs=1e-6)
    assert logged["grad_norm"] == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize(("checkpointing", "times"), [(False, 1), (True, 2)])
def test_a_layer_whose_activations_are_not_kept_is_computed_once_more(
    checkpointing: bool, times: int, model_folder: Path, tmp_path: Path
) -> None:
    policy = new_policy(model_folder)
    calls = []
    policy.get_decoder().layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    train(policy, tmp_path, gradient_checkpointing=checkpointing)
    assert len(calls) == times


def test_a_weight_of_the_divergence_adds_it_to_the_loss_and_logs_it_of_every_token(
    model_folder: Path, tmp_path: Path
) -> None:
    policy = new_policy(model_folder)
    logprobs = logprobs_of(policy)
    with policy.disable_adapter(), torch.no_grad():
        ratio = logprobs_of(policy) - logprobs
    kl = torch.exp(ratio) - ratio - 1
    mask = mask_of()
    expected = by_token(surrogate(logprobs) + BETA * kl, mask)
    plain = by_token(surrogate(logprobs), mask)
    [logged] = train(new_policy(model_folder), tmp_path, beta=BETA)
    assert logged["kl"] == pytest.approx(by_token(kl, mask).item(), rel=1e-4)
    assert logged["loss"] == pytest.approx(expected.item(), rel=1e-4)
    assert logged["loss"] - plain.item() == pytest.approx(BETA * logged["kl"], rel=1e-3)


def test_each_update_of_a_rollout_has_its_groups_and_measures_its_ratio_from_the_weights_that_drew(
    model_folder: Path, tmp_path: Path
) -> None:
    policy, rate, clip = new_policy(model_folder), 0.1, 0.5
    with torch.no_grad():
        drawn = logprobs_of(policy)
    optimizer = torch.optim.AdamW([w for w in policy.parameters() if w.requires_grad], lr=rate, weight_decay=0.0)
    expected = []
    for rows in (slice(0, 2), slice(2, 4)):
        ratio = torch.exp(logprobs_of(policy, rows) - drawn[rows])
        advantages = ADVANTAGES[rows]
        terms = -torch.min(ratio * advantages, ratio.clamp(0.8, 1.28) * advantages)
        loss = (terms * mask_of(rows)).sum() / (mask_of().sum() / 2)
        expected.append((loss.item(), gradient_norm(policy, loss)))
        torch.nn.utils.clip_grad_norm_(policy.parameters(), clip)
        optimizer.step()
    logged = train(
        new_policy(model_folder),
        tmp_path,
        groups_per_pass=1,
        updates_per_rollout=2,
        learning_rate=rate,
        max_grad_norm=clip,
    )
    assert [logs["loss"] for logs in logged] == pytest.approx([loss for loss, _ in expected], abs=2e-6)
    assert [logs["grad_norm"] for logs in logged] == pytest.approx([norm for _, norm in expected], rel=1e-3)
    unmoved = (-ADVANTAGES[2:] * mask_of(slice(2, 4))).sum().item() / 7
    assert abs(expected[1][0] - unmoved) > 1e-4
