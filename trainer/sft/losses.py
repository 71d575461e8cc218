"""The measured loss of a fine-tuning row by row, so that a comparison can tell how much of it is chance."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from agent.disk import write_whole
from trainer.exceptions import DivergedError
from trainer.sft.data import SftRow
from trainer.sft.weights import BaseTokens

# In the folder of the training.
INITIAL = "initial_losses.jsonl"


@dataclass(frozen=True, slots=True)
class RowLoss:
    """Of one row, without weights.

    Attributes:
        row: its id.
        nats: summed over its completion tokens.
        tokens: how many these are.
    """

    row: str
    nats: float
    tokens: int


def row_losses(rows: Sequence[SftRow], said: Iterable[BaseTokens]) -> list[RowLoss]:
    """The loss of each row.

    Args:
        rows: which rows.
        said: what a model makes of each.

    Raises:
        DivergedError: one is not finite; names the rows.
    """
    nats = [row.surprisal_T.double().sum().item() for row in said]
    if broken := [row.id for row, value in zip(rows, nats, strict=True) if not math.isfinite(value)]:
        raise DivergedError.of_rows("the measured loss is not a finite number", broken)
    return [RowLoss(row.id, value, len(row.completion_ids)) for row, value in zip(rows, nats, strict=True)]


def mean_loss(losses: Sequence[RowLoss]) -> float:
    """Mean over all completion tokens, nats per token."""
    return math.fsum(loss.nats for loss in losses) / sum(loss.tokens for loss in losses)


def write_losses(path: Path, losses: Sequence[RowLoss]) -> None:
    """Keep the losses, one JSON object a line; the file appears whole."""
    write_whole(path, "".join(f"{json.dumps(asdict(loss))}\n" for loss in losses))


def read_losses(path: Path) -> list[RowLoss]:
    """What `write_losses` kept."""
    return [RowLoss(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
