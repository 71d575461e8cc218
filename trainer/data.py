"""The demonstrations of a training: read, filtered, and split into rows to train on and rows held out."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from agent.demonstrations import Demonstration
from agent.exceptions import GateError
from agent.gate import Gate
from agent.intake import read_rows
from trainer.exceptions import TrainingDataError

Asked = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Rows by purpose; no question is in both.

    Attributes:
        train: rows to train on.
        held_out: rows for evaluation only.
        sha256: of the content of all readable rows, whatever the file's format.
        left_out: how many rows were not used, by reason.
    """

    train: list[Demonstration]
    held_out: list[Demonstration]
    sha256: str
    left_out: dict[str, int]

    @property
    def rows(self) -> int:
        return len(self.train) + len(self.held_out)


def load_training_data(
    source: Path, gate: Gate, fits: Callable[[Demonstration], bool], *, limit: int | None, eval_rows: int, seed: int
) -> TrainingData:
    """Read `source` and hold out `eval_rows` rows, drawn by `seed`.

    Args:
        source: demonstrations in any shape that intake reads.
        gate: rows it could not judge are left out.
        fits: whether a row fits the model's context; others are left out.
        limit: first rows to read at most.
        eval_rows: rows to hold out.
        seed: of the draw.

    Raises:
        InputFileError: `source` cannot be read.
        TrainingDataError: too few rows are left; says why the others were left out.
    """
    left_out: Counter[str] = Counter()
    rows: list[Demonstration] = []
    seen: set[Asked] = set()
    for row in islice(read_rows(source), limit):
        if not isinstance(row, Demonstration):
            left_out["cannot be read"] += 1
            continue
        if asked(row) in seen:
            left_out["question seen before"] += 1
            continue
        seen.add(asked(row))
        if (reason := _unusable(row, gate, fits)) is not None:
            left_out[reason] += 1
        else:
            rows.append(row)
    if len(rows) < eval_rows + 1:
        raise TrainingDataError(
            f"{source}: {len(rows)} usable rows, but {eval_rows} are to be held out and at least one trained on; "
            f"left out: {_counts(left_out)}"
        )
    held = set(random.Random(f"{seed}/held out").sample(range(len(rows)), eval_rows))
    return TrainingData(
        train=[row for i, row in enumerate(rows) if i not in held],
        held_out=[row for i, row in enumerate(rows) if i in held],
        sha256=_digest(rows),
        left_out=dict(left_out),
    )


def asked(row: Demonstration) -> Asked:
    """What tells a question from others: every turn of the prompt, since last turns repeat (`Yes, go on`)."""
    return tuple((turn.role, turn.content) for turn in row.prompt)


def _unusable(row: Demonstration, gate: Gate, fits: Callable[[Demonstration], bool]) -> str | None:
    try:
        gate.task_of(row)
    except GateError as error:
        return f"the gate cannot judge it: {error}"
    return None if fits(row) else "longer than the model's context"


def _digest(rows: Sequence[Demonstration]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row.id, asked(row), row.expert, row.reference_answer]).encode())
    return digest.hexdigest()


def _counts(left_out: Counter[str]) -> str:
    return "; ".join(f"{count} x {reason}" for reason, count in left_out.most_common(3)) or "none"
