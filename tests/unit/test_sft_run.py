"""A whole fine-tuning of a model of a few hundred weights: what a resumed one refuses, and what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.settings import EngineSettings, ModelSettings
from tests.tiny_chat import write_tiny_model
from trainer.exceptions import CheckpointError, FolderInUseError
from trainer.report import StepReport
from trainer.request import SftRequest
from trainer.sft.run import run_sft
from trainer.sft.settings import SftSettings


@pytest.fixture
def request_(tmp_path: Path) -> SftRequest:
    """Two updates on four rows."""
    write_tiny_model(tmp_path / "tiny")
    rows = [{"question": f"What is {a} + 2 ?", "answer": f"It is {a + 2}"} for a in (1, 2, 3, 4)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return SftRequest(
        source=tmp_path / "rows.jsonl",
        output=tmp_path / "tuned",
        model=ModelSettings(name=str(tmp_path / "tiny")),
        engine=EngineSettings(dtype="float32", threads=1),
        sft=SftSettings(method="full", batch_rows=2, rows_per_pass=2, save_every=1),
    )


class StoppedError(Exception):
    """The process is interrupted."""


def stop_at_step_2(report: StepReport) -> None:
    if report.kind == "train" and report.step == 2:
        raise StoppedError


def test_a_training_that_lacked_memory_goes_on_without_keeping_activations(request_: SftRequest) -> None:
    keeping = request_.model_copy(
        update={"sft": request_.sft.model_copy(update={"gradient_checkpointing": False, "steps": 2})}
    )
    with pytest.raises(StoppedError):
        run_sft(keeping, resume=False, on_report=stop_at_step_2)
    anew = keeping.model_copy(update={"sft": keeping.sft.model_copy(update={"gradient_checkpointing": True})})
    assert (run_sft(anew, resume=True) / "sft.json").exists()


def test_a_training_does_not_go_on_with_another_chat_template(request_: SftRequest) -> None:
    with pytest.raises(StoppedError):
        run_sft(request_, resume=False, on_report=stop_at_step_2)
    template = Path(request_.model.name) / "chat_template.jinja"
    before = template.read_text()
    template.write_text(before.replace("<|im_start|> assistant", "<|im_start|> assistant so"))
    with pytest.raises(CheckpointError, match="made with other tokenizer or chat template;"):
        run_sft(request_, resume=True)
    template.write_text(before)
    assert (run_sft(request_, resume=True) / "sft.json").exists()


def test_a_second_fine_tuning_does_not_work_beside_the_first(request_: SftRequest) -> None:
    refused: list[str] = []

    def begin_another(report: StepReport) -> None:
        if report.kind == "train":
            with pytest.raises(FolderInUseError) as caught:
                run_sft(request_, resume=True)
            refused.append(str(caught.value))

    assert (run_sft(request_, resume=False, on_report=begin_another) / "sft.json").exists()
    assert len(refused) == 2
    assert "tuned: another process works in it" in refused[0]


@pytest.mark.parametrize("caches", [True, False])
def test_the_written_model_caches_where_the_base_model_does(request_: SftRequest, caches: bool) -> None:
    config = Path(request_.model.name) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_cache": caches}))
    written = run_sft(request_, resume=False)
    assert json.loads((written / "config.json").read_text())["use_cache"] is caches
