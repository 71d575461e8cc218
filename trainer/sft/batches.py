"""What one pass of a fine-tuning is made of: rows end to end, and which of them count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from trainer.sft.data import SftRow
from trainer.sft.loss import PackedBatch

# Label of a token without a weight.
IGNORED = -100


def dataset_of(rows: Sequence[SftRow], weights: Sequence[Tensor]) -> Dataset:
    """The rows as TRL takes them when they are tokenised: a label for every token that is trained on.

    Columns: `input_ids`; `completion_mask`, 1 on completion tokens; `labels`, the token where it has a weight, else
    -100; `weights`, 0 on the prompt; `row`, its number.
    """
    columns: dict[str, list[Any]] = {name: [] for name in ("input_ids", "completion_mask", "labels", "weights", "row")}
    for number, (row, own) in enumerate(zip(rows, weights, strict=True)):
        values = own.tolist()
        prompt = len(row.prompt_ids)
        columns["input_ids"].append([*row.prompt_ids, *row.completion_ids])
        columns["completion_mask"].append([0] * prompt + [1] * len(row.completion_ids))
        labels = [token if weight else IGNORED for token, weight in zip(row.completion_ids, values, strict=True)]
        columns["labels"].append([IGNORED] * prompt + labels)
        columns["weights"].append([0.0] * prompt + values)
        columns["row"].append(number)
    return Dataset.from_dict(columns)


def collate(examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Rows end to end in a batch of one; `lengths` and `rows` say which tokens are whose."""
    batch = {
        name: torch.tensor([[value for example in examples for value in example[name]]])
        for name in ("input_ids", "completion_mask", "labels", "weights")
    }
    batch["lengths"] = torch.tensor([len(example["input_ids"]) for example in examples])
    batch["rows"] = torch.tensor([example["row"] for example in examples])
    return batch


def unpack(inputs: dict[str, Tensor]) -> PackedBatch:
    """The packed batch in what `collate` made."""
    lengths = inputs["lengths"].tolist()
    targets = inputs["completion_mask"][0].nonzero()[:, 0]  # a prompt is never empty, so none is at 0
    positions = torch.cat([torch.arange(length, device=targets.device) for length in lengths])
    ids = inputs["input_ids"][0]
    return PackedBatch(ids, positions, targets - 1, ids[targets], lengths)


def own_rows(pack: int, rows_per_pass: int, rows: int) -> int:
    """How many rows of a pass are their epoch's own, the first ones of the pass.

    Processes take passes in turns. Where these do not come out even, Accelerate fills the last ones up with the rows
    that the epoch began with, which have been trained on already.

    Args:
        pack: number of the pass in its epoch, over all processes, from 0.
        rows_per_pass: rows of each.
        rows: of the data.
    """
    return min(rows_per_pass, max(0, rows - pack * rows_per_pass))


def mute(batch: dict[str, Tensor], own: int) -> None:
    """Leave tokens to train on to the first `own` rows of a batch; the others are computed and count for nothing."""
    first = int(batch["lengths"][:own].sum())
    for name, nothing in (("completion_mask", 0), ("labels", IGNORED), ("weights", 0)):
        batch[name][:, first:] = nothing
