"""Which rows of a pass count where several processes share them."""

from __future__ import annotations

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

from trainer.sft.batches import IGNORED, RowCollator, mute, own_rows, unpack
from trainer.sft.data import SftRow

ROWS = [SftRow("a", "expert", [2, 5], [6, 3]), SftRow("b", "expert", [2], [7, 8, 3]), SftRow("c", "expert", [2], [3])]

EXAMPLES = [{"row": 0}, {"row": 1}, {"row": 2}]


def test_a_batch_is_looked_up_by_the_numbers_of_its_rows() -> None:
    collate = RowCollator(ROWS, [torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.0, 1.0]), torch.ones(1)])
    assert collate.dataset()[:] == {"row": [0, 1, 2]}
    batch = {name: tensor.tolist() for name, tensor in collate([{"row": 2}, {"row": 1}]).items()}
    assert batch == {
        "input_ids": [[2, 3, 2, 7, 8, 3]],
        "completion_mask": [[0, 1, 0, 1, 1, 1]],
        "labels": [[IGNORED, 3, IGNORED, 7, IGNORED, 3]],
        "weights": [[0, 1, 0, 0.5, 0, 1]],
        "lengths": [2, 4],
        "rows": [2, 1],
    }


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("rows", range(1, 14))
def test_every_row_of_an_epoch_counts_once_however_many_processes_share_it(processes: int, rows: int) -> None:
    counted: list[int] = []
    for process in range(processes):
        batches = BatchSampler(range(rows), 2, drop_last=False)
        shard = batches if processes == 1 else BatchSamplerShard(batches, processes, process)
        for number, pack in enumerate(shard):
            counted += pack[: own_rows(number * processes + process, 2, rows)]
    assert sorted(counted) == list(range(rows))


def test_a_muted_row_is_computed_and_counts_for_nothing() -> None:
    batch = RowCollator(ROWS, [torch.full((len(row.completion_ids),), 0.5) for row in ROWS])(EXAMPLES)
    ids = batch["input_ids"].clone()
    mute(batch, 1)
    assert torch.equal(batch["input_ids"], ids)
    assert unpack(batch).targets_T.tolist() == [6, 3]
    assert batch["labels"][0].tolist() == [IGNORED, IGNORED, 6, 3, *[IGNORED] * 6]
    assert batch["weights"][0].tolist() == [0, 0, 0.5, 0.5, *[0] * 6]
    mute(batch, 0)
    assert unpack(batch).lengths == [4, 4, 2]
    assert not len(unpack(batch).targets_T)


def test_a_batch_of_its_own_rows_stays_as_it_is() -> None:
    collate = RowCollator(ROWS, [torch.ones(len(row.completion_ids)) for row in ROWS])
    batch, other = collate(EXAMPLES), collate(EXAMPLES)
    mute(batch, 3)
    assert all(torch.equal(batch[name], other[name]) for name in other)
