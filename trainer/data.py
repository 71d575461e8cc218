"""The demonstrations of a training: read, filtered, and split into rows to train on and rows held out."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from agent.chat import ChatFormat
from agent.demonstrations import Demonstration
from agent.exceptions import ChatError, GateError
from agent.gate import task_of
from agent.intake import read_rows
from agent.prompts import proposal_prompt
from agent.rewriter import token_limit
from agent.settings import RewriteSettings
from trainer.exceptions import TrainingDataError

Asked = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Rows by purpose; no question is in both.

    Attributes:
        train: rows to train on.
        held_out: rows for evaluation only.
        sha256: of the content of these rows in the file's order, whatever its format.
        left_out: how many rows were not used, by reason.
        tasks: how many of these rows each task of the gate has.
        without_answer: how many of them are judged as `text` only because they name no task and no answer was found.
    """

    train: list[Demonstration]
    held_out: list[Demonstration]
    sha256: str
    left_out: dict[str, int]
    tasks: dict[str, int]
    without_answer: int

    @property
    def rows(self) -> int:
        return len(self.train) + len(self.held_out)

    @property
    def notes(self) -> list[str]:
        """What a person should know of the rows: their tasks, what was left out and why, and what to do about it."""
        notes = [f"rows by task: {', '.join(f'{count} {task}' for task, count in self.tasks.items())}"]
        if self.without_answer:
            notes.append(
                f"in {self.without_answer} of {self.rows} rows no reference answer was found, so their rewrites need "
                "only resemble the expert's text (task text): give `reference_answer`, end the expert's text with "
                r"\boxed{...} or a line `#### ...`, or say `task` if that is meant"
            )
        if count := sum(self.left_out.values()):
            notes.append(f"{count} of {count + self.rows} rows left out: {_counts(self.left_out)}")
        return notes


def load_training_data(
    source: Path, fits: Callable[[Demonstration], bool], *, limit: int | None, eval_rows: int, seed: int
) -> TrainingData:
    """Read `source` and hold out `eval_rows` rows, drawn by `seed`; rows that the gate cannot judge are left out.

    Args:
        source: demonstrations in any shape that intake reads.
        fits: whether a row fits the model's context, see `fits_in`; others are left out, and what the template refuses.
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
        if (reason := unusable(row, fits)) is not None:
            left_out[reason] += 1
            continue
        seen.add(asked(row))
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
        tasks=dict(Counter(task_of(row) for row in rows).most_common()),
        without_answer=sum(row.task is None and task_of(row) == "text" for row in rows),
    )


def asked(row: Demonstration) -> Asked:
    """What tells a question from others: every turn of the prompt, since last turns repeat (`Yes, go on`)."""
    return tuple((turn.role, turn.content) for turn in row.prompt)


def unusable(row: Demonstration, fits: Callable[[Demonstration], bool]) -> str | None:
    """Why a row cannot be trained on or measured; None if it can. `fits`: see `fits_in`."""
    try:
        task_of(row)
        return None if fits(row) else "longer than the model's context"
    except GateError as error:
        return f"the gate cannot judge it: {error}"
    except ChatError as error:
        return str(error)


def fits_in(context: int, chat: ChatFormat, rewrite: RewriteSettings) -> Callable[[Demonstration], bool]:
    """Whether prompt and longest rewrite of a row take `context` tokens at most.

    What is returned raises ChatError where the chat template refuses the row, and GateError where the gate does.
    """

    def fits(row: Demonstration) -> bool:
        chat.prompt_text(row.prompt)  # under which rewrites are scored; the prompt that asks for them is another
        limit = token_limit(rewrite, len(chat.completion_ids(row.expert)))
        prompt = proposal_prompt("rewrite", row, task_of(row), with_examples=False)
        return prompt is not None and len(chat.prompt_ids(prompt)) + limit <= context

    return fits


def _digest(rows: Sequence[Demonstration]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        task = [] if row.task is None else [row.task]
        digest.update(json.dumps([row.id, asked(row), row.expert, row.reference_answer, *task]).encode())
    return digest.hexdigest()


def _counts(left_out: Mapping[str, int]) -> str:
    return "; ".join(f"{count} x {reason}" for reason, count in Counter(left_out).most_common(3)) or "none"
