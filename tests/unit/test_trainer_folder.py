"""Whose checkpoints a folder holds, what makes another training of it, and what is refused before any is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from agent.exceptions import InputFileError
from trainer.data import TrainingData
from trainer.exceptions import CheckpointError, TrainingDataError, TrainingSettingsError
from trainer.folder import check_output, claim, claim_as
from trainer.request import TrainingRequest
from trainer.settings import TrainSettings

DATA = TrainingData([], [], "data", {}, {}, 0)
ROWS = Path(__file__).parents[2] / "examples" / "demonstrations.jsonl"
REQUEST = TrainingRequest(source=ROWS, output=Path("math"))


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a training in float32 that has a checkpoint."""
    monkeypatch.setattr("trainer.devices.pick_dtype", lambda *_: torch.float32)
    claim(tmp_path, REQUEST, DATA, "base", "tokenizer")
    (tmp_path / "checkpoint-1").mkdir()
    claim(tmp_path, REQUEST, DATA, "base", "tokenizer")
    return tmp_path


def test_other_weights_of_the_base_model_are_another_training(begun: Path) -> None:
    with pytest.raises(CheckpointError, match="made with other weights of the base model;"):
        claim(begun, REQUEST, DATA, "others of the same name", "tokenizer")


def test_another_tokenizer_or_chat_template_is_another_training(begun: Path) -> None:
    with pytest.raises(CheckpointError, match="made with other tokenizer or chat template;"):
        claim(begun, REQUEST, DATA, "base", "another")


def test_a_machine_on_which_auto_is_another_type_is_another_training(
    begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.devices.pick_dtype", lambda *_: torch.bfloat16)
    with pytest.raises(CheckpointError, match="made with other dtype;"):
        claim(begun, REQUEST, DATA, "base", "tokenizer")


def test_another_engine_is_another_training(begun: Path) -> None:
    vllm = REQUEST.model_copy(update={"engine": REQUEST.engine.model_copy(update={"kind": "vllm"})})
    with pytest.raises(CheckpointError, match="made with other engine;"):
        claim(begun, vllm, DATA, "base", "tokenizer")


def test_what_an_earlier_version_did_not_write_down_is_taken_as_the_same(tmp_path: Path) -> None:
    (tmp_path / "request.json").write_text('{"data": "1"}')
    (tmp_path / "checkpoint-1").mkdir()
    claim_as(tmp_path, {"data": "1", "dtype": "float32"})
    with pytest.raises(CheckpointError, match="made with other data;"):
        claim_as(tmp_path, {"data": "2", "dtype": "float32"})


def with_train(**changed: object) -> TrainingRequest:
    return TrainingRequest(source=ROWS, output=Path("math"), train=TrainSettings.model_validate(changed))


def test_the_setting_that_differs_is_named(begun: Path) -> None:
    other = with_train(seed=1, optimizer={"learning_rate": 0.5})
    with pytest.raises(CheckpointError, match=r"made with other train\.seed and train\.optimizer\.learning_rate;"):
        claim(begun, other, DATA, "base", "tokenizer")


def test_where_the_rows_of_the_warm_start_lie_makes_no_other_training(begun: Path) -> None:
    claim(begun, with_train(warm_start={"file": "/elsewhere/seed.jsonl"}), DATA, "base", "tokenizer")
    with pytest.raises(CheckpointError, match=r"made with other train\.warm_start\.epochs;"):
        claim(begun, with_train(warm_start={"file": "/elsewhere/seed.jsonl", "epochs": 9}), DATA, "base", "tokenizer")


def test_whether_activations_are_kept_makes_no_other_training(begun: Path) -> None:
    other = with_train(optimizer={"gradient_checkpointing": False, "groups_per_pass": 2})
    with pytest.raises(CheckpointError, match=r"made with other train\.optimizer\.groups_per_pass;"):
        claim(begun, other, DATA, "base", "tokenizer")


def test_a_training_killed_before_its_first_checkpoint_begins_again_with_resume(tmp_path: Path) -> None:
    request, folder = REQUEST.model_copy(update={"output": tmp_path / "math"}), tmp_path / "math" / "training"
    with pytest.raises(CheckpointError, match="start without --resume"):
        check_output(request, folder, resume=True)
    check_output(request, folder, resume=False)
    claim(folder, request, DATA, "base", "tokenizer")
    check_output(request, folder, resume=True)
    (folder / "checkpoint-1").mkdir()
    check_output(request, folder, resume=True)
    with pytest.raises(TrainingSettingsError, match="pass --resume"):
        check_output(request, folder, resume=False)


@pytest.mark.parametrize(("updates", "seen"), [(1, 8), (2, 16)])
def test_fewer_steps_than_the_checkpoint_has_seen_are_refused(tmp_path: Path, updates: int, seen: int) -> None:
    folder = tmp_path / "math" / "training"
    (folder / f"checkpoint-{seen}").mkdir(parents=True)

    def resume(steps: int) -> None:
        request = with_train(steps=steps, optimizer={"updates_per_rollout": updates})
        check_output(request.model_copy(update={"output": tmp_path / "math"}), folder, resume=True)

    with pytest.raises(CheckpointError, match=f"has seen {seen} updates already, and {7 * updates} are asked for"):
        resume(7)
    resume(8)
    resume(9)


def test_a_warm_start_that_is_not_there_is_refused_unless_it_is_over(tmp_path: Path) -> None:
    absent = with_train(warm_start={"file": str(tmp_path / "seed.jsonl")})
    request, folder = absent.model_copy(update={"output": tmp_path / "math"}), tmp_path / "math" / "training"
    with pytest.raises(TrainingSettingsError, match=r"train\.warm_start\.file .*seed\.jsonl: there is no such file"):
        check_output(request, folder, resume=False)
    assert not request.output.exists()
    (folder / "checkpoint-1").mkdir(parents=True)
    check_output(request, folder, resume=True)


def test_no_folder_is_made_for_an_input_without_rows(tmp_path: Path) -> None:
    empty, output = tmp_path / "empty.jsonl", tmp_path / "math"
    empty.touch()
    for source, error, message in (
        (empty, TrainingDataError, "empty.jsonl holds no rows"),
        (tmp_path / "nope.jsonl", InputFileError, "nope.jsonl: no such file"),
    ):
        request = REQUEST.model_copy(update={"source": source, "output": output})
        with pytest.raises(error, match=message):
            check_output(request, output / "training", resume=False)
    assert not output.exists()
