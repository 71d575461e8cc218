"""Loading a base model for the transformers engine: what is allowed, in which type, on which device."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from safetensors import SafetensorError
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from agent.engine.attention import ATTENTION_NAME, packed_attention
from agent.engine.cache import CacheShape
from agent.exceptions import ModelError
from agent.settings import EngineSettings

# Share of the free memory that the keys and values of running sequences may take.
_CACHE_SHARE = {"cpu": 0.25, "cuda": 0.6}


def load_model(path: Path, settings: EngineSettings) -> Any:
    """Load a causal language model in evaluation mode with this package's attention.

    Raises:
        ModelError: the architecture cannot take it (sliding window, encoder, own attention code), or its files are
            broken.
    """
    device = pick_device(settings.device)
    AttentionInterface.register(ATTENTION_NAME, packed_attention)
    try:
        config = load_config(path)
        _check_supported(config, path, settings)
        model = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=pick_dtype(settings.dtype, device),
            attn_implementation=ATTENTION_NAME,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"model {path} cannot be loaded: {error}") from error
    if not getattr(model, "_supports_attention_backend", False):
        raise ModelError(f"model {path}: {config.model_type} has attention code of its own; serve it with vLLM")
    placed: Any = model
    return placed.to(device).eval().requires_grad_(False)


def load_config(path: Path) -> PreTrainedConfig:
    """The configuration in a model's folder. Raises OSError or ValueError as transformers does."""
    config: PreTrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    return config


def _check_supported(config: PreTrainedConfig, path: Path, settings: EngineSettings) -> None:
    text = config.get_text_config()
    layers = set(getattr(text, "layer_types", None) or ["full_attention"])
    windowed = getattr(text, "use_sliding_window", True) and getattr(text, "sliding_window", None)
    if layers != {"full_attention"} or (windowed and not getattr(text, "layer_types", None)):
        raise ModelError(f"model {path}: layers {sorted(layers)} are not full attention only; serve it with vLLM")
    if getattr(text, "attn_logit_softcapping", None):
        raise ModelError(f"model {path}: attention soft-capping is not supported here; serve it with vLLM")
    if text.model_type.startswith("hyperclovax") and getattr(text, "logits_scaling", 1) != 1:
        # It multiplies logits by what every other model divides them by.
        raise ModelError(f"model {path}: the logits of {text.model_type} are not supported here; serve it with vLLM")
    rope = getattr(text, "rope_parameters", None) or {}
    # A packed row has one set of frequencies, and this picks it by the longest text in the row.
    if rope.get("rope_type") == "longrope":
        longest = rope["original_max_position_embeddings"]
        if context_length(config, settings) > longest:
            raise ModelError(
                f"model {path}: its long rope changes beyond {longest} tokens; set engine.max_length to {longest} or "
                "less, or serve it with vLLM"
            )


def context_length(config: PreTrainedConfig, settings: EngineSettings) -> int:
    """Tokens of prompt and completion together: the setting, never more than the model was made for."""
    own = int(config.get_text_config().max_position_embeddings)
    return min(settings.max_length or own, own)


def cache_shape(model: Any) -> CacheShape:
    """Shape of one token's keys and values in this model."""
    text = model.config.get_text_config()
    heads = text.num_attention_heads
    return CacheShape(
        layers=text.num_hidden_layers,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        dtype=model.dtype,
        device=model.device,
    )


def cache_budget(device: torch.device) -> int:
    """Bytes that running sequences may take of what is free now."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return int(free * _CACHE_SHARE[device.type])


def pick_device(choice: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """Raises ModelError when CUDA is asked for and absent."""
    if choice == "cuda" and not torch.cuda.is_available():
        raise ModelError("engine.device is cuda, but torch sees no GPU; use auto or cpu")
    return torch.device("cuda" if choice != "cpu" and torch.cuda.is_available() else "cpu")


def pick_dtype(choice: Literal["auto", "bfloat16", "float32"], device: torch.device) -> torch.dtype:
    """bfloat16 where the processor multiplies it natively: elsewhere it is emulated and slower than float32."""
    if choice != "auto":
        return torch.bfloat16 if choice == "bfloat16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    # No public question for this exists; these are the ones inductor asks.
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def keep_freed_memory() -> None:
    """Tell glibc to reuse freed blocks instead of returning them to the system; elsewhere do nothing.

    Called before the thread that allocates begins: a thread would get an arena of its own, whose larger blocks are
    mappings all the same.

    Every step allocates the same tensors of megabytes again. By default each becomes a fresh mapping whose pages
    fault in one by one, which costs a tenth of a decode step and more.
    """
    trim_threshold, mmap_threshold, most_arenas = -1, -3, -8
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(most_arenas, 1)
    if not mallopt(mmap_threshold, 1 << 30):
        mallopt(mmap_threshold, 1 << 25)  # older versions refuse more
    mallopt(trim_threshold, (1 << 31) - 1)


def usable_cores() -> int:
    """Cores this process may use: its affinity, cut by the container's quota (cgroup v2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))
