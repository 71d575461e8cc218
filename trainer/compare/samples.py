"""The rows of exams, paired: each row that all models were asked, with its metric as value and weight."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.exceptions import InputFileError
from trainer.compare.numbers import TaskRows
from trainer.exam.benchmarks import BENCHMARKS
from trainer.exam.files import samples_path
from trainer.exam.results import EvaluationResult

Term = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Exam:
    """One model's exam: its result, and the metric of each row by task."""

    result: EvaluationResult
    rows: Mapping[str, Mapping[str, Term]]


def read_exam(path: Path) -> Exam:
    """Read `OUT.json` and the samples beside it.

    Raises:
        InputFileError: a line of the samples is broken.
        OSError, ValueError: they are not there, or no exam.
    """
    result = EvaluationResult.model_validate_json(path.read_bytes())
    rows: dict[str, dict[str, Term]] = {
        name: {} for name, task in result.tasks.items() if task.kind in ("accuracy", "retention")
    }
    samples = samples_path(path)
    with samples.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                task = record["task"]
                if task in rows and (term := _term(record, result.tasks[task].primary)) is not None:
                    rows[task][str(record["row"])] = term
            except (ValueError, KeyError, TypeError) as error:
                raise InputFileError(f"{samples}: line {number} is no sample of an exam: {error}") from error
    return Exam(result, rows)


def _term(record: Mapping[str, object], primary: str) -> Term | None:
    """A row's metric as value and weight; None for a sampled answer, which is not what the task is scored by."""
    metrics = record.get("metrics")
    if isinstance(metrics, dict):
        value, weight = metrics[primary]
        return float(value), float(weight)
    draw, _, field = primary.partition("/")
    return (float(bool(record[field])), 1.0) if record["draw"] == draw else None


def pair(exams: Sequence[Exam]) -> list[TaskRows]:
    """The rows of each task that all exams have, the first exam's first. Tasks without such a row are left out."""
    first = exams[0].result
    paired = []
    for name, rows in exams[0].rows.items():
        ids = sorted(set(rows).intersection(*(exam.rows.get(name, {}) for exam in exams)))
        if not ids:
            continue
        terms = np.array([[exam.rows[name][row] for row in ids] for exam in exams], dtype=np.float64)
        task = first.tasks[name]
        aggregation = BENCHMARKS[name].metrics[task.primary] if task.kind == "retention" else "mean"
        paired.append(
            TaskRows(
                name,
                "retention" if task.kind == "retention" else "accuracy",
                terms[..., 0],
                terms[..., 1],
                aggregation,
                task.higher_is_better,
            )
        )
    return paired
