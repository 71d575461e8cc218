"""Settings of the downstream fine-tuning: plain validated data; where values come from is the caller's business."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from agent.settings import Section
from trainer.settings import LoraSettings

# Statuses of the rows without an accepted rewrite.
IN_EXPERTS_WORDS = ("fallback", "expert")
# Settings of a fine-tuning that change none of its steps: how it is saved, and whether activations are kept.
WITHOUT_EFFECT = {"save_every", "keep_checkpoints", "merge", "gradient_checkpointing"}


class WeightSettings(Section):
    """How much each completion token counts, decided once by the frozen base model; see `trainer.sft.weights`."""

    kind: Literal["none", "mask", "entropy", "prob"] = "none"
    apply_to: Literal["fallback", "all"] = Field(
        "fallback", description="rows whose tokens are weighted: those without an accepted rewrite, or every row"
    )
    mask_perplexity: float = Field(
        2.5, gt=1, description="mask drops tokens of a higher perplexity, that is over ln(2.5) nats (arXiv 2501.14315)"
    )
    entropy_top_k: int = Field(20, ge=2, description="likeliest tokens that the entropy is taken of (arXiv 2601.02151)")


class SftSettings(Section):
    """Supervised fine-tuning of the base model."""

    method: Literal["lora", "full"] = "lora"
    lora: LoraSettings = LoraSettings()
    merge: bool = Field(True, description="with lora: write the whole model too, not the adapter alone")
    loss: Literal["nll", "dft"] = Field("nll", description="dft scales each token by its own probability (2508.05629)")
    weights: WeightSettings = WeightSettings()
    kl_weight: float = Field(
        0.0, ge=0, description="weight of the forward KL to the base model, nats a completion token; 0 computes none"
    )
    learning_rate: float = Field(1e-4, gt=0, description="with full, a fifth to a tenth of this is usual")
    schedule: Literal["constant_with_warmup", "cosine", "linear"] = "cosine"
    warmup: float = Field(0.05, ge=0, le=1, description="share of the steps in which the learning rate rises")
    epochs: float = Field(1.0, gt=0, description="passes over the data; steps overrides it")
    steps: int | None = Field(None, ge=1, description="updates, None for as many as the epochs make")
    batch_rows: int = Field(16, ge=1, description="rows of one update, over all workers")
    rows_per_pass: int = Field(4, ge=1, description="rows in one forward and backward pass; bounds memory")
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    gradient_checkpointing: bool = Field(
        True, description="compute activations anew in the backward pass: less memory, slower"
    )
    max_length: int | None = Field(
        None,
        ge=8,
        description="tokens of prompt and completion, None for the model's context; longer rows are left out",
    )
    loss_rows: int = Field(256, ge=1, description="rows whose loss is measured before and after, drawn by the seed")
    save_every: int = Field(50, ge=1, description="updates between two checkpoints")
    keep_checkpoints: int = Field(1, ge=1)
    seed: int = 0
