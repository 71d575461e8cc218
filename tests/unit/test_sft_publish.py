"""The written model: its card, its whole appearance, and what loads it."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModelForCausalLM

from agent.adapters import open_adapter
from agent.models import resolve_model
from agent.settings import ModelSettings
from agent.weights import weights_sha256
from tests.tiny_chat import tiny_model, tiny_tokenizer
from trainer.exceptions import PublishError
from trainer.publish import DataOfTraining
from trainer.sft.publish import SftCard, model_card, write_model
from trainer.sft.settings import SftSettings, WeightSettings


def card_of(settings: SftSettings) -> SftCard:
    return SftCard(
        name="tuned",
        base_model="tiny",
        base_revision="b" * 64,
        data=DataOfTraining("rows.jsonl", 8, "d" * 64),
        statuses={"rewritten": 5, "self_solved": 1, "fallback": 2},
        left_out={"status is error": 3},
        tokens={"prompt": 80, "completion": 40, "without_weight": 6},
        trained_tokens=80,
        steps=2,
        seconds=1.5,
        loss_rows=8,
        initial_loss=0.74,
        final_loss=0.63,
        notes=[],
        settings={"sft": settings.model_dump(mode="json")},
    )


def lora_model() -> Any:
    model = PeftModelForCausalLM(tiny_model(), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(weight, 0.5)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.tensor([[2, 5, 6, 7]])).logits


def test_the_machine_readable_card_has_the_shares(tmp_path: Path) -> None:
    write_model(tiny_model(), tiny_tokenizer(), tmp_path, card_of(SftSettings(method="full")))
    card = json.loads((tmp_path / "sft.json").read_text())
    assert card["shares"] == {"rewritten": 0.625, "self_solved": 0.125, "fallback": 0.25}
    assert (card["initial_loss"], card["final_loss"], card["loss_rows"]) == (0.74, 0.63, 8)
    assert card["data"] == {"file": "rows.jsonl", "rows": 8, "sha256": "d" * 64}
    assert card["settings"]["sft"]["method"] == "full"


def test_the_model_card_says_what_a_reader_asks() -> None:
    settings = SftSettings(weights=WeightSettings(kind="mask"), kl_weight=0.1, learning_rate=2e-5)
    text = model_card(card_of(settings))
    assert text.startswith('---\nlibrary_name: transformers\nbase_model: "tiny"\n')
    for fact in (
        f"weights SHA-256 `{'b' * 64}`",
        f"content SHA-256 `{'d' * 64}`",
        "| method | LoRA, rank 64 |",
        "| token weights | `mask` (perplexity over 2.5) on rows in the expert's words; 6 of 40 tokens dropped |",
        "| KL to the base model | 0.1 |",
        "| learning rate | 2e-05, cosine |",
        "| loss before the first update | 0.7400 nats/token (8 rows) |",
        "| loss after the last update | 0.6300 nats/token (the same rows) |",
        "| fallback | 2 | 25.0% |",
        "- 3 left out: status is error",
    ):
        assert fact in text, fact


def test_a_fully_trained_model_is_a_model_folder_of_the_same_weights(tmp_path: Path) -> None:
    model = tiny_model()
    write_model(model, tiny_tokenizer(), tmp_path, card_of(SftSettings(method="full")))
    files = resolve_model(ModelSettings(name=str(tmp_path)))
    loaded = type(model).from_pretrained(files.path)
    assert torch.equal(logits(loaded), logits(model))
    assert len(weights_sha256(files.path)) == 64


def test_a_merged_adapter_answers_as_the_model_that_carried_it(tmp_path: Path) -> None:
    expected = logits(lora_model())
    assert not torch.allclose(expected, logits(tiny_model()), atol=1e-3)
    write_model(lora_model(), tiny_tokenizer(), tmp_path, card_of(SftSettings()))
    loaded = type(tiny_model()).from_pretrained(resolve_model(ModelSettings(name=str(tmp_path))).path)
    assert torch.allclose(logits(loaded), expected, atol=1e-5)
    assert open_adapter(tmp_path / "adapter", "tiny").path == tmp_path / "adapter"


def test_an_adapter_alone_is_written_without_a_model(tmp_path: Path) -> None:
    write_model(lora_model(), tiny_tokenizer(), tmp_path, card_of(SftSettings(merge=False)))
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "README.md", "sft.json"}
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
    assert "library_name: peft" in (tmp_path / "README.md").read_text()


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    model = lora_model()
    next(weight for name, weight in model.named_parameters() if "lora_B" in name).data.fill_(float("nan"))
    with pytest.raises(PublishError, match="is not written"):
        write_model(model, tiny_tokenizer(), tmp_path, card_of(SftSettings()))
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_writing_leaves_no_folder_that_passes_for_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = SftSettings(method="full")
    write_model(tiny_model(), tiny_tokenizer(), tmp_path, card_of(full))
    moved: list[str] = []
    replace = os.replace

    def fail_after_two(source: Path, target: Path) -> None:
        if len(moved) == 2:
            raise OSError("no space left")
        moved.append(target.name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_after_two)
    with pytest.raises(PublishError, match="no space left"):
        write_model(tiny_model(), tiny_tokenizer(), tmp_path, dataclasses.replace(card_of(full), steps=3))
    assert not {"config.json", "sft.json"} & {path.name for path in tmp_path.iterdir()}
