"""What the finished units of a plan left on the disk: each fine-tuning with its card, its cost and its exam."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.pieces import count_lines
from trainer.compare.cost import Cost, DataCost, train_cost
from trainer.compare.folder import has_result
from trainer.compare.plan import Setup, Unit
from trainer.compare.results import LossCurve, Run, Spent
from trainer.compare.rows import ROWS, read_cost
from trainer.compare.samples import Exam, read_exam
from trainer.exam.results import DIVERGENCE, TaskResult
from trainer.history import read_history
from trainer.sft.losses import INITIAL, RowLoss, read_losses

EXAM = "exam.json"

Key = tuple[str, str, int, float]


@dataclass(frozen=True, slots=True)
class Finished:
    """One fine-tuning whose exam is done; `losses` are the base model's on its rows."""

    setup: Setup
    run: Run
    cost: Cost
    exam: Exam
    losses: list[RowLoss]

    @property
    def key(self) -> Key:
        """What the runs of one point have in common: all but the seed."""
        return self.setup.method, self.setup.shape, self.setup.steps, self.setup.learning_rate


def read_finished(output: Path, units: Sequence[Unit]) -> list[Finished]:
    """The fine-tunings of a plan whose exams are done, in its order."""
    by_folder = {unit.folder: unit for unit in units}
    found: list[Finished] = []
    for exam in units:
        if exam.kind != "exam" or exam.setup is None or not has_result(output, exam):
            continue
        train = by_folder[exam.needs[0]]
        card = json.loads((output / train.folder / "sft.json").read_text())
        cost = Cost(data=_data_cost(output, train, by_folder), training=train_cost(card))
        read = read_exam(output / exam.folder / EXAM, exam.tasks)
        left_out = card["left_out"] | _filtered(output, train, by_folder)
        run = _run(output, train, exam.setup, card, left_out, cost, read)
        losses = read_losses(output / train.folder / "training" / INITIAL)
        found.append(Finished(exam.setup, run, cost, read, losses))
    return found


def _data_cost(output: Path, train: Unit, units: dict[Path, Unit]) -> DataCost:
    """Of the rows that a training used, followed to the unit that made them."""
    unit = train
    while unit.needs:
        unit = units[unit.needs[0]]
    return read_cost(output / unit.folder) if unit.kind == "data" else DataCost()


def _filtered(output: Path, train: Unit, units: dict[Path, Unit]) -> dict[str, int]:
    """The rows that never came to a training since its data are filtered, as `left_out` of its card."""
    kept = [units[folder] for folder in train.needs]
    whole = [units[folder] for unit in kept for folder in unit.needs]
    if not whole:
        return {}
    made, accepted = (count_lines(output / unit.folder / ROWS) for unit in (whole[0], kept[0]))
    return {"no accepted rewrite": made - accepted}


def _run(
    output: Path,
    train: Unit,
    setup: Setup,
    card: dict[str, Any],
    left_out: dict[str, int],
    cost: Cost,
    exam: Exam,
) -> Run:
    history = read_history(output / train.folder / "training" / "history.jsonl")
    updates = [record for record in history if record.kind == "train" and "nll" in record.metrics]
    tasks = exam.result.tasks
    accuracy = {name: task for name, task in tasks.items() if task.kind == "accuracy"}
    return Run(
        method=setup.method,
        shape=setup.shape,
        steps=setup.steps,
        learning_rate=setup.learning_rate,
        seed=setup.seed,
        model=str(train.folder),
        statuses=card["statuses"],
        left_out=left_out,
        initial_loss=card["initial_loss"],
        final_loss=card["final_loss"],
        curve=LossCurve(steps=[u.step for u in updates], nll=[round(u.metrics["nll"], 5) for u in updates]),
        spent=_spent(cost),
        scores=_primary({name: task for name, task in tasks.items() if task.kind != "divergence"}),
        kl=_primary({n.removeprefix(DIVERGENCE): task for n, task in tasks.items() if task.kind == "divergence"}),
        answer_tokens={name: task.metrics["greedy/tokens"].value for name, task in accuracy.items()},
        no_answer={name: task.metrics["greedy/no_answer"].value for name, task in accuracy.items()},
        cut_off={name: task.metrics["greedy/cut_off"].value for name, task in accuracy.items()},
    )


def _primary(tasks: dict[str, TaskResult]) -> dict[str, float]:
    """The figure that stands for each task; a model that diverged has none for some."""
    figures = {name: task.metrics[task.primary].value for name, task in tasks.items()}
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def _spent(cost: Cost) -> Spent:
    return Spent(
        rewriting_prompt_tokens=cost.data.prompt_tokens,
        rewriting_completion_tokens=cost.data.completion_tokens,
        scored_tokens=cost.data.scored_tokens,
        weighed_tokens=cost.training.weighed_tokens,
        trained_tokens=cost.training.trained_tokens,
        processed_tokens=cost.training.processed_tokens,
        rewriting_passes=cost.data.rewriting_passes,
        scoring_passes=cost.scoring_passes,
        training_passes=cost.training.passes,
        rewriting_seconds=round(cost.data.seconds, 1),
        training_seconds=round(cost.training.seconds, 1),
    )
