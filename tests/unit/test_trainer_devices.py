"""Which devices a process trains on."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import TrainingArguments

from trainer.devices import on_one_device


@pytest.mark.parametrize(("seen", "used"), [(0, 0), (1, 1), (4, 1)])
def test_a_process_trains_on_one_gpu_however_many_it_sees(tmp_path: Path, seen: int, used: int) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=3)
    arguments._n_gpu = seen
    assert on_one_device(arguments) is arguments
    assert (arguments.n_gpu, arguments.train_batch_size) == (used, 3)
