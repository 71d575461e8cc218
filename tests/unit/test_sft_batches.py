"""Which rows of a pass count where several processes share them."""

from __future__ import annotations

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

from trainer.sft.batches import IGNORED, collate, dataset_of, mute, own_rows, unpack
from trainer.sft.data import SftRow

ROWS = [SftRow("a", "expert", [2, 5], [6, 3]), SftRow("b", "expert", [2], [7, 8, 3]), SftRow("c", "expert", [2], [3])]


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
    dataset = dataset_of(ROWS, [torch.full((len(row.completion_ids),), 0.5) for row in ROWS])
    batch = collate([dataset[0], dataset[1], dataset[2]])
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
    dataset = dataset_of(ROWS, [torch.ones(len(row.completion_ids)) for row in ROWS])
    batch, other = collate([dataset[0], dataset[1]]), collate([dataset[0], dataset[1]])
    mute(batch, 2)
    assert all(torch.equal(batch[name], other[name]) for name in other)
