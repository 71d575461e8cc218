"""Publishing an adapter: what the new version holds, and that versions never change."""

from __future__ import annotations

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from agent.adapters import open_adapter
from trainer.exceptions import PublishError
from trainer.publish import AdapterCard, DataOfTraining, publish, published_before

A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
CARD = AdapterCard(
    name="math",
    base_model="tiny",
    base_commit="0" * 40,
    base_revision="4b5a9c",
    data=DataOfTraining("train.jsonl", 128, "0f3a"),
    left_out={"cannot be read": 2},
    tasks={"math": 120, "text": 8},
    settings={"train": {"steps": 20}},
    reward="rewright",
    curves=[{"step": 0, "pass_rate": 0.2}, {"step": 20, "pass_rate": 0.6}],
    held_out={"pass_rate": 0.6, "mismatch": 0.9},
    step=20,
)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A trained adapter as PEFT saves it."""
    folder = tmp_path / "best"
    folder.mkdir()
    save_file({A: torch.full((2, 4), 1 / 3), B: torch.arange(8.0).reshape(4, 2)}, folder / "adapter_model.safetensors")
    config = {
        "auto_mapping": {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers.models.llama"},
        "base_model_name_or_path": "/somebody/models/tiny",
        "inference_mode": False,
        "lora_alpha": 4,
        "peft_type": "LORA",
        "r": 2,
        "target_modules": ["v_proj", "q_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "README.md").write_text("written by PEFT")
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "adapters" / "math"


def test_versions_are_counted_from_one(weights: Path, home: Path) -> None:
    assert [publish(weights, home, CARD) for _ in range(3)] == [home / "1", home / "2", home / "3"]


def test_the_next_version_is_above_the_highest_even_if_others_are_gone(weights: Path, home: Path) -> None:
    for other in ("7", "training"):
        (home / other).mkdir(parents=True)
    assert publish(weights, home, CARD) == home / "8"


def test_what_is_published_can_be_served_on_its_base_model(weights: Path, home: Path) -> None:
    publish(weights, home, CARD)
    assert open_adapter(home, "tiny").name == "math@1"


def test_weights_are_stored_as_bfloat16(weights: Path, home: Path) -> None:
    stored = load_file(publish(weights, home, CARD) / "adapter_model.safetensors")
    assert {name: tensor.dtype for name, tensor in stored.items()} == {A: torch.bfloat16, B: torch.bfloat16}
    assert stored[A].tolist() == [[0.333984375] * 4] * 2
    assert stored[B].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_the_card_says_what_was_trained(weights: Path, home: Path) -> None:
    card = json.loads((publish(weights, home, CARD) / "rewright.json").read_text())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", card.pop("created"))
    assert card.pop("versions").keys() == {"python", "rewright", "torch", "transformers", "trl", "peft"}
    assert card == {
        "name": "math",
        "version": "1",
        "base_model": "tiny",
        "base_commit": "0" * 40,
        "base_revision": "4b5a9c",
        "data": {"file": "train.jsonl", "rows": 128, "sha256": "0f3a"},
        "left_out": {"cannot be read": 2},
        "tasks": {"math": 120, "text": 8},
        "settings": {"train": {"steps": 20}},
        "reward": "rewright",
        "curves": [{"step": 0, "pass_rate": 0.2}, {"step": 20, "pass_rate": 0.6}],
        "held_out": {"pass_rate": 0.6, "mismatch": 0.9},
        "step": 20,
    }


def test_the_configuration_names_no_folder_of_the_machine_that_trained(weights: Path, home: Path) -> None:
    config = json.loads((publish(weights, home, CARD) / "adapter_config.json").read_text())
    assert config == {
        "auto_mapping": None,
        "base_model_name_or_path": "tiny",
        "inference_mode": True,
        "lora_alpha": 4,
        "peft_type": "LORA",
        "r": 2,
        "revision": None,
        "target_modules": ["q_proj", "v_proj"],
    }


def test_pictures_and_samples_are_published_too_and_nothing_else(weights: Path, home: Path) -> None:
    (weights / "curves.png").write_bytes(b"picture")
    (weights / "samples.md").write_text("# Samples\n")
    folder = publish(weights, home, CARD)
    expected = ["adapter_config.json", "adapter_model.safetensors", "curves.png", "rewright.json", "samples.md"]
    assert sorted(p.name for p in folder.iterdir()) == expected
    assert (folder / "curves.png").read_bytes() == b"picture"


def test_published_files_are_read_only_and_the_folder_can_be_read_by_others(weights: Path, home: Path) -> None:
    mask = os.umask(0o022)
    try:
        folder = publish(weights, home, CARD)
    finally:
        os.umask(mask)
    assert {p.stat().st_mode & 0o777 for p in folder.iterdir()} == {0o444}
    assert folder.stat().st_mode & 0o777 == 0o755


def test_publishing_leaves_nothing_else_behind(weights: Path, home: Path) -> None:
    publish(weights, home, CARD)
    assert [p.name for p in home.iterdir()] == ["1"]


def test_concurrent_publishers_get_versions_of_their_own(weights: Path, home: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda step: publish(weights, home, replace(CARD, step=step)), range(16)))
    assert sorted(int(folder.name) for folder in folders) == list(range(1, 17))
    for step, folder in enumerate(folders):
        card = json.loads((folder / "rewright.json").read_text())
        assert (card["step"], card["version"]) == (step, folder.name)


@pytest.mark.parametrize("name", ["", "a/b", "..", "math@1", "-x"])
def test_a_name_that_is_no_folder_name_is_refused(weights: Path, home: Path, name: str) -> None:
    with pytest.raises(PublishError, match="is no name for an adapter"):
        publish(weights, home, replace(CARD, name=name))


def test_weights_that_are_not_finite_are_not_published(weights: Path, home: Path) -> None:
    save_file({A: torch.full((2, 4), float("nan"))}, weights / "adapter_model.safetensors")
    with pytest.raises(PublishError, match=r"nothing is published: .*lora_A\.weight holds NaN"):
        publish(weights, home, CARD)
    assert not home.exists()


def test_other_weights_than_those_of_a_lora_are_not_published(weights: Path, home: Path) -> None:
    save_file({A: torch.ones(2, 4), "lm_head.weight": torch.ones(2)}, weights / "adapter_model.safetensors")
    with pytest.raises(PublishError, match=r"'lm_head\.weight' is no weight of a LoRA"):
        publish(weights, home, CARD)


def test_a_score_that_could_not_be_measured_is_left_out(weights: Path, home: Path) -> None:
    folder = publish(weights, home, replace(CARD, held_out={"mismatch": 0.9, "diversity": float("nan")}))
    assert json.loads((folder / "rewright.json").read_text())["held_out"] == {"mismatch": 0.9}


def test_a_failure_half_way_publishes_nothing(weights: Path, home: Path) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        publish(weights, home, replace(CARD, settings={"output": Path("x")}))
    assert list(home.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_error(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PublishError, match="the adapter cannot be published"):
        publish(weights, tmp_path / "file" / "math", CARD)


def test_what_a_resumed_training_would_publish_again_is_the_version_that_is_there(weights: Path, home: Path) -> None:
    assert published_before(weights, home, CARD) is None
    publish(weights, home, replace(CARD, step=10))
    newest = publish(weights, home, CARD)
    assert published_before(weights, home, replace(CARD, curves=[], created="later")) == newest


@pytest.mark.parametrize(
    "change",
    [{"step": 10}, {"data": DataOfTraining("train.jsonl", 128, "other")}, {"settings": {"train": {"steps": 30}}}],
)
def test_another_step_other_data_and_other_settings_are_another_version(
    weights: Path, home: Path, change: dict[str, Any]
) -> None:
    publish(weights, home, CARD)
    assert published_before(weights, home, replace(CARD, **change)) is None


def test_other_weights_are_another_version(weights: Path, home: Path) -> None:
    publish(weights, home, CARD)
    save_file({A: torch.zeros(2, 4), B: torch.arange(8.0).reshape(4, 2)}, weights / "adapter_model.safetensors")
    assert published_before(weights, home, CARD) is None


def test_a_version_that_cannot_be_read_is_no_reason_not_to_publish(weights: Path, home: Path) -> None:
    (home / "3").mkdir(parents=True)
    (home / "3" / "rewright.json").write_text("{")
    assert published_before(weights, home, CARD) is None
