"""Which devices a process trains on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from agent.settings import EngineSettings
from trainer.devices import on_one_device, with_dtype


@pytest.mark.parametrize(("seen", "used"), [(0, 0), (1, 1), (4, 1)])
def test_a_process_trains_on_one_gpu_however_many_it_sees(tmp_path: Path, seen: int, used: int) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=3)
    arguments._n_gpu = seen
    assert on_one_device(arguments) is arguments
    assert (arguments.n_gpu, arguments.train_batch_size) == (used, 3)


@pytest.mark.parametrize(("native", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_auto_is_told_as_the_type_that_it_stands_for_here(
    native: bool, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for question in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, question, lambda: native)
    assert with_dtype(EngineSettings(device="cpu")).dtype == dtype
    assert with_dtype(EngineSettings(device="cpu", dtype="float32", threads=3)).model_dump(
        include={"dtype", "threads"}
    ) == {"dtype": "float32", "threads": 3}
