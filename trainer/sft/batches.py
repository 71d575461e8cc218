"""What one pass of a fine-tuning is made of: rows end to end, and which of them count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from datasets import Dataset
from torch import Tensor

from trainer.sft.data import SftRow
from trainer.sft.loss import PackedBatch

# Label of a token without a weight.
IGNORED = -100


class RowCollator:
    """Makes batches of rows by their numbers, so that no second copy of the data is kept.

    Args:
        rows: to train on.
        weights: of the completion tokens of each row.
    """

    def __init__(self, rows: Sequence[SftRow], weights: Sequence[Tensor]) -> None:
        self._rows, self._weights = rows, weights

    def dataset(self) -> Dataset:
        """What TRL shuffles: `row`, the number of each row."""
        return Dataset.from_dict({"row": list(range(len(self._rows)))})

    def __call__(self, examples: Sequence[Mapping[str, int]]) -> dict[str, Tensor]:
        """Rows end to end in a batch of one.

        Returns:
            `input_ids`; `completion_mask`, 1 on completion tokens; `labels`, the token where it has a weight, else
            -100; `weights`, 0 on the prompt; `lengths` and `rows`, which say which tokens are whose.
        """
        numbers = [example["row"] for example in examples]
        parts = [self._tensors(self._rows[number], self._weights[number]) for number in numbers]
        batch = {name: torch.cat([part[name] for part in parts])[None] for name in parts[0]}
        batch["lengths"] = torch.tensor([self._rows[number].tokens for number in numbers])
        batch["rows"] = torch.tensor(numbers)
        return batch

    def _tensors(self, row: SftRow, own: Tensor) -> dict[str, Tensor]:
        prompt, completion = torch.tensor(row.prompt_ids), torch.tensor(row.completion_ids)
        return {
            "input_ids": torch.cat([prompt, completion]),
            "completion_mask": torch.cat([torch.zeros_like(prompt), torch.ones_like(completion)]),
            "labels": torch.cat([torch.full_like(prompt, IGNORED), completion.masked_fill(own == 0, IGNORED)]),
            "weights": torch.cat([torch.zeros(len(prompt)), own]),
        }


def unpack(inputs: dict[str, Tensor]) -> PackedBatch:
    """The packed batch in what `RowCollator` made."""
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
