"""What a comparison found, as data that goes through JSON unchanged: the schema of `results.json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from agent.settings import Section

# `lenient`: the accuracy of the same answers by the lenient check.
RowsKind = Literal["accuracy", "lenient", "divergence", "retention"]
Matching = Literal["steps", "trained tokens", "total compute"]


_FLOOR = 10.0  # points, mean over the task's files


class Figure(Section):
    """A figure with its paired bootstrap interval over rows; see `trainer.compare.numbers.interval`."""

    value: float | None = Field(description="on the rows themselves; None where it is not defined")
    low: float | None = Field(description="percentile over the resamples in which it is defined; None if in none")
    high: float | None
    undefined: float = Field(0.0, description="share of the resamples in which it is not defined")

    @property
    def remark(self) -> str:
        """What a reader must know of the interval; empty for nothing."""
        return f"not defined in {self.undefined:.1%} of the resamples" if self.undefined else ""


class TaskFacts(Section):
    """One table of rows of the exam, and the base model's score; see `trainer.compare.samples`."""

    name: str
    kind: RowsKind
    metric: str
    higher_is_better: bool
    in_points: bool = Field(description="whether its score is a share, of which differences are points")
    rows: int = Field(description="rows that every model was asked")
    base: Figure
    no_answer: float | None = Field(None, description="share of the base model's greedy answers that state none")
    cut_off: float | None = Field(None, description="share of the base model's greedy answers that the limit ended")
    answer_tokens: float | None = Field(None, description="of the base model's greedy answers")


class Spent(Section):
    """What one fine-tuning and its rows cost; see `trainer.compare.cost`. Means over seeds in a point."""

    rewriting_prompt_tokens: float
    rewriting_completion_tokens: float
    scored_tokens: float = Field(description="of rewrites and experts")
    weighed_tokens: float = Field(description="that the base model was asked about for token weights")
    trained_tokens: float
    processed_tokens: float
    rewriting_passes: float
    scoring_passes: float
    training_passes: float
    rewriting_seconds: float = Field(description="scoring included")
    training_seconds: float

    @property
    def passes(self) -> float:
        return self.rewriting_passes + self.scoring_passes + self.training_passes


class LossCurve(Section):
    """Mean surprisal of the completion tokens of each update, nats."""

    steps: list[int]
    nll: list[float]


class Run(Section):
    """One fine-tuning."""

    method: str
    shape: str
    steps: int
    learning_rate: float
    seed: int
    model: str = Field(description="folder below the comparison's")
    statuses: dict[str, int] = Field(description="rows that it trained on, by what the rewriter said of them")
    left_out: dict[str, int] = Field(description="rows that it did not train on, by reason")
    initial_loss: float = Field(description="of the base model on this method's rows, nats a completion token")
    final_loss: float
    curve: LossCurve
    spent: Spent
    scores: dict[str, float]
    kl: dict[str, float] = Field(description="forward KL from the base model by task, nats a token")
    answer_tokens: dict[str, float]
    no_answer: dict[str, float]
    cut_off: dict[str, float]


class Point(Section):
    """A method with one shape, number of steps and learning rate, averaged over seeds."""

    method: str
    shape: str
    steps: int
    learning_rate: float
    seeds: list[int]
    gain: Figure = Field(description="G, points")
    gain_lenient: Figure = Field(description="the same by the lenient check, which needs no stated answer")
    forgetting: Figure = Field(description="F, points; no value where no benchmark's score is a share")
    forgetting_relative: Figure = Field(description="as a share of the base model's scores, perplexities included")
    changes: dict[str, Figure] = Field(description="score minus the base model's: points, or the metric's own unit")
    kl: Figure = Field(description="forward KL from the base model, nats a token, mean over the task's files")
    answer_tokens: dict[str, float]
    no_answer: dict[str, float] = Field(description="share of the greedy answers that state none, by task")
    cut_off: dict[str, float] = Field(description="share of the greedy answers that the limit of tokens ended")
    initial_loss: Figure
    final_loss: float
    spent: Spent
    on_front: bool = Field(description="on its method's Pareto front over learning rates")
    forgets_more: Figure | None = Field(
        None, description="F - F of sft of the same shape, steps and learning rate, points; None where that is not"
    )
    changes_more: dict[str, Figure] = Field(default_factory=dict, description="`changes` less those of that sft")


def initial_losses(points: Sequence[Point]) -> dict[str, Figure]:
    """The loss of the base model on each method's rows, nats a token; its points all begin with the same."""
    losses: dict[str, Figure] = {}
    for point in points:
        losses.setdefault(point.method, point.initial_loss)
    return losses


def near_floor(tasks: Sequence[TaskFacts], points: Sequence[Point]) -> bool:
    """Whether no model answers as many questions as would make a gain more than chance."""
    shares = [100 * (task.base.value or 0.0) for task in tasks if task.kind == "accuracy"]
    gained = max((point.gain.value or 0.0 for point in points), default=0.0)
    return bool(shares) and sum(shares) / len(shares) + max(0.0, gained) < _FLOOR


class Match(Section):
    """A method against the reference at the largest gain that both reach after the same was spent."""

    matching: Matching
    method: str
    shape: str
    budget: float | None = Field(description="steps, tokens or token passes")
    reason: str | None = Field(None, description="why they cannot be matched")
    gain: Figure | None = None
    forgetting: Figure | None = None
    reference_forgetting: Figure | None = None
    difference: Figure | None = Field(None, description="what the reference forgets more, points")
    saved: Figure | None = Field(None, description="1 - F / F of the reference")


class Failure(Section):
    """A unit that could not be done."""

    unit: str
    error: str


class Comparison(Section):
    """All of `results.json`."""

    headline: str
    notes: list[str] = Field(default_factory=list, description="sentences on the files that a reader must know")
    model: str
    tasks: list[TaskFacts]
    points: list[Point]
    matches: list[Match]
    runs: list[Run]
    methods: dict[str, str] = Field(description="what each method is")
    failures: list[Failure]
    settings: dict[str, Any]
