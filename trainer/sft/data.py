"""The rows of a fine-tuning: read from rewritten or raw files, as token ids in the model's own chat format.

Token ids are those that `agent.mismatch` scores: prompt and completion tokenised apart, the end-of-turn token included.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast, get_args

from agent.chat import ChatFormat
from agent.demonstrations import BadRow, Demonstration, Message
from agent.exceptions import ChatError
from agent.intake import read_rows
from agent.records import Status
from trainer.exceptions import TrainingDataError

RowStatus = Literal["rewritten", "self_solved", "fallback", "expert"]

_EXAMPLES = 3
# Rows that are compared with what the chat template makes of the whole conversation.
_COMPARED = 100


@dataclass(frozen=True, slots=True)
class SftRow:
    """One row to train on.

    Attributes:
        status: what the rewriter said of it; `expert` for a row that it never saw.
        prompt_ids, completion_ids: tokens; the end-of-turn token is the completion's last.
    """

    id: str
    status: RowStatus
    prompt_ids: list[int]
    completion_ids: list[int]

    @property
    def tokens(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True, slots=True)
class SftData:
    """The rows of one file.

    Attributes:
        sha256: of the content of the rows, whatever the file's format.
        left_out: how many rows were not used, by reason.
        notes: what a person should know of the data, a sentence each.
    """

    rows: list[SftRow]
    sha256: str
    left_out: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def statuses(self) -> dict[str, int]:
        """How many rows there are of each status that occurs."""
        return dict(Counter(row.status for row in self.rows))


def load_sft_data(source: Path, chat: ChatFormat, *, max_length: int, limit: int | None = None) -> SftData:
    """Read `source`, which may hold output rows of the rewriter or demonstrations of any shape that intake reads.

    Args:
        source: a file, a folder, or a data set of the hub.
        chat: of the model to be trained.
        max_length: tokens of prompt and completion; longer rows are left out, none is cut.
        limit: first rows to read at most.

    Raises:
        InputFileError: `source` cannot be read.
        TrainingDataError: no row is left; says why.
    """
    read = _Reading(chat, max_length)
    for row in islice(read_rows(source), limit):
        read.add(row)
    if not read.rows:
        raise TrainingDataError(f"{source}: no row can be trained on; {read.told() or 'the file is empty'}")
    return SftData(read.rows, read.digest.hexdigest(), dict(read.left_out), read.notes())


class _Reading:
    """Rows as they come in, and what became of the others."""

    def __init__(self, chat: ChatFormat, max_length: int) -> None:
        self._chat, self._max_length = chat, max_length
        self.rows: list[SftRow] = []
        self.left_out: Counter[str] = Counter()
        self.digest = hashlib.sha256()
        self._examples: dict[str, str] = {}
        self._neutralised = 0
        self._compared = self._otherwise = 0

    def add(self, row: Demonstration | BadRow) -> None:
        status = _record_status(row.source)
        if status == "error":
            self._leave_out("status is error", f"line {row.line}")
        elif isinstance(row, BadRow):
            self._leave_out("duplicate id" if row.duplicate else "cannot be read", f"line {row.line}: {row.message}")
        else:
            self._add_demonstration(row, status or "expert")

    def _add_demonstration(self, row: Demonstration, status: RowStatus) -> None:
        try:
            prompt_ids, completion_ids = self._chat.prompt_ids(row.prompt), self._chat.completion_ids(row.expert)
        except ChatError as error:
            self._leave_out("the model's chat template refuses it", f"line {row.line}: {error.__cause__}")
            return
        made = SftRow(row.id, status, prompt_ids, completion_ids)
        if made.tokens > self._max_length:
            self._leave_out(f"longer than {self._max_length} tokens", f"line {row.line} has {made.tokens}")
            return
        texts = [turn.content for turn in row.prompt] + [row.expert]
        self._neutralised += any(self._chat.neutralise(text) != text for text in texts)
        if self._compared < _COMPARED:
            self._compare(row, made)
        self.rows.append(made)
        turns = [[turn.role, turn.content] for turn in row.prompt]
        self.digest.update(json.dumps([row.id, turns, row.expert, status]).encode())

    def _compare(self, row: Demonstration, made: SftRow) -> None:
        """Count rows whose tokens the template does not begin the conversation with: it trims answers, for one."""
        self._compared += 1
        try:
            whole = self._chat.conversation_ids([*row.prompt, Message("assistant", row.expert)])
        except ChatError:
            return  # a template that takes no answer of its own
        self._otherwise += whole[: made.tokens] != made.prompt_ids + made.completion_ids

    def _leave_out(self, reason: str, example: str) -> None:
        self.left_out[reason] += 1
        self._examples.setdefault(reason, example)

    def told(self) -> str:
        """Why rows were left out, the commonest reasons first, with an example of each."""
        common = self.left_out.most_common(_EXAMPLES)
        return "; ".join(f"{count} left out: {reason} ({self._examples[reason]})" for reason, count in common)

    def notes(self) -> list[str]:
        notes = [self.told()] if self.left_out else []
        if self._neutralised:
            notes.append(
                f"{self._neutralised} rows hold control tokens of a chat format, which are broken up and trained on as "
                "text: give plain turns if the file went through a chat template already"
            )
        if self._otherwise:
            notes.append(
                f"{self._otherwise} of the first {self._compared} rows are trained on with other tokens than the chat "
                "template gives the whole conversation: it may trim or change answers, which are learnt as they stand"
            )
        if all(row.status == "fallback" for row in self.rows):
            notes.append(
                "every row is a fallback: no rewrite was accepted, so this trains on the expert's own words; "
                "sft.weights treats their tokens"
            )
        return notes


def _record_status(source: Any) -> Literal[RowStatus, "error"] | None:
    """The status that the rewriter gave this row; None for a row that is no output row of it."""
    is_record = isinstance(source, dict) and {"status", "proposer", "completion"} <= source.keys()
    status = source["status"] if is_record else None
    return cast("Status", status) if status in get_args(Status) else None


def count_tokens(rows: Iterable[SftRow]) -> dict[str, int]:
    """Tokens by what they are: `prompt` and `completion`."""
    prompt = completion = 0
    for row in rows:
        prompt += len(row.prompt_ids)
        completion += len(row.completion_ids)
    return {"prompt": prompt, "completion": completion}
