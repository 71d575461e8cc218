"""The adapter that a training begins with."""

from __future__ import annotations

from peft import LoraConfig
from transformers import set_seed

from trainer.settings import LoraSettings


def seeded_lora(lora: LoraSettings, seed: int) -> LoraConfig:
    """Shape of the adapter, whose first weights the seed decides: TRL sets its own only after."""
    set_seed(seed)
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    return LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, task_type="CAUSAL_LM")
