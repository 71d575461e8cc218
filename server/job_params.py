"""Params of jobs, a model a kind. Nothing in them is a path, and everything that costs time or memory is bounded."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from agent.adapters import NAME_PATTERN
from server.schemas import Integer, RequestBody

Name = Annotated[str, Field(pattern=f"^{NAME_PATTERN}$", description="what it makes is the next version of this name")]
Reference = Annotated[str, Field(min_length=1, max_length=200)]
Seed = Annotated[int, Field(ge=0, lt=2**31), Integer]
Limit = Annotated[int, Field(ge=1, le=10**9, description="rows of the input that are read at most"), Integer]
Steps = Annotated[int, Field(ge=1, le=100_000), Integer]
LearningRate = Annotated[float, Field(gt=0, le=1)]
Rank = Annotated[int, Field(ge=1, le=512, description="of the LoRA"), Integer]
Temperature = Annotated[float, Field(gt=0, le=10)]
Samples = Annotated[int, Field(ge=2, le=64), Integer]


class TrainParams(RequestBody):
    """Training of the rewriting agent, on the service's own base model, gate and sampling."""

    name: Name
    reward: Literal["gate_only", "paper", "rewright"] | None = None
    steps: Annotated[Steps, Field(description="generations")] | None = None
    groups: Annotated[int, Field(ge=4, le=1024, multiple_of=4, description="demonstrations a step"), Integer] | None = (
        None
    )
    samples: Annotated[Samples, Field(description="rewrites of one demonstration")] | None = None
    temperature: Temperature | None = None
    learning_rate: LearningRate | None = None
    rank: Rank | None = None
    eval_rows: Annotated[int, Field(ge=1, le=10_000, description="rows held out"), Integer] | None = None
    eval_samples: Annotated[int, Field(ge=1, le=64), Integer] | None = None
    eval_every: Steps | None = None
    save_every: Annotated[Steps, Field(description="steps between two checkpoints")] | None = None
    seed: Seed | None = None
    limit: Limit | None = None


class SftParams(RequestBody):
    """Fine-tuning of the service's base model."""

    name: Name
    method: Literal["lora", "full"] | None = None
    rank: Rank | None = None
    loss: Literal["nll", "dft"] | None = None
    weights: Literal["none", "mask", "entropy", "prob"] | None = None
    kl_weight: Annotated[float, Field(ge=0, le=100)] | None = None
    learning_rate: LearningRate | None = None
    epochs: Annotated[float, Field(gt=0, le=1000)] | None = None
    steps: Annotated[Steps, Field(description="updates, in place of epochs")] | None = None
    batch_rows: Annotated[int, Field(ge=4, le=4096, multiple_of=4), Integer] | None = None
    max_length: (
        Annotated[int, Field(ge=8, le=2**20, description="tokens; longer rows are left out"), Integer] | None
    ) = None
    save_every: Annotated[Steps, Field(description="updates between two checkpoints")] | None = None
    seed: Seed | None = None
    limit: Limit | None = None


class EvaluateParams(RequestBody):
    """An exam of the service's base model, of an adapter on it, or of a model that an `sft` job made."""

    adapter: Annotated[Reference, Field(description="`name` for its active version, or `name@version`")] | None = None
    model: Annotated[Reference, Field(description="`name` for its latest version, or `name@version`")] | None = None
    tasks: list[Annotated[str, Field(max_length=64)]] = Field(
        [], max_length=16, description="benchmarks that the service offers, beside the questions of the input file"
    )
    samples: Annotated[int, Field(ge=0, le=64, description="beside the greedy answer"), Integer] | None = None
    temperature: Temperature | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=32768, description="of one answer"), Integer] | None = None
    seed: Seed | None = None
    limit: Annotated[int, Field(ge=1, le=10**9, description="rows a task, a fixed subset"), Integer] | None = None
