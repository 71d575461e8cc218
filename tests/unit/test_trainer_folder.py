"""Whose checkpoints a folder holds, and what makes another training of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainer.data import TrainingData
from trainer.exceptions import CheckpointError
from trainer.folder import claim, claim_as
from trainer.request import TrainingRequest

DATA = TrainingData([], [], "data", {})
REQUEST = TrainingRequest(source=Path("rows.jsonl"), output=Path("math"))


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a training in float32 that has a checkpoint."""
    monkeypatch.setattr("trainer.devices.pick_dtype", lambda *_: torch.float32)
    claim(tmp_path, REQUEST, DATA, "base")
    (tmp_path / "checkpoint-1").mkdir()
    claim(tmp_path, REQUEST, DATA, "base")
    return tmp_path


def test_other_weights_of_the_base_model_are_another_training(begun: Path) -> None:
    with pytest.raises(CheckpointError, match="made with other weights of the base model;"):
        claim(begun, REQUEST, DATA, "others of the same name")


def test_a_machine_on_which_auto_is_another_type_is_another_training(
    begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.devices.pick_dtype", lambda *_: torch.bfloat16)
    with pytest.raises(CheckpointError, match="made with other dtype;"):
        claim(begun, REQUEST, DATA, "base")


def test_another_engine_is_another_training(begun: Path) -> None:
    vllm = REQUEST.model_copy(update={"engine": REQUEST.engine.model_copy(update={"kind": "vllm"})})
    with pytest.raises(CheckpointError, match="made with other engine;"):
        claim(begun, vllm, DATA, "base")


def test_what_an_earlier_version_did_not_write_down_is_taken_as_the_same(tmp_path: Path) -> None:
    (tmp_path / "request.json").write_text('{"data": "1"}')
    (tmp_path / "checkpoint-1").mkdir()
    claim_as(tmp_path, {"data": "1", "dtype": "float32"})
    with pytest.raises(CheckpointError, match="made with other data;"):
        claim_as(tmp_path, {"data": "2", "dtype": "float32"})
