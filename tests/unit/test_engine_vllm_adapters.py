"""Which adapters fit a base model, told from headers; no vLLM needed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from agent.engine.vllm_adapters import BaseWeights
from agent.exceptions import AdapterError

UP = "model.layers.0.mlp.up_proj"


def base_weights(folder: Path, *, max_rank: int = 8, **more: np.ndarray) -> BaseWeights:
    weights = {
        "model.embed_tokens.weight": np.zeros((50, 6), np.float32),
        "model.layers.0.mlp.up_proj.weight": np.zeros((10, 6), np.float32),
        "model.layers.0.input_layernorm.weight": np.zeros(6, np.float32),
        "lm_head.weight": np.zeros((50, 6), np.float32),
    }
    save_file(weights | more, folder / "model.safetensors")
    return BaseWeights(folder, max_rank)


def adapter(folder: Path, layer: str = UP, *, rank: int = 4, inputs: int = 6, outputs: int = 10) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    weights = {"lora_A": np.zeros((rank, inputs), np.float32), "lora_B": np.zeros((outputs, rank), np.float32)}
    save_file(
        {f"base_model.model.{layer}.{side}.weight": value for side, value in weights.items()},
        folder / "adapter_model.safetensors",
    )
    return folder


def test_only_linear_layers_of_the_blocks_are_adapted(tmp_path: Path):
    assert base_weights(tmp_path).layer_kinds == ["up_proj"]


def test_an_adapter_of_the_right_shapes_fits(tmp_path: Path):
    base_weights(tmp_path).check_fits("a@1", adapter(tmp_path / "a"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 3}, r"shape \[3, 6\], expected \[4, 6\]"),
        ({"inputs": 7}, r"shape \[4, 7\], expected \[4, 6\]"),
        ({"outputs": 11}, r"shape \[11, 4\], expected \[10, 4\]"),
        ({"layer": "model.layers.1.mlp.up_proj"}, "no linear layer"),
        ({"layer": "model.layers.0.input_layernorm"}, "no linear layer"),
        ({"layer": "lm_head"}, "no linear layer"),
    ],
)
def test_an_adapter_of_other_shapes_or_layers_is_refused(tmp_path: Path, change: dict[str, object], message: str):
    with pytest.raises(AdapterError, match=message):
        base_weights(tmp_path).check_fits("a@1", adapter(tmp_path / "a", **change))  # type: ignore[arg-type]


def test_a_rank_beyond_the_room_of_the_engine_is_refused(tmp_path: Path):
    with pytest.raises(AdapterError, match="max_lora_rank"):
        base_weights(tmp_path, max_rank=2).check_fits("a@1", adapter(tmp_path / "a"))


def test_the_shape_of_a_quantised_layer_is_left_to_vllm(tmp_path: Path):
    down = "model.layers.0.mlp.down_proj"
    base = base_weights(tmp_path, **{f"{down}.qweight": np.zeros((2, 6), np.int32)})
    base.check_fits("a@1", adapter(tmp_path / "a", down))


def test_weights_cut_short_are_refused(tmp_path: Path):
    folder = adapter(tmp_path / "a")
    content = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(content[:-8])
    with pytest.raises(AdapterError, match="cannot be read"):
        base_weights(tmp_path).check_fits("a@1", folder)
