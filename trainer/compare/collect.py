"""What the finished units found, put together: runs, points over seeds, matches, and the sentence that comes first."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from trainer.compare.drawn import Drawn, averaged, draw, initial_losses
from trainer.compare.finished import EXAM, Finished, Key, read_finished
from trainer.compare.folder import has_result
from trainer.compare.headline import Standing, headline
from trainer.compare.matching import Line, Matched, match
from trainer.compare.methods import BASE, METHODS, REFERENCE
from trainer.compare.numbers import (
    TaskRows,
    Values,
    interval,
    pareto_front,
    scores,
)
from trainer.compare.plan import OF_SETUPS, Unit
from trainer.compare.results import (
    Comparison,
    Failure,
    Figure,
    Match,
    Matching,
    Point,
    Spent,
    TaskFacts,
)
from trainer.compare.samples import pair, read_exam
from trainer.compare.settings import CompareRequest
from trainer.exam.results import EvaluationResult

_MATCHINGS: tuple[Matching, ...] = ("steps", "trained tokens", "total compute")


def collect(
    request: CompareRequest, units: Sequence[Unit], failures: list[Failure], notes: Sequence[str] = ()
) -> Comparison:
    """Read what the finished units of a plan left in `request.output`; `notes` are sentences for its reader."""
    compare, output = request.compare, request.output
    told = {name: METHODS[name].told for name in compare.methods if name != BASE}
    settings = _published_settings(request)
    base_unit = next(unit for unit in units if unit.kind == "exam" and unit.setup is None)
    finished = read_finished(output, units)
    empty = Comparison(
        headline=headline([], [], failures=len(failures)),
        notes=list(notes),
        model=Path(request.model.name).name if Path(request.model.name).is_dir() else request.model.name,
        tasks=[],
        points=[],
        matches=[],
        runs=[one.run for one in finished],
        methods=told,
        failures=failures,
        settings=settings,
    )
    if not has_result(output, base_unit):
        return empty
    base = read_exam(output / base_unit.folder / EXAM, base_unit.tasks)
    rows = pair([base, *(one.exam for one in finished)])
    by_point = {key: [i for i, one in enumerate(finished) if one.key == key] for key in _keys(finished)}
    asked = [averaged(task, list(by_point.values())) for task in rows]
    scored = {task.name: scores(task, compare.draws, request.evaluate.seed) for task in asked}
    groups = [[finished[i] for i in members] for members in by_point.values()]
    drawn = draw(asked, scored, initial_losses(groups, compare.draws, request.evaluate.seed))
    points = [_point(members, drawn, number, compare.level) for number, members in enumerate(groups)]
    points = _with_fronts(_beside_reference(points, drawn, compare.level))
    costs = [_mean_cost(members) for members in groups]
    matches, standings = _matches(points, costs, drawn, compare.level)
    facts = [_facts(task, base.result, interval(scored[task.name][:, 0], compare.level)) for task in asked]
    return empty.model_copy(
        update={
            "headline": headline(standings, points, facts, failures=len(failures), level=compare.level),
            "tasks": facts,
            "points": points,
            "matches": matches,
        }
    )


def _facts(task: TaskRows, base: EvaluationResult, score: Figure) -> TaskFacts:
    metrics = base.tasks[task.name].metrics if task.kind == "accuracy" else {}
    return TaskFacts(
        name=task.name,
        kind=task.kind,
        metric=task.metric,
        higher_is_better=task.higher_is_better,
        in_points=task.in_points,
        rows=task.values_MN.shape[1],
        base=score,
        no_answer=metrics["greedy/no_answer"].value if metrics else None,
        cut_off=metrics["greedy/cut_off"].value if metrics else None,
        answer_tokens=metrics["greedy/tokens"].value if metrics else None,
    )


def _keys(finished: Sequence[Finished]) -> list[Key]:
    """The points in the order of the report: by shape, method, steps and learning rate."""
    order = list(METHODS)
    return sorted({one.key for one in finished}, key=lambda key: (key[1], order.index(key[0]), key[2], key[3]))


def _point(members: Sequence[Finished], drawn: Drawn, number: int, level: float) -> Point:
    setup, runs = members[0].setup, [one.run for one in members]

    def figure(table: Values) -> Figure:
        return interval(table[:, number], level)

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    def means(tables: Sequence[dict[str, float]]) -> dict[str, float]:
        names = dict.fromkeys(name for table in tables for name in table)
        return {name: mean([table[name] for table in tables if name in table]) for name in names}

    return Point(
        method=setup.method,
        shape=setup.shape,
        steps=setup.steps,
        learning_rate=setup.learning_rate,
        seeds=sorted(run.seed for run in runs),
        gain=figure(drawn.gain),
        gain_lenient=figure(drawn.lenient),
        forgetting=figure(drawn.forgetting),
        forgetting_relative=figure(drawn.relative),
        changes={name: figure(table) for name, table in drawn.changes.items()},
        kl=figure(drawn.kl),
        answer_tokens=means([run.answer_tokens for run in runs]),
        no_answer=means([run.no_answer for run in runs]),
        cut_off=means([run.cut_off for run in runs]),
        initial_loss=figure(drawn.losses),
        final_loss=mean([run.final_loss for run in runs]),
        spent=Spent(**means([run.spent.model_dump() for run in runs])),
        on_front=False,
    )


def _beside_reference(points: Sequence[Point], drawn: Drawn, level: float) -> list[Point]:
    """The points with how they differ from the reference's of the same shape, steps and learning rate, where it is."""
    references = {(p.shape, p.steps, p.learning_rate): i for i, p in enumerate(points) if p.method == REFERENCE}
    beside = []
    for number, point in enumerate(points):
        other = references.get((point.shape, point.steps, point.learning_rate), number)
        if other != number:
            forgotten, changes = drawn.less(number, other)
            told = {name: interval(change, level) for name, change in changes.items()}
            point = point.model_copy(update={"forgets_more": interval(forgotten, level), "changes_more": told})
        beside.append(point)
    return beside


def _with_fronts(points: Sequence[Point]) -> list[Point]:
    """Mark each method's Pareto front over learning rates; points whose forgetting is not known are on none."""
    marked = []
    for _, group in groupby(points, key=lambda point: (point.shape, point.method, point.steps)):
        line = list(group)
        known = [i for i, point in enumerate(line) if None not in (point.gain.value, point.forgetting.value)]
        front = pareto_front(
            [line[i].gain.value or 0.0 for i in known], [line[i].forgetting.value or 0.0 for i in known]
        )
        on_front = {known[i] for i in front}
        marked += [point.model_copy(update={"on_front": i in on_front}) for i, point in enumerate(line)]
    return marked


def _mean_cost(members: Sequence[Finished]) -> tuple[float, float, float]:
    """Trained tokens, token passes, and of these those before the first update."""
    costs = [(c.training.trained_tokens, c.passes, c.before_training) for c in (one.cost for one in members)]
    tokens, passes, before = (sum(column) / len(costs) for column in zip(*costs, strict=True))
    return tokens, passes, before


def _matches(
    points: Sequence[Point], costs: Sequence[tuple[float, float, float]], drawn: Drawn, level: float
) -> tuple[list[Match], list[Standing]]:
    matches, standings = [], []
    groups: dict[tuple[str, str], list[int]] = {}
    for number, point in enumerate(points):
        groups.setdefault((point.shape, point.method), []).append(number)
    for (shape, method), members in groups.items():
        if method == REFERENCE or (shape, REFERENCE) not in groups:
            continue
        for matching in _MATCHINGS:
            own, reference = (
                _lines(points, costs, drawn, numbers, matching) for numbers in (members, groups[shape, REFERENCE])
            )
            found = match(own, reference, level)
            matches.append(_told(matching, method, shape, found))
            gain = found.gain.value if found.gain else None
            if matching != "steps" or not found.budget or gain is None:
                continue
            if found.saved_D is None or found.difference is None:
                continue
            steps, is_cheap = round(found.budget), METHODS[method].is_cheap
            standings.append(Standing(method, shape, is_cheap, steps, gain, found.saved_D, found.difference))
    return matches, standings


def _lines(
    points: Sequence[Point],
    costs: Sequence[tuple[float, float, float]],
    drawn: Drawn,
    numbers: Sequence[int],
    matching: Matching,
) -> list[Line]:
    """A method's points as one line for each learning rate, both ascending."""
    lines = []
    for rate in sorted({points[i].learning_rate for i in numbers}):
        members = sorted((i for i in numbers if points[i].learning_rate == rate), key=lambda i: points[i].steps)
        budgets = {
            "steps": [float(points[i].steps) for i in members],
            "trained tokens": [costs[i][0] for i in members],
            "total compute": [costs[i][1] for i in members],
        }[matching]
        start = costs[members[0]][2] if matching == "total compute" else 0.0
        steps = points[members[-1]].steps
        lines.append(Line(rate, steps, budgets, drawn.gain[:, members].T, drawn.forgetting[:, members].T, start))
    return lines


def _told(matching: Matching, method: str, shape: str, found: Matched) -> Match:
    return Match(
        matching=matching,
        method=method,
        shape=shape,
        budget=found.budget,
        reason=found.reason,
        gain=found.gain,
        forgetting=found.own,
        reference_forgetting=found.reference,
        difference=found.difference,
        saved=found.saved,
    )


def _published_settings(request: CompareRequest) -> dict[str, Any]:
    """What decides how the figures came out, and no folder of this machine."""
    paths = {"train", "accuracy", "benchmarks", "adapters"}
    compare = request.compare.model_dump(mode="json", exclude=paths)
    compare["train"] = request.compare.train.name
    compare["accuracy"] = {name: path.name for name, path in request.compare.accuracy.items()}
    return {
        "compare": compare,
        "dtype": request.engine.dtype,
        "rewrite": request.rewrite.model_dump(mode="json", exclude={"adapter", "strategy"}),
        "sft": request.sft.model_dump(mode="json", exclude=OF_SETUPS),
        **request.model_dump(mode="json", include={"gate", "evaluate"}),
    }
