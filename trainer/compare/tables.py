"""The tables of a comparison as rows of text, for Markdown and for the page."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.compare.methods import METHODS
from trainer.compare.results import Comparison, Figure, Match, Point, TaskFacts, near_floor
from trainer.compare.text import NOTHING, TextTable, figure, without_shared

_STATUSES = {"rewritten": "rewritten", "self_solved": "self-solved", "fallback": "fallback", "expert": "expert"}


def summary(comparison: Comparison) -> TextTable:
    """Every method at the learning rate with which it gains most, with what it forgets at the gain of sft.

    Near the floor of the task, where chance would pick that learning rate, every learning rate after the most steps.
    """
    saved = {(m.method, m.shape): m for m in comparison.matches if m.matching == "steps"}
    is_near_floor = near_floor(comparison.tasks, comparison.points)
    rows = []
    for point in _longest(comparison.points) if is_near_floor else _gaining_most(comparison.points):
        match = saved.get((point.method, point.shape))
        rows.append(
            (
                point.method,
                point.shape,
                str(point.steps),
                f"{point.learning_rate:g}",
                _loss(point.method, figure(point.initial_loss, digits=3)),
                figure(point.forgetting),
                figure(point.forgetting_relative, scale=100, unit=" %"),
                figure(point.kl, digits=3),
                figure(point.gain),
                figure(point.gain_lenient),
                _saved(match.saved) if match and match.saved else NOTHING,
                _where(match) if match else NOTHING,
            )
        )
    columns = ("method", "shape", "steps", "lr", "initial loss", "F", "F relative", "KL", "G", "G lenient")
    picked = "The latter is picked by the gain in this very exam, so G is somewhat flattering."
    return without_shared(
        "Each method at every learning rate" if is_near_floor else "Each method where it gains most",
        (*columns, "1 - F/F_sft", "at gain"),
        rows,
        "G and F in points, loss and KL in nats a token; [paired bootstrap intervals over rows]. Lenient also "
        "takes the last number of an answer for it: what G has more than that is the form in which an answer is "
        "stated. 1 - F/F_sft is at equal gain after the same steps, not at the learning rate of the row. "
        f"{'' if is_near_floor else picked}{_filtered_note(comparison)}",
    )


def _longest(points: Sequence[Point]) -> list[Point]:
    most: dict[tuple[str, str], int] = {}
    for point in points:
        most[point.method, point.shape] = max(point.steps, most.get((point.method, point.shape), 0))
    return [point for point in points if point.steps == most[point.method, point.shape]]


def _gaining_most(points: Sequence[Point]) -> list[Point]:
    best: dict[tuple[str, str], Point] = {}
    for point in points:
        if point.gain.value is None:
            continue
        known = best.get((point.method, point.shape))
        if known is None or _order(point) > _order(known):
            best[point.method, point.shape] = point
    return list(best.values())


def all_points(comparison: Comparison) -> TextTable:
    """The base model's answers, and every point."""
    asked = [task for task in comparison.tasks if task.kind == "accuracy"]
    base_tokens = [task.answer_tokens for task in asked if task.answer_tokens is not None]
    base_silent = [100 * task.no_answer for task in asked if task.no_answer is not None]
    names = ("method", "shape", "steps", "lr", "seeds", "initial loss", "final loss", "F", "F relative", "KL", "G")
    columns = (*names, "G lenient", "answer tokens", "no answer, %", "cut off, %", "on its front")
    base_cut = [100 * task.cut_off for task in asked if task.cut_off is not None]
    shares = (_mean(values) for values in (base_tokens, base_silent, base_cut))
    base = ("base", *("" for _ in names), *shares, "")
    rows = [
        (
            point.method,
            point.shape,
            str(point.steps),
            f"{point.learning_rate:g}",
            str(len(point.seeds)),
            _loss(point.method, figure(point.initial_loss, digits=3)),
            _loss(point.method, f"{point.final_loss:.3f}"),
            figure(point.forgetting),
            figure(point.forgetting_relative, scale=100, unit=" %"),
            figure(point.kl, digits=3),
            figure(point.gain),
            figure(point.gain_lenient),
            _mean(list(point.answer_tokens.values())),
            _mean([100 * share for share in point.no_answer.values()]),
            _mean([100 * share for share in point.cut_off.values()]),
            "yes" if point.on_front else "",
        )
        for point in comparison.points
    ]
    return without_shared("All points", columns, [base, *rows] if asked else rows, _filtered_note(comparison).strip())


def trained_rows(comparison: Comparison) -> TextTable:
    """What the rows of each method are; shapes, steps, learning rates and seeds change none of it."""
    by_method = {run.method: run for run in reversed(comparison.runs)}
    rows = []
    for method in comparison.methods:
        if run := by_method.get(method):
            total, left_out = sum(run.statuses.values()), sum(run.left_out.values())
            reasons = "; ".join(f"{count} {reason}" for reason, count in run.left_out.items() if count)
            shares = (_of(run.statuses.get(status, 0), total) for status in _STATUSES)
            rows.append((method, str(total), *shares, _of(left_out, total + left_out), reasons))
    return TextTable(
        "Rows",
        ("method", "trained on", *_STATUSES.values(), "left out", "why"),
        rows,
        "Shares of the rows trained on; of those left out, a share of all demonstrations. Fallback: no rewrite was "
        "accepted, and the row is the expert's; expert: rows that were never rewritten.",
    )


def per_task(comparison: Comparison) -> TextTable:
    """Scores of the base model, and each point's change."""
    columns = ("method", "shape", "steps", "lr", *(f"{task.name}, {task.metric}" for task in comparison.tasks))
    factors = [100.0 if task.in_points else 1.0 for task in comparison.tasks]
    base = [figure(t.base, scale=f, digits=_digits(t)) for t, f in zip(comparison.tasks, factors, strict=True)]
    rows: list[tuple[str, ...]] = [("base", "", "", "", *base)] if comparison.tasks else []
    rows += [
        (
            point.method,
            point.shape,
            str(point.steps),
            f"{point.learning_rate:g}",
            *(figure(point.changes[task.name], signed=True, digits=_digits(task)) for task in comparison.tasks),
        )
        for point in comparison.points
    ]
    asked = ", ".join(f"{task.name} {task.rows}" for task in comparison.tasks)
    silent = ", ".join(f"{t.name} {t.no_answer:.1%}" for t in comparison.tasks if t.no_answer is not None)
    falling = ", ".join(task.name for task in comparison.tasks if not task.higher_is_better)
    note = f"First row: the score; then the change from it. Rows: {asked}."
    note += f" The base model states no answer in: {silent}." if silent else ""
    return without_shared("Per task", columns, rows, f"{note} Lower is better: {falling}." if falling else note)


def beside_reference(comparison: Comparison) -> TextTable:
    """How each point differs from plain fine-tuning at the same learning rate, in all benchmarks and in each task."""
    columns = ("method", "shape", "steps", "lr", "F - F of sft", *(task.name for task in comparison.tasks))
    rows = [
        (
            point.method,
            point.shape,
            str(point.steps),
            f"{point.learning_rate:g}",
            figure(point.forgets_more, signed=True),
            *(figure(point.changes_more[task.name], signed=True, digits=_digits(task)) for task in comparison.tasks),
        )
        for point in comparison.points
        if point.forgets_more
    ]
    return without_shared(
        "Beside plain fine-tuning at the same learning rate",
        columns,
        rows,
        "Scores less those of sft, over the rows that both were asked: an interval without 0 tells the two apart.",
    )


def matchings(comparison: Comparison) -> TextTable:
    """Each method against sft at equal gain, after the same was spent."""
    rows = []
    for match in comparison.matches:
        figures = (match.gain, match.forgetting, match.reference_forgetting, match.difference, match.saved)
        told = tuple(figure(found) if found else NOTHING for found in figures)
        remark = match.reason or (_remark(match.saved) if match.saved else "")
        budget = NOTHING if match.budget is None else f"{match.budget:.0f}"
        rows.append((match.method, match.shape, match.matching, budget, *told, remark))
    one_length = ""
    if len({point.steps for point in comparison.points}) == 1:
        one_length = " All trainings are of one length: less than all of it is read on the line to the base model."
    columns = ("method", "shape", "same", "spent", "gain", "F", "F of sft", "F of sft - F", "1 - F/F_sft", "remark")
    return without_shared(
        "Against plain fine-tuning at equal gain",
        columns,
        rows,
        "At the largest gain that both reach, linear between neighbouring learning rates with the base model as "
        "learning rate 0; after the same steps, trained tokens, or token passes in all (rewriting and scoring "
        f"included), linear between trainings of growing length with the base model as length 0.{one_length}",
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
    return without_shared(
        "Compute",
        (*columns, "token passes", "rewriting, s", "training, s"),
        rows,
        "A token once through the model is one pass, in an update three. A rewriter's prompts are counted whole, "
        "though the engine computes once what they all begin with. Not counted: exams, and the training of a rewriter.",
    )


def failures(comparison: Comparison) -> TextTable:
    """What is missing, and why."""
    rows = [(failure.unit, failure.error) for failure in comparison.failures]
    return TextTable("Units that failed or were left out", ("unit", "error"), rows)


def methods(comparison: Comparison) -> TextTable:
    """What each method is."""
    return TextTable("Methods", ("method", "what it trains on"), list(comparison.methods.items()))


def _of(rows: int, total: int) -> str:
    return f"{rows} ({rows / total:.1%})" if rows else "0"


def _loss(method: str, loss: str) -> str:
    """Marked where its rows are not of the questions of the others."""
    return f"{loss}{'*' if METHODS[method].success_only else ''}"


def _filtered_note(comparison: Comparison) -> str:
    """What the mark of `_loss` means, where it is used."""
    if not any(METHODS[point.method].success_only for point in comparison.points):
        return ""
    return " * On the questions alone whose rewrite passed the gate: no loss to set beside those on all rows."


def _digits(task: TaskFacts) -> int:
    return 3 if task.kind == "divergence" else 2


def _remark(saved: Figure) -> str:
    if saved.value is None:
        return "sft forgets nothing at that gain"
    return saved.remark


def _saved(saved: Figure) -> str:
    """1 - F/F_sft with what its interval leaves out."""
    if saved.value is None:
        return _remark(saved)
    return f"{figure(saved)} ({saved.remark})" if saved.remark else figure(saved)


def _where(match: Match) -> str:
    """At which gain a method is matched, and after how many steps."""
    if match.gain is None or match.gain.value is None or match.budget is None:
        return NOTHING
    return f"{match.gain.value:.2f}, {match.budget:.0f} steps"


def _order(point: Point) -> tuple[float, float]:
    lost = point.forgetting.value
    return point.gain.value or 0.0, -(lost if lost is not None else 0.0)


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.1f}" if values else NOTHING
