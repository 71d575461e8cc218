"""Weights of linear layers in the order in which the CPU's matrix kernels read them, made once instead of every step.

A decode step multiplies few rows by every weight, and the library under `torch.nn.functional.linear` first copies the
weight into blocks: half of the step at 16 rows, a fifth at 256.
"""

from __future__ import annotations

from typing import Any

import psutil
import torch
from torch import Tensor, nn

# Rows for which the blocks are laid out. oneDNN picks the same ones for any number on the processors measured.
_ROWS = 128
# The packed weights stand beside the plain ones, which embeddings and training need.
_MEMORY_SHARE = 0.25


class PackedLinear(nn.Linear):
    """A frozen linear layer that shares its weight with `linear` and keeps it packed as well.

    Packed in inference mode, which has no backward pass to keep anything for; plain otherwise.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)

    def forward(self, input: Tensor) -> Tensor:
        if not torch.is_inference_mode_enabled():
            return super().forward(input)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(input, self._packed, self.bias, "none", [], "")
        return product


def pack_linear_layers(model: Any) -> None:
    """Replace the linear layers of a frozen float32 model on a CPU; leave every other model as it is.

    Also left as they are: weights that would take more than a quarter of the free memory a second time.
    """
    if model.device.type != "cpu" or model.dtype != torch.float32:
        return
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    layers = [(name, module) for name, module in model.named_modules() if type(module) is nn.Linear]
    size = sum(layer.weight.nbytes for _, layer in layers)
    if size > _MEMORY_SHARE * psutil.virtual_memory().available:
        return
    for name, layer in layers:
        model.set_submodule(name, PackedLinear(layer))
