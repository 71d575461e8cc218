"""Adapters of a tiny model, from files."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from agent.engine.lora import LoraHost
from agent.engine.lora_linear import LoraLinear
from agent.engine.requests import AdapterRequest
from tests.tiny_chat import tiny_model


@pytest.mark.parametrize("base", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("saved", [torch.bfloat16, torch.float32])
def test_an_adapter_is_held_in_the_type_of_the_base_model(base: torch.dtype, saved: torch.dtype, tmp_path: Path):
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(tiny_model(), config).to(saved).save_pretrained(str(tmp_path))
    model = tiny_model().to(base)
    host = LoraHost(model)
    for name in ("first", "second"):
        host.load(AdapterRequest(name, tmp_path, Future()))
    layer = model.model.layers[0].self_attn.q_proj
    assert isinstance(layer, LoraLinear)
    assert {parameter.dtype for name, parameter in model.named_parameters() if "lora" in name} == {base}
    first, second = (layer.lora_A[key].weight for key in ("adapter_1", "adapter_2"))
    assert torch.equal(first, second)
    assert first.abs().sum() > 0
