"""Settings of the rewriting agent's training: plain validated data; where values come from is the caller's business."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from agent.settings import RewardSettings, Section


class LoraSettings(Section):
    """Shape of the adapter."""

    rank: int = Field(64, ge=1, le=512)
    alpha: int = Field(32, ge=1)
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"


class OptimizerSettings(Section):
    """One update of the adapter."""

    learning_rate: float = Field(1e-4, gt=0)
    warmup_steps: int = Field(5, ge=0)
    schedule: Literal["constant_with_warmup", "cosine", "linear"] = "constant_with_warmup"
    max_grad_norm: float = Field(0.5, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    loss: Literal["dapo", "dr_grpo", "grpo", "gspo"] = "dapo"
    epsilon: float = Field(0.2, gt=0, description="clip range of the importance ratio, downwards")
    epsilon_high: float = Field(0.28, gt=0, description="clip range upwards (clip-higher, arXiv 2503.14476)")
    beta: float = Field(0.0, ge=0, description="weight of the KL term to the base model")
    scale_rewards: Literal["group", "batch", "none"] = Field(
        "batch",
        description="whose spread of rewards advantages are divided by; with the group's own, a lead of 0.01 nats "
        "where all pass pushes as hard as one of 1.0",
    )
    mask_truncated: bool = Field(
        False, description="leave rewrites that were cut off out of the update, in place of counting them as failed"
    )
    updates_per_rollout: int = Field(1, ge=1, description="optimizer steps that share one generation")
    groups_per_pass: int = Field(4, ge=1, description="groups in one forward and backward pass; bounds memory")
    gradient_checkpointing: bool = Field(
        True, description="compute activations anew in the backward pass: less memory, slower"
    )


class WarmStartSettings(Section):
    """Imitation of given rewrites before the reinforcement learning, so that some rewrites pass from the first step."""

    file: Path | None = Field(
        None, description="demonstrations with a `candidate` beside them, as `rewright check` reads; None for none"
    )
    epochs: int = Field(2, ge=1, description="passes over the rows whose candidate passes the gate")
    rows: int = Field(16, ge=1, description="rows an update")
    learning_rate: float = Field(5e-4, gt=0)


class TrainSettings(Section):
    """GRPO training of the rewriting agent."""

    steps: int = Field(200, ge=1, description="generations")
    groups: int = Field(16, ge=1, description="demonstrations a step")
    samples: int = Field(8, ge=2, description="rewrites of one demonstration: the group, K")
    temperature: float = Field(0.4, gt=0, le=10, description="of the roll-outs; serve the adapter with the same")
    refills: int = Field(
        1, ge=0, description="times a step draws further demonstrations in place of groups without signal"
    )
    curriculum: bool = Field(True, description="begin with short experts, prefer rows that sometimes pass")
    seed: int = 0
    eval_rows: int = Field(64, ge=1, description="rows held out from training")
    eval_samples: int = Field(4, ge=1, le=64, description="candidates of a held-out row")
    eval_every: int = Field(20, ge=1, description="steps between two held-out evaluations")
    save_every: int = Field(10, ge=1, description="steps between two checkpoints")
    keep_checkpoints: int = Field(2, ge=1)
    sample_every: int = Field(10, ge=1, description="steps between two entries of samples.md, and between two KLs")
    engine_memory: float = Field(
        0.4, gt=0, lt=1, description="share of the GPU's memory for a vLLM engine; the trainer has a model of its own"
    )
    warm_start: WarmStartSettings = WarmStartSettings()
    reward: RewardSettings = RewardSettings()
    lora: LoraSettings = LoraSettings()
    optimizer: OptimizerSettings = OptimizerSettings()

    @property
    def optimizer_steps(self) -> int:
        """Updates of the whole training."""
        return self.steps * self.optimizer.updates_per_rollout

    @model_validator(mode="after")
    def _divisible(self) -> TrainSettings:
        if self.groups % (self.optimizer.groups_per_pass * self.optimizer.updates_per_rollout):
            raise ValueError(
                f"groups ({self.groups}) must be divisible by optimizer.groups_per_pass x "
                f"optimizer.updates_per_rollout ({self.optimizer.groups_per_pass} x "
                f"{self.optimizer.updates_per_rollout}), so that groups stay whole"
            )
        return self
