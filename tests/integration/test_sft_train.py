"""Fine-tuning on a tiny model: TRL's own loss, weights that count, the anchor, SIGKILL and what stops it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from agent.models import resolve_model
from agent.settings import EngineSettings, ModelSettings
from tests.lines import write_lines
from tests.tiny_chat import NO_SYSTEM, tiny_model, write_tiny_model
from trainer.exceptions import CheckpointError, DivergedError, TrainingDataError, TrainingSettingsError
from trainer.history import StepMetrics, read_history
from trainer.request import SftRequest
from trainer.sft.run import run_sft
from trainer.sft.settings import SftSettings
from trainer.sft.weights import ask

ROOT = Path(__file__).parents[2]
ROWS: list[dict[str, Any]] = [
    {"question": "What is 1 + 2 ?", "answer": "It is 3"},
    {"question": "What is 2 + 2 ?", "answer": "It is 4"},
    {"question": "Name a fruit", "answer": "Plum"},
    {"question": "What is 4 + 5 ?", "answer": "so then It is 9"},
    {"question": "Hi", "answer": "Hello Hello so brief"},
    {"question": "What is 3 + 4 ?", "answer": "It is 7"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sft")
    write_tiny_model(folder / "tiny")
    write_tiny_model(folder / "no-system", NO_SYSTEM)
    write_lines(folder / "rows.jsonl", ROWS)
    return folder


def request_for(folder: Path, name: str, source: str = "rows.jsonl", model: str = "tiny", **sft: Any) -> SftRequest:
    small: dict[str, Any] = {
        "batch_rows": 4,
        "rows_per_pass": 2,
        "learning_rate": 1e-2,
        "lora": {"rank": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj"]},
        "save_every": 1,
        "keep_checkpoints": 2,
    }
    return SftRequest(
        source=folder / source,
        output=folder / name,
        model=ModelSettings(name=str(folder / model)),
        engine=EngineSettings(dtype="float32", threads=1),
        sft=SftSettings.model_validate({**small, **sft}),
    )


def run(request: SftRequest, *, resume: bool = False) -> list[StepMetrics]:
    run_sft(request, resume=resume)
    return read_history(request.output / "training" / "history.jsonl")


def training(records: list[StepMetrics], name: str) -> list[float]:
    return [record.metrics[name] for record in records if record.kind == "train"]


def loss_of_trl(folder: Path, output: Path, rows: list[dict[str, Any]], loss: str, ends: int = 0) -> float:
    """The first loss of TRL's own trainer; of the last `ends` rows the token that ends the turn alone is trained on."""
    columns: dict[str, list[list[int]]] = {"input_ids": [], "completion_mask": []}
    tokenizer = AutoTokenizer.from_pretrained(folder / "tiny")
    for number, row in enumerate(rows):
        prompt = f"<|im_start|> user {row['question']} <|im_end|> <|im_start|> assistant"
        prompt_ids, answer = tokenizer.encode(prompt), tokenizer.encode(f"{row['answer']} <|im_end|>")
        kept = 1 if number >= len(rows) - ends else len(answer)
        columns["input_ids"].append(prompt_ids + answer)
        columns["completion_mask"].append([0] * (len(prompt_ids) + len(answer) - kept) + [1] * kept)
    trainer = SFTTrainer(
        model=tiny_model(),
        args=SFTConfig(
            output_dir=str(output),
            max_steps=1,
            per_device_train_batch_size=len(rows),
            completion_only_loss=True,
            loss_type=loss,
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict(columns),
        processing_class=tokenizer,
    )
    trainer.train()
    return float(trainer.state.log_history[0]["loss"])


@pytest.mark.parametrize("loss", ["nll", "dft"])
def test_the_loss_is_that_of_trl_on_padded_rows(folder: Path, tmp_path: Path, loss: str) -> None:
    request = request_for(folder, f"as-trl-{loss}", method="full", loss=loss, steps=1, batch_rows=6, rows_per_pass=2)
    assert training(run(request), "loss") == pytest.approx([loss_of_trl(folder, tmp_path, ROWS, loss)], rel=1e-5)


def test_of_dropped_tokens_the_end_of_the_turn_alone_is_trained_on(folder: Path, tmp_path: Path) -> None:
    status = {"status": "fallback", "proposer": "expert"}
    turns = [([{"role": "user", "content": r["question"]}], r["answer"]) for r in ROWS[:2]]
    rows = [{"prompt": q, "completion": [{"role": "assistant", "content": a}], **status} for q, a in turns]
    write_lines(folder / "mixed.jsonl", [{**rows[0], "status": "rewritten"}, rows[1]])
    # No token of a random model has a perplexity as low as 1.1: all of the fallback row are dropped.
    mask = {"weights": {"kind": "mask", "mask_perplexity": 1.1}, "method": "full", "steps": 1, "batch_rows": 2}
    found = training(run(request_for(folder, "mixed", "mixed.jsonl", **mask)), "loss")
    assert found == pytest.approx([loss_of_trl(folder, tmp_path, ROWS[:2], "nll", ends=1)], rel=1e-5)
    card = json.loads((folder / "mixed" / "sft.json").read_text())
    assert card["tokens"]["without_weight"] == 3
    with pytest.raises(TrainingDataError, match="leaves nothing to train on but the ends of turns"):
        run(request_for(folder, "nothing", **{**mask, "weights": {**mask["weights"], "apply_to": "all"}}))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_anchor_holds_the_model_near_the_base(folder: Path, method: str) -> None:
    further: dict[str, Any] = {"method": method, "steps": 6, "schedule": "constant_with_warmup", "warmup": 0}
    free, held = (
        run(request_for(folder, f"anchor-{method}-{weight}", kl_weight=weight, **further)) for weight in (1e-6, 20.0)
    )
    assert training(free, "kl")[0] == pytest.approx(0, abs=1e-6)
    assert 0 < training(held, "kl")[-1] < 0.5 * training(free, "kl")[-1]


def test_checkpointed_gradients_are_the_same(folder: Path) -> None:
    plain, saved = (
        run(request_for(folder, f"gradients-{way}", steps=2, gradient_checkpointing=way)) for way in (False, True)
    )
    for name in ("loss", "grad_norm"):
        assert training(saved, name) == pytest.approx(training(plain, name), rel=1e-4), name


KILLED = """
import os, signal, sys
from trainer.request import SftRequest
from trainer.sft.run import run_sft

def report(step):
    if [step.kind, str(step.step)] == sys.argv[2:]:
        os.kill(os.getpid(), signal.SIGKILL)

run_sft(SftRequest.model_validate_json(sys.argv[1]), resume=False, on_report=report)
"""


def kill(request: SftRequest, kind: str, step: int) -> None:
    """Train in a process that is killed when it reports this step."""
    command = [sys.executable, "-c", KILLED, request.model_dump_json(), kind, str(step)]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr


def test_killed_before_its_first_checkpoint_a_training_begins_again(folder: Path) -> None:
    request = request_for(folder, "killed-early", steps=2)
    kill(request, "eval", 0)
    assert [record.step for record in run(request, resume=True)] == [0, 1, 2, 2]


def test_after_a_kill_training_goes_on_as_if_nothing_had_been(folder: Path) -> None:
    """Killed in the second pass over the data, before the step's checkpoint was written."""
    settings: dict[str, Any] = {"epochs": 3, "weights": {"kind": "prob", "apply_to": "all"}, "kl_weight": 0.1}
    whole = run(request_for(folder, "whole", **settings))
    request = request_for(folder, "killed", **settings)
    kill(request, "train", 4)
    assert not (request.output / "sft.json").exists()
    before = {path.name: path.stat().st_mtime_ns for path in (request.output / "training").glob("base-tokens-*")}
    resumed = run(request, resume=True)
    assert [record.step for record in resumed] == [0, 1, 2, 3, 4, 5, 6, 6]
    for name in ("loss", "nll", "kl", "grad_norm", "learning_rate", "completion_tokens"):
        assert training(resumed, name) == pytest.approx(training(whole, name), rel=1e-4), name
    tensors = [load_file(folder / name / "model.safetensors") for name in ("whole", "killed")]
    for name, tensor in tensors[0].items():
        assert torch.allclose(tensor, tensors[1][name], atol=1e-6), name
    after = {path.name: path.stat().st_mtime_ns for path in (request.output / "training").glob("base-tokens-*")}
    assert before == after, "the base model is asked once"
    with pytest.raises(CheckpointError, match="made with other sft"):
        run_sft(request_for(folder, "killed", **settings, seed=1), resume=True)
    with pytest.raises(TrainingSettingsError, match="already"):
        run_sft(request, resume=False)


def test_trainings_that_share_a_folder_ask_the_base_model_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int | None] = []

    def count(model: Any, rows: Any, top_k: int | None = None) -> Any:
        asked.append(top_k)
        yield from ask(model, rows, top_k)

    monkeypatch.setattr("trainer.sft.weights.ask", count)
    shared = {"weights": {"kind": "prob", "apply_to": "all"}, "steps": 1}
    alone = run(request_for(folder, "alone-asked", **shared))
    for name, kind, rate in (("first", "prob", 1e-2), ("second", "mask", 1e-3)):
        sft = {**shared, "weights": {"kind": kind, "apply_to": "all", "mask_perplexity": 1e6}, "learning_rate": rate}
        request = request_for(folder, name, **sft).model_copy(update={"base_tokens": tmp_path / "said"})
        found = run(request)
        assert found[0].metrics["nll"] == pytest.approx(alone[0].metrics["nll"], rel=1e-6)
        assert not list((request.output / "training").glob("base-tokens-*"))
    assert asked == [20, 20, None], "for the weights of the first alone, then for weights and loss of the others"


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_kill_after_the_last_update_costs_no_further_one(folder: Path, method: str) -> None:
    """In the middle of a pass over the data, where transformers would go on with the rest of it."""
    request = request_for(folder, f"late-{method}", method=method, steps=3, schedule="constant_with_warmup")
    whole = run(request)
    weights = load_file(request.output / "model.safetensors")
    for file in [path for path in request.output.iterdir() if path.is_file()]:
        file.unlink()
    resumed = run(request, resume=True)
    assert [record.step for record in resumed if record.kind == "train"] == [1, 2, 3]
    assert training(resumed, "loss") == training(whole, "loss")
    again = load_file(request.output / "model.safetensors")
    assert weights.keys() == again.keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, again[name]), name


def test_a_loss_that_is_no_number_stops_and_says_that_the_updates_before_are_to_blame(folder: Path) -> None:
    wild = request_for(folder, "diverged", method="full", learning_rate=1e30, warmup=0, rows_per_pass=1, batch_rows=1)
    with pytest.raises(DivergedError, match=r"step 2: the loss is (nan|inf), and no row is to blame"):
        run(wild)
    assert not (folder / "diverged" / "sft.json").exists()


def test_a_gradient_that_is_not_finite_stops_before_its_update_with_the_rows_named(folder: Path) -> None:
    steep = tiny_model()
    steep.lm_head.weight.data *= 1e25  # the loss can be written in 32 bits, the squares of its gradient cannot
    steep.save_pretrained(folder / "steep")
    AutoTokenizer.from_pretrained(folder / "tiny").save_pretrained(folder / "steep")
    said = r"step 1: the norm of the gradient is inf in the batch of rows (row-\d, ){3}row-\d;"
    with pytest.raises(DivergedError, match=said):
        run(request_for(folder, "too-steep", model="steep", method="full"))
    assert not (folder / "too-steep" / "sft.json").exists()


def test_a_model_that_is_broken_before_the_first_update_is_not_trained(folder: Path) -> None:
    broken = tiny_model()
    tokenizer = AutoTokenizer.from_pretrained(folder / "tiny")
    broken.model.embed_tokens.weight.data[tokenizer.convert_tokens_to_ids("Plum")] = float("nan")
    broken.save_pretrained(folder / "broken")
    tokenizer.save_pretrained(folder / "broken")
    with pytest.raises(DivergedError, match=r"measured loss is not a finite number in the batch of rows row-3;"):
        run(request_for(folder, "broken-out", model="broken"))


def test_bad_data_is_said_before_the_model_is_opened(folder: Path) -> None:
    (folder / "no-system" / "model.safetensors").write_bytes(b"would not load")
    turns = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}]
    write_lines(folder / "system.jsonl", [{"messages": [*turns, {"role": "assistant", "content": "Hello"}]}])
    with pytest.raises(TrainingDataError, match="System role not supported"):
        run(request_for(folder, "refused", "system.jsonl", model="no-system"))
    write_lines(folder / "empty.jsonl", [{"prompt": "Hi", "completion": ""}])
    with pytest.raises(TrainingDataError, match="no row can be trained on"):
        run(request_for(folder, "refused", "empty.jsonl", model="no-system"))


def test_a_file_of_fallbacks_alone_is_trained_on_with_a_warning(folder: Path) -> None:
    turns = {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Hello"}]}
    write_lines(folder / "fallback.jsonl", [{**turns, "status": "fallback", "proposer": "expert"}])
    said: list[str] = []
    model = run_sft(request_for(folder, "fallback", "fallback.jsonl", steps=1), resume=False, on_note=said.append)
    assert "every row is a fallback" in said[0]
    assert json.loads((model / "sft.json").read_text())["shares"] == {"fallback": 1.0}
    assert resolve_model(ModelSettings(name=str(model))).path == model


def test_weights_for_rows_in_the_experts_words_are_said_to_do_nothing_where_there_are_none(folder: Path) -> None:
    row = {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Hello"}]}
    write_lines(folder / "rewritten.jsonl", [{**row, "status": "rewritten", "proposer": "rewrite"}] * 4)
    said: list[str] = []
    request = request_for(folder, "own", "rewritten.jsonl", weights={"kind": "mask"}, steps=1)
    run_sft(request, resume=False, on_note=said.append)
    assert "every row has an accepted rewrite" in said[0]
    assert not list((request.output / "training").glob("base-tokens-*")), "nothing is asked of the base model"
