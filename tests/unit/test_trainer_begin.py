"""What a training says before its first step, and when no step was of any use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

import pytest

from agent.exceptions import ModelError
from agent.models import ModelFiles
from tests.tiny_chat import write_tiny_model
from trainer.exceptions import CheckpointError, FolderInUseError, TrainingDataError
from trainer.report import StepReport
from trainer.request import TrainingRequest
from trainer.train import run_training

ROWS = [{"question": f"What is {i} + 1 ?", "answer": f"#### {i + 1}"} for i in range(3)]


def lines(*rows: dict[str, Any]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model that never writes anything that passes."""
    folder = write_tiny_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 4096}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def request_of(model: Path, **train: Any) -> TrainingRequest:
    """A training on three good rows and a broken one, beside the model."""
    source = model.with_name("rows.jsonl")
    source.write_text(lines(*ROWS) + "{\n")
    return TrainingRequest.model_validate(
        {
            "source": source,
            "output": model.with_name("math"),
            "model": {"name": str(model)},
            "engine": {"dtype": "float32", "device": "cpu", "threads": 1},
            "rewrite": {"max_tokens": 8},
            "train": {"eval_rows": 1, **train},
        }
    )


@pytest.fixture
def _not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise ModelError("not loaded here")

    monkeypatch.setattr("trainer.train.open_policy", refuse)


@pytest.mark.usefixtures("_not_loaded")
@pytest.mark.parametrize(
    ("rank", "notes"), [("0", ["rows by task: 3 math", "1 of 4 rows left out: 1 x cannot be read"]), ("1", [])]
)
def test_what_was_left_out_is_said_once_before_the_model_loads(
    rank: str, notes: list[str], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", rank)
    said: list[str] = []
    with pytest.raises(ModelError, match="not loaded here"):
        run_training(request_of(model), resume=False, on_note=said.append)
    assert said == notes


@pytest.mark.usefixtures("_not_loaded")
def test_a_warm_start_without_candidates_is_refused_before_the_model_loads(model: Path, tmp_path: Path) -> None:
    seed = tmp_path / "seed.jsonl"
    seed.write_text(lines(*ROWS))
    with pytest.raises(TrainingDataError, match="none of its 3 readable rows has a `candidate`"):
        run_training(request_of(model, warm_start={"file": str(seed)}), resume=False)


ONE_STEP = {
    "steps": 1,
    "groups": 1,
    "samples": 2,
    "refills": 0,
    "eval_samples": 1,
    "lora": {"rank": 2},
    "optimizer": {"groups_per_pass": 1},
}


def test_a_training_of_which_no_step_did_better_says_what_is_published(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.train.resolve_model", lambda _: ModelFiles("org/tiny", model, "0" * 40))
    said: list[str] = []
    published = run_training(request_of(model, **ONE_STEP), resume=False, on_note=said.append)
    assert said[-1] == "no later step did better on the held-out rows: published is the base model's own behaviour"
    card = json.loads((published / "rewright.json").read_text())
    assert (card["step"], card["tasks"]) == (0, {"math": 3})
    assert (card["base_model"], card["base_commit"]) == ("org/tiny", "0" * 40)
    assert str(model) not in json.dumps(card)


def test_where_there_was_a_warm_start_that_is_what_is_published(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seed = model.with_name("seed.jsonl")
    rewrite = "Ida has 1 pen and buys 2 more, so she has 1 + 2 = 3 pens.\n\nThe answer is 3."
    row = {"question": "Ida has 1 pen and buys 2. How many has she?", "answer": "1+2=3\n#### 3", "candidate": rewrite}
    seed.write_text(lines(row))
    said: list[str] = []
    run_training(request_of(model, **ONE_STEP, warm_start={"file": str(seed)}), resume=False, on_note=said.append)
    assert said[-1] == "no later step did better on the held-out rows: published is the warm start"


def test_a_second_training_does_not_work_beside_the_first(model: Path) -> None:
    request, refused = request_of(model, **ONE_STEP), []

    def begin_another(report: StepReport) -> None:
        with pytest.raises(FolderInUseError, match="math: another process works in it") as caught:
            run_training(request, resume=True)
        refused.append(caught.value)

    assert run_training(request, resume=False, on_report=begin_another).is_dir()
    assert len(refused) == 3  # two evaluations and a step


class StoppedError(Exception):
    """The process is interrupted."""


def test_a_training_does_not_go_on_with_another_chat_template(model: Path) -> None:
    request = request_of(model, **ONE_STEP | {"steps": 2}, save_every=1)

    def stop(report: StepReport) -> None:
        if report.kind == "train" and report.step == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        run_training(request, resume=False, on_report=stop)
    template = model / "chat_template.jinja"
    before = template.read_text()
    template.write_text(before.replace("<|im_start|> assistant", "<|im_start|> assistant so"))
    with pytest.raises(CheckpointError, match="made with other tokenizer or chat template;"):
        run_training(request, resume=True)
    template.write_text(before)
    assert run_training(request, resume=True).is_dir()
