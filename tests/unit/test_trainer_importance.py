"""Truncated importance weights, and what a trainer makes of an update: its gradient, rate, device and figures."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from peft import LoraConfig, PeftModel
from trl import GRPOConfig

from agent.demonstrations import Demonstration, Message
from agent.engine import Completion
from agent.engine.loading import load_model
from agent.engine.lora import LoraHost
from agent.reward import GroupReward
from agent.settings import EngineSettings
from tests.one_step import END, train_on
from tests.tiny_chat import write_tiny_model
from trainer.exceptions import DivergedError
from trainer.grpo import RewriteTrainer, grpo_config
from trainer.importance import correction_metrics, kl_terms, truncated_weights
from trainer.packing import completion_logprobs
from trainer.rollout import Rewrite, RolloutGroup
from trainer.settings import TrainSettings

PROMPT = [4, 5, 6, 7]
COMPLETIONS = [[8, 9, END], [10, 11, 12, END]]


def test_a_token_that_the_trainer_makes_likelier_counts_more_up_to_the_cut() -> None:
    trained = torch.tensor([[-1.0, -1.0, -1.0, -1.0]])
    drawn = torch.tensor([[-1.0, -1.5, -9.0, -9.0]])
    mask = torch.tensor([[1, 1, 1, 0]])
    assert truncated_weights(trained, drawn, mask)[0].tolist() == pytest.approx([1.0, math.exp(0.5), 2.0, 1.0])
    assert correction_metrics(trained, drawn, mask) == pytest.approx(
        {"engine/difference": (0 + 0.5 + 8) / 3, "engine/weight": (1 + math.exp(0.5) + 2) / 3, "engine/cut": 1 / 3}
    )


def test_a_masked_token_whose_log_probability_is_no_number_weighs_as_any_other() -> None:
    trained, drawn = torch.tensor([[-1.0, math.nan, -1.0]]), torch.tensor([[-1.0, -1.0, -math.inf]])
    mask = torch.tensor([[1, 0, 0]])
    assert truncated_weights(trained, drawn, mask)[0].tolist() == [1.0, 1.0, 1.0]
    assert correction_metrics(trained, drawn, mask)["engine/weight"] == 1


def test_of_no_token_nothing_is_measured() -> None:
    nothing = torch.zeros(1, 2)
    assert all(math.isnan(value) for value in correction_metrics(nothing, nothing, nothing).values())


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


def new_policy(model_folder: Path) -> PeftModel:
    """A base model with an adapter of random weights, the same each time."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=256, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    return LoraHost(load_model(model_folder, EngineSettings(dtype="float32", device="cpu"))).add_trainable(
        "policy", config
    )


def logprobs_of(policy: PeftModel) -> torch.Tensor:
    with torch.no_grad():
        logprobs, _ = completion_logprobs(
            policy,
            torch.tensor([PROMPT] * 2),
            torch.ones(2, len(PROMPT)),
            torch.tensor([[*COMPLETIONS[0], 0], COMPLETIONS[1]]),
            torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]),
            temperature=1.0,
        )
    return logprobs


def logs_of_a_step(
    model_folder: Path,
    folder: Path,
    loss: str,
    likelier: float = 1.0,
    *,
    correct: bool = False,
    broken: bool = False,
    measured_at: int | None = None,
    warmup_steps: int = 0,
    idle_groups: int = 0,
) -> dict[str, float]:
    """What is logged of one update on a group whose tokens are `likelier` times what they were drawn with.

    `idle_groups` more have equal rewards, each in a pass of its own.
    """
    policy = new_policy(model_folder)
    trained = logprobs_of(policy)
    if broken:
        next(p for p in policy.parameters() if p.requires_grad).data.fill_(math.nan)
    drawn = (trained - math.log(likelier)).tolist()
    group = RolloutGroup(
        Demonstration("row", (Message("user", "What"),), "It"),
        PROMPT,
        3,
        [Rewrite(Completion(ids, "", of[: len(ids)], "stop")) for ids, of in zip(COMPLETIONS, drawn, strict=True)],
        reward=GroupReward([1.0, 0.0], [0.0, 0.0], [0.0, 0.0]),
    )
    idle = replace(group, reward=GroupReward([1.0, 1.0], [0.0, 0.0], [0.0, 0.0]))
    groups = [group, *[idle] * idle_groups]
    optimizer = {"groups_per_pass": 1, "warmup_steps": warmup_steps, "loss": loss}
    settings = TrainSettings.model_validate(
        {"steps": 1, "groups": len(groups), "samples": 2, "temperature": 1.0, "optimizer": optimizer}
    )
    logged: dict[str, float] = {}
    train_on(
        RewriteTrainer,
        groups,
        policy,
        settings,
        folder,
        on_log=lambda step, logs: logged.update(logs),
        correct=correct,
        measures_kl=lambda step: step == measured_at,
    )
    return logged


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of TRL's remark on roll-outs of one's own."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("loss", ["dapo", "gspo"])
def test_the_gradient_grows_with_the_weights_of_the_tokens(loss: str, model_folder: Path, tmp_path: Path) -> None:
    def step(likelier: float, *, correct: bool) -> dict[str, float]:
        return logs_of_a_step(model_folder, tmp_path, loss, likelier, correct=correct)

    plain = step(1.0, correct=False)
    assert plain["grad_norm"] > 0
    assert "engine/weight" not in plain
    assert step(1.5, correct=False)["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-4)
    for likelier, weight, cut in [(1.0, 1.0, 0), (1.5, 1.5, 0), (10.0, 2.0, 1)]:
        corrected = step(likelier, correct=True)
        assert corrected["grad_norm"] == pytest.approx(weight * plain["grad_norm"], rel=1e-4)
        assert corrected["engine/weight"] == pytest.approx(weight, rel=1e-5)
        assert corrected["engine/difference"] == pytest.approx(math.log(likelier), abs=1e-5)
        assert corrected["engine/cut"] == cut


def test_a_token_of_equal_probability_adds_nothing_to_the_divergence_and_others_do() -> None:
    trained, base = torch.tensor([[-1.0, -1.0, -1.0]]), torch.tensor([[-1.0, -1.5, -0.5]])
    assert kl_terms(trained, base)[0].tolist() == pytest.approx([0, math.exp(-0.5) - 0.5, math.exp(0.5) - 1.5])


@pytest.mark.usefixtures("silent")
def test_the_divergence_from_the_base_model_is_logged_of_the_steps_that_are_asked_for(
    model_folder: Path, tmp_path: Path
) -> None:
    policy = new_policy(model_folder)
    trained = logprobs_of(policy)
    with policy.disable_adapter():
        base = logprobs_of(policy)
    measured, plain = (logs_of_a_step(model_folder, tmp_path, "dapo", measured_at=step) for step in (0, 1))
    assert measured["kl"] == pytest.approx(kl_terms(trained, base).sum().item() / 7, rel=1e-4)
    assert measured["kl"] > 1e-4
    assert "kl" not in plain
    assert measured["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-6)


@pytest.mark.usefixtures("silent")
def test_an_update_that_is_no_number_ends_the_training_and_names_its_rows(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="step 1: the norm of the gradient is nan in the batch of rows row;"):
        logs_of_a_step(model_folder, tmp_path, "dapo", broken=True)


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("loss", ["dapo", "gspo"])
def test_passes_without_a_signal_do_not_look_like_a_collapse_of_the_entropy(
    loss: str, model_folder: Path, tmp_path: Path
) -> None:
    alone, among_idle = (logs_of_a_step(model_folder, tmp_path, loss, idle_groups=idle) for idle in (0, 3))
    assert alone["entropy"] > 1
    assert among_idle["entropy"] == pytest.approx(alone["entropy"], rel=1e-6)


@pytest.mark.usefixtures("silent")
def test_the_first_update_of_a_warm_up_has_a_rate(model_folder: Path, tmp_path: Path) -> None:
    full, first_of_four = (
        logs_of_a_step(model_folder, tmp_path, "dapo", warmup_steps=steps)["learning_rate"] for steps in (0, 3)
    )
    assert full == pytest.approx(TrainSettings().optimizer.learning_rate)
    assert first_of_four == pytest.approx(full / 4)


@pytest.mark.usefixtures("silent")
def test_a_model_on_the_cpu_is_trained_there_though_a_gpu_is_seen(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[GRPOConfig] = []

    def config(*arguments: Any, **options: Any) -> NoReturn:
        made.append(grpo_config(*arguments, **options))
        raise RuntimeError("as far as it goes without a GPU")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("trainer.grpo.grpo_config", config)
    with pytest.raises(RuntimeError, match="as far as it goes"):
        logs_of_a_step(model_folder, tmp_path, "dapo")
    assert made[0].use_cpu
    assert made[0].device.type == "cpu"
    assert made[0].disable_dropout
