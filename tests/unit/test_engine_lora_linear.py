"""The LoRA layer of the engine against PEFT's own, and against the formula."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear
from torch import Tensor, nn

from agent.engine.lora_linear import LoraLinear, use_lora_linear


def model_of(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"up": nn.Linear(12, 20), "down": nn.Linear(20, 12)}).to(dtype)


def adapted(model: nn.Module, config: LoraConfig) -> nn.Module:
    """With weights in the LoRA that are not zero, in float32, and the same ones every time."""
    inject_adapter_in_model(config, model)
    source = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora" in name:
            parameter.data = torch.randn(parameter.shape, generator=source) / 4
    return model


def pair(dtype: torch.dtype, **options: object) -> tuple[nn.Module, nn.Module]:
    """The same layers with PEFT's LoRA and with ours."""
    base = model_of(dtype)
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["up", "down"], **options)
    return adapted(copy.deepcopy(base), config), adapted(base, use_lora_linear(copy.deepcopy(config)))


def run(model: nn.Module, x: Tensor) -> Tensor:
    output: Tensor = model["down"](torch.relu(model["up"](x)))  # type: ignore[index]
    return output


def test_every_layer_has_it():
    theirs, ours = pair(torch.float32)
    assert {type(theirs["up"]), type(theirs["down"])} == {Linear}  # type: ignore[index]
    assert {type(ours["up"]), type(ours["down"])} == {LoraLinear}  # type: ignore[index]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_peft(dtype: torch.dtype):
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(2)).to(dtype)
    results = []
    for model in pair(dtype):
        output = run(model, x)
        assert output.dtype == dtype
        output.square().sum().backward()
        results.append((output, {n: p.grad for n, p in model.named_parameters() if "lora" in n}))
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.1, "rtol": 0.05}
    (theirs, their_gradients), (ours, our_gradients) = results
    torch.testing.assert_close(ours, theirs, **tolerance)
    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in our_gradients.items():
        assert gradient is not None
        assert gradient.dtype == torch.float32
        their_gradient = their_gradients[name]
        assert their_gradient is not None
        likeness = torch.nn.functional.cosine_similarity(gradient.flatten(), their_gradient.flatten(), dim=0)
        assert likeness > 0.999


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}])
def test_other_kinds_of_lora_compute_as_peft_does(options: dict[str, object]):
    x = torch.randn(3, 12, generator=torch.Generator().manual_seed(2))
    theirs, ours = pair(torch.float32, **options)
    assert torch.equal(run(ours, x), run(theirs, x))


def test_dropout_is_kept_in_training_and_gone_after():
    x = torch.randn(3, 12, generator=torch.Generator().manual_seed(2))
    plain, _ = pair(torch.float32)
    _, ours = pair(torch.float32, lora_dropout=0.5)
    assert not torch.allclose(run(ours.train(), x), run(plain, x))
    torch.testing.assert_close(run(ours.eval(), x), run(plain, x))
