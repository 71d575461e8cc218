"""Warm start: which rows are imitated, and that imitation makes them likelier and resumes from what was kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM

from agent.assembly import open_chat
from agent.chat import ChatFormat
from agent.engine.attention import ATTENTION_NAME, packed_attention
from agent.gate import Gate
from agent.models import ModelFiles
from agent.settings import GateSettings
from tests.disk_log import assert_durable, disk_log
from trainer.exceptions import TrainingDataError
from trainer.packing import completion_logprobs
from trainer.settings import TrainSettings
from trainer.warm_start import Imitated, read_warm_start, require_candidates, warm_start

ROWS = [Imitated([*range(3, 43), 50 + i], [5 + i, 6, 7, 2]) for i in range(6)]
SETTINGS = TrainSettings.model_validate({"warm_start": {"epochs": 20, "rows": 6, "learning_rate": 0.03}})


def tiny_policy() -> PeftModel:
    torch.manual_seed(0)
    AttentionInterface.register(ATTENTION_NAME, packed_attention)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        attn_implementation=ATTENTION_NAME,
    )
    return get_peft_model(LlamaForCausalLM(config).float(), LoraConfig(r=4, lora_alpha=32, target_modules="all-linear"))


def surprisal(model: PeftModel, row: Imitated) -> float:
    prompt, completion = torch.tensor([row.prompt_ids]), torch.tensor([row.completion_ids])
    with torch.no_grad():
        logprobs, _ = completion_logprobs(
            model, prompt, torch.ones_like(prompt), completion, torch.ones_like(completion), 1.0
        )
    return -logprobs.mean().item()


def test_imitation_makes_the_rewrites_likelier_and_reports_the_loss_of_every_update(tmp_path: Path) -> None:
    model, seen = tiny_policy(), []
    before = sum(surprisal(model, row) for row in ROWS) / len(ROWS)
    warm_start(model, ROWS, SETTINGS, tmp_path, "base", is_main=True, on_step=lambda *step: seen.append(step))
    after = sum(surprisal(model, row) for row in ROWS) / len(ROWS)
    assert [(step, steps) for step, steps, _ in seen] == [(i, 20) for i in range(1, 21)]
    assert after < before - 0.2
    assert seen[0][2] == pytest.approx(before, abs=0.3)


def test_what_was_fitted_before_an_interruption_is_taken_as_it_is(tmp_path: Path) -> None:
    first, again = tiny_policy(), tiny_policy()
    warm_start(first, ROWS, SETTINGS, tmp_path, "base", is_main=True, on_step=lambda *_: None)

    def never(*_: object) -> None:
        raise AssertionError("nothing is to be fitted again")

    warm_start(again, ROWS, SETTINGS, tmp_path, "base", is_main=True, on_step=never)
    assert surprisal(again, ROWS[0]) == pytest.approx(surprisal(first, ROWS[0]), abs=1e-6)


def test_what_was_fitted_is_on_the_disk_before_it_can_be_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = disk_log(monkeypatch, tmp_path)
    warm_start(tiny_policy(), ROWS, SETTINGS, tmp_path, "base", is_main=True, on_step=lambda *_: None)
    (kept,) = (path.name for path in tmp_path.iterdir())
    assert_durable(log, kept, f".{kept}-unfinished/adapter_model.safetensors", f".{kept}-unfinished")


def test_the_same_rows_from_another_file_are_not_fitted_again(tmp_path: Path) -> None:
    steps: list[int] = []
    for file in ("seed.jsonl", "/elsewhere/seed.jsonl"):
        warm = SETTINGS.warm_start.model_copy(update={"file": Path(file)})
        settings = SETTINGS.model_copy(update={"warm_start": warm})
        warm_start(
            tiny_policy(), ROWS, settings, tmp_path, "base", is_main=True, on_step=lambda step, *_: steps.append(step)
        )
    assert steps == [*range(1, 21)]


def test_other_rows_another_base_model_and_other_clipping_are_fitted_anew(tmp_path: Path) -> None:
    clipped = SETTINGS.model_copy(update={"optimizer": SETTINGS.optimizer.model_copy(update={"max_grad_norm": 0.1})})
    fits = [(ROWS, SETTINGS, "base"), (ROWS[:3], SETTINGS, "base"), (ROWS, clipped, "base"), (ROWS, SETTINGS, "other")]
    steps: list[int] = []
    for rows, settings, base in fits:
        warm_start(
            tiny_policy(), rows, settings, tmp_path, base, is_main=True, on_step=lambda step, *_: steps.append(step)
        )
    assert steps == [*range(1, 21)] * 4


@pytest.fixture(scope="module")
def chat(model_files: ModelFiles) -> ChatFormat:
    return open_chat(model_files)


def write(path: Path, *candidates: str | None) -> Path:
    rows = [
        {"question": f"Ida has {i} pens and buys 2. How many has she?", "answer": f"{i}+2={i + 2}\n#### {i + 2}"}
        | ({"candidate": candidate} if candidate else {})
        for i, candidate in enumerate(candidates)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def good(i: int) -> str:
    return f"Ida has {i} pens and buys 2 more, so she has {i} + 2 = {i + 2} pens.\n\nThe answer is \\boxed{{{i + 2}}}."


async def test_only_rows_whose_candidate_passes_and_whose_question_is_not_held_out_are_imitated(
    tmp_path: Path, chat: ChatFormat
) -> None:
    file = write(tmp_path / "rows.jsonl", good(0), good(1), "Ida has 2 + 2 = 5 pens. The answer is 5.", None, good(4))
    gate = Gate(GateSettings())
    held_out = {(("user", "Ida has 4 pens and buys 2. How many has she?"),)}
    rows = await read_warm_start(file, gate, chat, context=2048, held_out=held_out)
    await gate.aclose()
    assert [row.completion_ids for row in rows] == [chat.completion_ids(good(0)), chat.completion_ids(good(1))]


async def test_a_file_without_any_usable_candidate_is_refused(tmp_path: Path, chat: ChatFormat) -> None:
    file = write(tmp_path / "rows.jsonl", None, "It is 7.")
    gate = Gate(GateSettings())
    with pytest.raises(TrainingDataError, match="none of its 2 rows can be imitated"):
        await read_warm_start(file, gate, chat, context=2048, held_out=set())
    await gate.aclose()


def test_a_file_without_any_candidate_is_refused_without_a_model(tmp_path: Path) -> None:
    require_candidates(write(tmp_path / "one.jsonl", None, "It is 7."))
    with pytest.raises(TrainingDataError, match="none of its 2 readable rows has a `candidate`"):
        require_candidates(write(tmp_path / "none.jsonl", None, " "))


async def test_a_row_that_the_chat_template_refuses_is_not_imitated(tmp_path: Path, model_files: ModelFiles) -> None:
    strict = open_chat(model_files)
    refusal = "{% if '1 pens' in (messages | string) %}{{ raise_exception('no pens') }}{% endif %}"
    strict.tokenizer.chat_template = refusal + str(strict.tokenizer.chat_template)
    file = write(tmp_path / "rows.jsonl", good(0), good(1), good(2))
    gate = Gate(GateSettings())
    rows = await read_warm_start(file, gate, strict, context=2048, held_out=set())
    await gate.aclose()
    assert [row.completion_ids for row in rows] == [strict.completion_ids(good(i)) for i in (0, 2)]
