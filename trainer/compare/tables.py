"""The tables of a comparison as rows of text, for Markdown and for the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.compare.results import Comparison, Figure, Point

_NOTHING = "–"


@dataclass(frozen=True, slots=True)
class TextTable:
    """A table: what its columns are called, its rows, and what a reader must know of it."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""


def summary(comparison: Comparison) -> TextTable:
    """Every method at the learning rate with which it gains most, with what it forgets at the gain of sft."""
    saved = {(m.method, m.shape): m for m in comparison.matches if m.matching == "steps"}
    best: dict[tuple[str, str], Point] = {}
    for point in comparison.points:
        if point.gain.value is None:
            continue
        known = best.get((point.method, point.shape))
        if known is None or _order(point) > _order(known):
            best[point.method, point.shape] = point
    rows = []
    for (method, shape), point in best.items():
        match = saved.get((method, shape))
        rows.append(
            (
                method,
                shape,
                str(point.steps),
                f"{point.learning_rate:g}",
                figure(point.gain),
                figure(point.forgetting),
                figure(point.forgetting_relative, scale=100, unit=" %"),
                _mean(list(point.kl.values())),
                f"{point.initial_loss:.3f}",
                _saved(match.saved) if match and match.saved else _NOTHING,
            )
        )
    columns = ("method", "shape", "steps", "lr", "G", "F", "F relative", "KL", "initial loss", "1 - F/F_sft")
    return TextTable(
        "Each method where it gains most",
        columns,
        rows,
        "G and F in points, KL in nats a token; [paired bootstrap intervals over rows]. 1 - F/F_sft is at equal gain "
        "after the same steps, not at the learning rate of the row. That learning rate is picked by the gain in this "
        "very exam, so G is somewhat flattering.",
    )


def all_points(comparison: Comparison) -> TextTable:
    """Every point."""
    rows = [
        (
            point.method,
            point.shape,
            str(point.steps),
            f"{point.learning_rate:g}",
            str(len(point.seeds)),
            figure(point.gain),
            figure(point.forgetting),
            figure(point.forgetting_relative, scale=100, unit=" %"),
            _mean(list(point.kl.values())),
            _mean(list(point.answer_tokens.values()), digits=1),
            _mean([100 * share for share in point.no_answer.values()], digits=1),
            f"{point.initial_loss:.3f}",
            f"{point.final_loss:.3f}",
            "yes" if point.on_front else "",
        )
        for point in comparison.points
    ]
    columns = ("method", "shape", "steps", "lr", "seeds", "G", "F", "F relative", "KL", "answer tokens", "no answer, %")
    return TextTable("All points", (*columns, "initial loss", "final loss", "on its front"), rows)


def per_task(comparison: Comparison) -> TextTable:
    """Scores of the base model, and each point's change."""
    columns = ("method", "shape", "steps", "lr", *(f"{task.name}, {task.metric}" for task in comparison.tasks))
    factors = [100.0 if task.in_points else 1.0 for task in comparison.tasks]
    base = [figure(t.base, scale=factor) for t, factor in zip(comparison.tasks, factors, strict=True)]
    rows: list[tuple[str, ...]] = [("base", "", "", "", *base)] if comparison.tasks else []
    rows += [
        (
            point.method,
            point.shape,
            str(point.steps),
            f"{point.learning_rate:g}",
            *(figure(point.changes[task.name], signed=True) for task in comparison.tasks),
        )
        for point in comparison.points
    ]
    asked = ", ".join(f"{task.name} {task.rows}" for task in comparison.tasks)
    falling = ", ".join(task.name for task in comparison.tasks if not task.higher_is_better)
    note = f"First row: the score; then the change from it. Rows: {asked}."
    return TextTable("Per task", columns, rows, f"{note} Lower is better: {falling}." if falling else note)


def matchings(comparison: Comparison) -> TextTable:
    """Each method against sft at equal gain, after the same was spent."""
    rows = []
    for match in comparison.matches:
        figures = (match.gain, match.forgetting, match.reference_forgetting, match.difference, match.saved)
        told = tuple(figure(found) if found else _NOTHING for found in figures)
        remark = match.reason or (_remark(match.saved) if match.saved else "")
        budget = _NOTHING if match.budget is None else f"{match.budget:.0f}"
        rows.append((match.method, match.shape, match.matching, budget, *told, remark))
    columns = ("method", "shape", "same", "spent", "gain", "F", "F of sft", "F of sft - F", "1 - F/F_sft", "remark")
    return TextTable(
        "Against plain fine-tuning at equal gain",
        columns,
        rows,
        "At the largest gain that both reach, linear between neighbouring learning rates; after the same steps, "
        "trained tokens, or token passes in all (rewriting and scoring included), linear between trainings of growing "
        "length with the base model as length 0.",
    )


def compute(comparison: Comparison) -> TextTable:
    """What was spent at each number of steps; the learning rate changes none of it."""
    spent: dict[tuple[str, str, int], Point] = {}
    for point in comparison.points:
        spent.setdefault((point.method, point.shape, point.steps), point)
    rows = [
        (
            method,
            shape,
            str(steps),
            *(f"{value:.0f}" for value in (s.rewriting_prompt_tokens, s.rewriting_completion_tokens)),
            *(f"{value:.0f}" for value in (s.scored_tokens + s.weighed_tokens, s.trained_tokens, s.passes)),
            *(f"{value:.1f}" for value in (s.rewriting_seconds, s.training_seconds)),
        )
        for (method, shape, steps), s in ((key, point.spent) for key, point in spent.items())
    ]
    columns = ("method", "shape", "steps", "prompt tokens", "rewritten tokens", "scored tokens", "trained tokens")
    return TextTable(
        "Compute",
        (*columns, "token passes", "rewriting, s", "training, s"),
        rows,
        "A token once through the model is one pass, in an update three. Not counted: exams, and the training of a "
        "rewriter.",
    )


def failures(comparison: Comparison) -> TextTable:
    """What is missing, and why."""
    rows = [(failure.unit, failure.error) for failure in comparison.failures]
    return TextTable("Units that failed or were left out", ("unit", "error"), rows)


def methods(comparison: Comparison) -> TextTable:
    """What each method is."""
    return TextTable("Methods", ("method", "what it trains on"), list(comparison.methods.items()))


def markdown(table: TextTable) -> str:
    """The table as GitHub's Markdown."""
    lines = [_markdown_row(table.columns), "|" + "---|" * len(table.columns), *map(_markdown_row, table.rows)]
    return "\n".join(lines)


def _markdown_row(cells: Sequence[str]) -> str:
    escaped = (cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def figure(found: Figure, *, scale: float = 1.0, unit: str = "", signed: bool = False) -> str:
    """A figure with its interval."""
    if found.value is None:
        return _NOTHING
    sign = "+" if signed else ""
    told = f"{scale * found.value:{sign}.2f}{unit}"
    if found.low is None or found.high is None:
        return told
    return f"{told} [{scale * found.low:.2f}, {scale * found.high:.2f}]"


def _remark(saved: Figure) -> str:
    if saved.value is None:
        return "sft forgets nothing at that gain"
    return saved.remark


def _saved(saved: Figure) -> str:
    """1 - F/F_sft with what its interval leaves out."""
    if saved.value is None:
        return _remark(saved)
    return f"{figure(saved)} ({saved.remark})" if saved.remark else figure(saved)


def _order(point: Point) -> tuple[float, float]:
    lost = point.forgetting.value
    return point.gain.value or 0.0, -(lost if lost is not None else 0.0)


def _mean(values: Sequence[float], digits: int = 3) -> str:
    return f"{sum(values) / len(values):.{digits}f}" if values else _NOTHING
