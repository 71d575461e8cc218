"""A random model of the embedded one's words, small enough to start in no time, and LoRAs for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from agent.models import ModelFiles, resolve_model
from agent.settings import ModelSettings

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def make_model(folder: Path, tokenizer: ModelFiles, *, max_length: int = 2048) -> ModelFiles:
    """Save a model with random weights and the tokenizer of another one."""
    torch.manual_seed(0)
    words = json.loads((tokenizer.path / "config.json").read_text())["vocab_size"]
    config = LlamaConfig(
        vocab_size=words,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=max_length,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in _TOKENIZER:
        shutil.copyfile(tokenizer.path / name, folder / name)
    return resolve_model(ModelSettings(name=str(folder)))


def publish_lora(store: Path, model: ModelFiles, version: int, *, name: str = "math", **card: Any) -> Path:
    """A random LoRA in `store/name/version`; its weights depend on the version."""
    torch.manual_seed(version)
    folder = store / name / str(version)
    base = AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=64, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(str(folder))
    described = {"name": name, "version": str(version), "base_model": model.name} | card
    (folder / "rewright.json").write_text(json.dumps(described))
    return folder
