"""The rows of exams, paired: each row that all models were asked, with its metric as value and weight.

Besides what a task is scored by there are two tables for each file of questions: `lenient:NAME`, its greedy answers by
the lenient check, and `kl:NAME`, the divergence from the base model in nats over tokens.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agent.exceptions import InputFileError
from trainer.compare.numbers import TaskRows, Values
from trainer.exam.benchmarks import BENCHMARKS
from trainer.exam.files import samples_path
from trainer.exam.results import DIVERGENCE, EvaluationResult, TaskResult

Term = tuple[float, float]

LENIENT = "lenient:"


@dataclass(frozen=True, slots=True)
class Exam:
    """One model's exam: its result, and the metric of each row by table."""

    result: EvaluationResult
    rows: Mapping[str, Mapping[str, Term]]


def read_exam(path: Path, tasks: Collection[str]) -> Exam:
    """Read `OUT.json` and the samples beside it.

    Args:
        path: of the result.
        tasks: that count, the divergence on their prompts included; an exam may hold others, asked earlier, and lack
            some, which could not be asked.

    Raises:
        InputFileError: a line of the samples is broken.
        OSError, ValueError: they are not there, or no exam.
    """
    whole = EvaluationResult.model_validate_json(path.read_bytes())
    asked = {
        name: task
        for name, task in whole.tasks.items()
        if name.removeprefix(DIVERGENCE) in tasks and task.not_run is None
    }
    result = whole.model_copy(update={"tasks": asked})
    rows: dict[str, dict[str, Term]] = {}
    samples = samples_path(path)
    with samples.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                if task := result.tasks.get(record["task"]):
                    for name, term in _terms(record, task).items():
                        table, row = rows.setdefault(name, {}), str(record["row"])
                        table[row] = _sum(table[row], term) if task.kind == "divergence" and row in table else term
            except (ValueError, KeyError, TypeError) as error:
                raise InputFileError(f"{samples}: line {number} is no sample of an exam: {error}") from error
    return Exam(result, rows)


def _terms(record: Mapping[str, Any], task: TaskResult) -> dict[str, Term]:
    """What a sample says, by table; nothing for a sampled answer, which is not what the task is scored by."""
    name = record["task"]
    if task.kind == "divergence":
        return {name: (float(record["kl"]), float(record["tokens"]))}
    if task.kind == "retention":
        value, weight = record["metrics"][task.primary]
        return {name: (float(value), float(weight))}
    draw, _, field = task.primary.partition("/")
    if record["draw"] != draw:
        return {}
    return {name: (float(record[field]), 1.0), f"{LENIENT}{name}": (float(record["lenient"]), 1.0)}


def _sum(one: Term, other: Term) -> Term:
    """Of two completions of one question."""
    return one[0] + other[0], one[1] + other[1]


def pair(exams: Sequence[Exam]) -> list[TaskRows]:
    """The rows of each table that all exams have, the first exam's first. Tables without such a row are left out.

    The first exam is the base model's: it has no divergence from itself, which is 0 on every row.
    """
    paired = []
    for name in dict.fromkeys(name for exam in exams for name in exam.rows):
        task = next(found for exam in exams if (found := exam.result.tasks.get(name.removeprefix(LENIENT))))
        tables = [exam.rows.get(name, {}) for exam in exams]
        if task.kind == "divergence":
            tables[0] = {row: (0.0, tokens) for row, (_, tokens) in tables[1].items()}
        if ids := sorted(set(tables[0]).intersection(*tables)):
            terms = np.array([[table[row] for row in ids] for table in tables], dtype=np.float64)
            paired.append(_paired(name, task, terms))
    return paired


def _paired(name: str, task: TaskResult, terms_MN2: Values) -> TaskRows:
    is_lenient = name.startswith(LENIENT)
    return TaskRows(
        name,
        "lenient" if is_lenient else task.kind,
        terms_MN2[..., 0],
        terms_MN2[..., 1],
        BENCHMARKS[name].metrics[task.primary] if task.kind == "retention" else "mean",
        task.higher_is_better,
        "greedy/lenient" if is_lenient else task.primary,
    )
