"""Settings of the fine-tuning: what is refused, and how many updates they make."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from agent.exceptions import SettingsError
from cli.settings import load_settings
from trainer.checkpoints import last_checkpoint
from trainer.exceptions import CheckpointError, TrainingSettingsError
from trainer.request import SftRequest
from trainer.sft.data import SftData
from trainer.sft.run import _described, check_output
from trainer.sft.settings import SftSettings
from trainer.sft.trainer import steps_of

ROWS = Path(__file__).parents[2] / "examples" / "demonstrations.jsonl"


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("METHOD", "qlora", "setting sft.method: Input should be 'lora' or 'full'"),
        ("LOSS", "focal", "setting sft.loss: Input should be 'nll' or 'dft'"),
        ("WEIGHTS__KIND", "random", "setting sft.weights.kind"),
        ("WEIGHTS__APPLY_TO", "expert", "setting sft.weights.apply_to"),
        ("WEIGHTS__MASK_PERPLEXITY", "1", "setting sft.weights.mask_perplexity: Input should be greater than 1"),
        ("WEIGHTS__ENTROPY_TOP_K", "1", "setting sft.weights.entropy_top_k"),
        ("KL_WEIGHT", "-1", "setting sft.kl_weight"),
        ("LEARNING_RATE", "0", "setting sft.learning_rate"),
        ("WARMUP", "1.5", "setting sft.warmup"),
        ("EPOCHS", "0", "setting sft.epochs"),
        ("PACKING", "true", "setting sft.packing: there is no such setting"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(variable: str, value: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load_settings(None, {f"REWRIGHT_SFT__{variable}": value})


@pytest.mark.parametrize(
    ("rows", "epochs", "steps", "processes", "updates"),
    [
        (32, 1.0, None, 1, 4),
        (33, 1.0, None, 1, 5),
        (33, 2.0, None, 1, 10),
        (33, 0.5, None, 1, 3),
        (32, 1.0, None, 2, 4),
        (1, 1.0, None, 2, 1),
        (33, 2.0, 7, 1, 7),
    ],
)
def test_the_number_of_updates(rows: int, epochs: float, steps: int | None, processes: int, updates: int) -> None:
    settings = SftSettings(batch_rows=8, rows_per_pass=2, epochs=epochs, steps=steps)
    assert steps_of(settings, rows, processes) == updates


def request_for(output: Path, **settings: int) -> SftRequest:
    return SftRequest(source=ROWS, output=output, sft=SftSettings.model_validate(settings))


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    with pytest.raises(TrainingSettingsError, match=r"holds config.json already"):
        check_output(request_for(tmp_path), tmp_path / "training", resume=False)


def test_an_unfinished_training_is_not_begun_again(tmp_path: Path) -> None:
    (tmp_path / "training" / "checkpoint-3").mkdir(parents=True)
    with pytest.raises(TrainingSettingsError, match="pass --resume"):
        check_output(request_for(tmp_path), tmp_path / "training", resume=False)
    check_output(request_for(tmp_path), tmp_path / "training", resume=True)


def test_nothing_to_resume_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint to resume from"):
        check_output(request_for(tmp_path / "m"), tmp_path / "m" / "training", resume=True)


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrainingSettingsError, match="is a file"):
        check_output(request_for(tmp_path / "file"), tmp_path / "file" / "training", resume=False)
    with pytest.raises(TrainingSettingsError, match="cannot be written"):
        check_output(request_for(tmp_path / "file" / "m"), tmp_path / "file" / "m" / "training", resume=False)


def test_rows_that_cannot_be_shared_out_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingSettingsError, match=r"sft.batch_rows \(6\) must be divisible by 1 workers"):
        check_output(request_for(tmp_path, batch_rows=6, rows_per_pass=4), tmp_path / "training", resume=False)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(TrainingSettingsError, match="divisible by 3 workers"):
        check_output(request_for(tmp_path, batch_rows=8, rows_per_pass=4), tmp_path / "training", resume=False)


def test_a_checkpoint_with_more_updates_than_asked_for_is_not_gone_on_from(tmp_path: Path) -> None:
    for step in (3, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert last_checkpoint(tmp_path, 12) == last_checkpoint(tmp_path, 20) == tmp_path / "checkpoint-12"
    with pytest.raises(CheckpointError, match="has seen 12 updates already, and 11 are asked for"):
        last_checkpoint(tmp_path, 11)


def test_a_fine_tuning_is_told_from_others_by_its_base_weights_and_the_type_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, data = request_for(tmp_path), SftData([], "d")
    monkeypatch.setattr("trainer.devices.pick_dtype", lambda *_: torch.float32)
    before = _described(request, data, "base", "tokens")
    monkeypatch.setattr("trainer.devices.pick_dtype", lambda *_: torch.bfloat16)
    after = _described(request, data, "other", "others")
    assert {name for name in before if before[name] != after[name]} == {
        "weights of the base model",
        "tokenizer or chat template",
        "dtype",
    }
