"""What an exam found, as data that goes through JSON unchanged."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from agent.settings import Section

Kind = Literal["accuracy", "divergence", "retention"]

# What the name of a divergence begins with; the rest is the task on whose prompts it is measured.
DIVERGENCE = "kl:"


class Measure(Section):
    """A figure and its standard error, None for fewer than two rows; a perplexity may be infinite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=True, ser_json_inf_nan="strings")

    value: float
    stderr: float | None


class TaskResult(Section):
    """One task of an exam; every row it was measured on is in the samples file."""

    kind: Kind
    data: str = Field(description="what tells these rows from others: a SHA-256, or the data set of the hub")
    rows: int = Field(0, description="rows that were measured")
    left_out: dict[str, int] = Field(default_factory=dict, description="rows that were not, by reason")
    cut: int = Field(0, description="rows of which a context was cut from the left to fit that of the model")
    timeouts: int = Field(0, description="answer comparisons that the time limit ended; each counts as not equal")
    metrics: dict[str, Measure] = Field(default_factory=dict)
    primary: str = Field(description="the metric that stands for the task")
    higher_is_better: bool = True
    chat_template: bool = Field(description="whether prompts were put into the model's chat format")
    seconds: float = 0.0
    not_run: str | None = Field(None, description="why there are no figures")


class ModelIdentity(Section):
    """Which weights were examined."""

    name: str
    weights_sha256: str
    tokenizer_sha256: str | None = Field(
        None, description="of the files of tokenizer and chat template; None in older results"
    )
    adapter: str | None = None
    adapter_sha256: str | None = Field(None, description="of its weights and its configuration")


class EvaluationResult(Section):
    """An exam: who sat it, under which conditions, and the tasks that are finished."""

    model: ModelIdentity
    base: ModelIdentity | None = Field(None, description="what the divergence is measured from")
    settings: dict[str, Any] = Field(description="of the exam; `dtype` is the type of numbers that was computed in")
    notes: list[str] = Field(default_factory=list, description="what a person should know of all figures")
    tasks: dict[str, TaskResult] = Field(default_factory=dict)
