"""From hidden states to logits as the model's own forward pass, for those who hold few rows of logits at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Head:
    """The head of one causal language model, with the scale and the soft cap that some have.

    Args:
        model: a transformers causal language model, with or without an adapter around it.
        adapted: False for the base model's own head, whatever an adapter makes of it.
    """

    def __init__(self, model: Any, *, adapted: bool = True) -> None:
        linear = model.get_output_embeddings()
        if not adapted:  # PEFT's names of what a LoRA, or a whole trained copy, stands for
            linear = getattr(linear, "base_layer", getattr(linear, "original_module", linear))
        self._linear = linear
        config = model.config.get_text_config()
        self._softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self._scale = float(getattr(config, "logit_scale", None) or 1.0)
        self._scale /= float(getattr(config, "logits_scaling", None) or 1.0)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits, (rows, V), of hidden states, (rows, hidden size)."""
        logits: Tensor = self._linear(hidden) * self._scale if self._scale != 1 else self._linear(hidden)
        return torch.tanh(logits / self._softcap) * self._softcap if self._softcap else logits
