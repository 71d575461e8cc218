"""Who sits an exam: hashes of weights, tokenizer and chat template, and of the adapter; what loading does to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from agent.adapters import AdapterFiles, adapter_sha256
from agent.models import ModelFiles, tokenizer_sha256
from agent.weights import model_tensors, weights_sha256
from trainer.exam.results import ModelIdentity


def identity_of(files: ModelFiles, adapter: AdapterFiles | None = None) -> ModelIdentity:
    """What tells a model, with or without an adapter, from others."""
    return ModelIdentity(
        name=files.name,
        weights_sha256=weights_sha256(files.path),
        tokenizer_sha256=tokenizer_sha256(files.path),
        adapter=adapter.name if adapter else None,
        adapter_sha256=adapter_sha256(adapter.path) if adapter else None,
    )


def rounding_note(folder: Path, dtype: str) -> str | None:
    """What is lost where weights stored in float32 are computed with in `dtype`; None where nothing is.

    A model that was fine-tuned whole differs from its base by less than bfloat16 can tell in most of its weights.
    """
    if dtype != "bfloat16":
        return None
    weights = [np.frombuffer(t.data, dtype=np.uint32) for t in model_tensors(folder) if t.dtype == "F32"]
    rounded = sum(int(np.count_nonzero(bits & 0xFFFF)) for bits in weights)  # a bfloat16 is the upper half of a float32
    if not rounded:
        return None
    return (
        f"examined in bfloat16, to which {rounded / sum(map(len, weights)):.0%} of the weights stored in float32 were "
        'rounded: of a small full fine-tuning that loses most; engine.dtype = "float32" examines what is stored'
    )
