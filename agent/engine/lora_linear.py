"""A LoRA beside a linear layer in three products, all of them in the type of the activations."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn.functional import linear


def use_lora_linear(config: LoraConfig) -> LoraConfig:
    """Have PEFT build the LoRA of `config` of `LoraLinear`; returns `config`. What is saved of it stays the same."""
    config._register_custom_module({nn.Linear: LoraLinear})
    return config


class LoraLinear(Linear):
    """PEFT's LoRA of a linear layer, without its passes over every activation.

    PEFT keeps an adapter in float32 and raises every input to it, then scales, adds and rounds what comes out: beside
    a model in bfloat16 that doubles the time of a decode step. Here the few weights of the adapter are rounded
    instead, and the last product adds itself to the layer's own. Gradients reach the float32 weights.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = self.active_adapters[0] if len(self.active_adapters) == 1 else None
        if name is None or args or kwargs or self.disable_adapters or self.merged or not self._is_plain(name):
            output: Tensor = super().forward(x, *args, **kwargs)
            return output
        own: Tensor = self.base_layer(x)
        inner = linear(x, _weight(self.lora_A[name], x.dtype)).flatten(0, -2)
        outer = _weight(self.lora_B[name], x.dtype)
        return torch.addmm(own.flatten(0, -2), inner, outer.T, alpha=self.scaling[name]).view_as(own)

    def _is_plain(self, name: str) -> bool:
        """Whether the adapter changes this layer, with two matrices and nothing else."""
        if name not in self.lora_A or name in self.lora_variant or self.lora_bias[name]:
            return False
        return not self.training or isinstance(self.lora_dropout[name], nn.Identity)


def _weight(layer: Any, dtype: torch.dtype) -> Tensor:
    weight: Tensor = layer.weight
    return weight.to(dtype)
