"""The engine protocol on a transformers model in this process: CPU, or a GPU without vLLM."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from transformers import PreTrainedTokenizerBase

from agent.chat import completion_text
from agent.engine import Completion, EngineInfo, Sampling
from agent.engine.cache import PagedCache
from agent.engine.limits import check_score, room_for_new_tokens
from agent.engine.loading import (
    cache_budget,
    cache_shape,
    context_length,
    keep_freed_memory,
    load_model,
    usable_cores,
)
from agent.engine.lora import LoraHost
from agent.engine.packing import pack_linear_layers
from agent.engine.requests import AdapterRequest, GenerationRequest, ScoreRequest
from agent.engine.runner import ModelRunner
from agent.engine.worker import Worker
from agent.exceptions import EngineClosedError
from agent.settings import EngineSettings

_PACK_TOKENS = {"cpu": 1024, "cuda": 8192}


class TransformersEngine:
    """Continuous batching over packed tokens; see `agent.engine.worker` for how a round goes.

    Args:
        name: the model's name in records.
        path: folder of the model.
        tokenizer: of the same model; its end-of-turn and end-of-text tokens stop a completion.
        stop_ids: tokens that end a completion.
        settings: dtype, device, threads, batch and context limits.

    Raises:
        ModelError: the model cannot be loaded or is not supported.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        tokenizer: PreTrainedTokenizerBase,
        stop_ids: frozenset[int],
        settings: EngineSettings,
    ) -> None:
        torch.set_num_threads(settings.threads or usable_cores())
        keep_freed_memory()
        model = load_model(path, settings)
        pack_linear_layers(model)
        self.info = EngineInfo(name, context_length(model.config, settings))
        cache = PagedCache(cache_shape(model), cache_budget(model.device))
        self._runner, self._adapters = ModelRunner(model, cache), LoraHost(model)
        self._worker = Worker(
            self._runner,
            self._adapters,
            stop_ids,
            partial(completion_text, tokenizer),
            max_sequences=settings.max_sequences,
            pack_tokens=_PACK_TOKENS[model.device.type],
        )
        self._worker.start()

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, n: int = 1, adapter: str | None = None
    ) -> list[Completion]:
        """See `Engine.generate`."""
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        room = room_for_new_tokens(self.info, prompt_ids)
        sampling = replace(sampling, max_tokens=min(sampling.max_tokens, room))
        future: Future[list[Completion]] = Future()
        self._worker.submit(GenerationRequest(prompt_ids, sampling, n, adapter, future))
        return await asyncio.wrap_future(future)

    async def score(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], adapter: str | None = None
    ) -> list[float]:
        """See `Engine.score`."""
        check_score(self.info, prompt_ids, completion_ids)
        if not completion_ids:
            return []
        future: Future[list[float]] = Future()
        self._worker.submit(ScoreRequest(prompt_ids, completion_ids, adapter, future))
        return await asyncio.wrap_future(future)

    async def load_adapter(self, name: str, path: Path) -> None:
        """See `LocalEngine.load_adapter`."""
        future: Future[None] = Future()
        self._worker.submit(AdapterRequest(name, path, future))
        await asyncio.wrap_future(future)

    async def unload_adapter(self, name: str) -> None:
        """See `LocalEngine.unload_adapter`."""
        future: Future[None] = Future()
        self._worker.submit(AdapterRequest(name, None, future))
        await asyncio.wrap_future(future)

    def add_trainable_adapter(self, name: str, config: LoraConfig) -> PeftModel:
        """A new adapter for a trainer in this process; requests may name it at once.

        The trainer and the engine use the model in turns: the trainer between `hand_over` and its next request.

        Raises:
            AdapterError: as `LoraHost.add_trainable`.
        """
        return self._adapters.add_trainable(name, config)

    def hand_over(self, name: str) -> None:
        """Leave the idle engine's model to a trainer, with the adapter `name` active.

        What was computed with the adapter is forgotten, since its weights are about to change.
        """
        self._runner.prefixes.forget(name)
        self._adapters.activate(name)

    async def check(self) -> None:
        """Raises EngineClosedError when the engine's thread no longer runs."""
        if not self._worker.is_alive():
            raise EngineClosedError("the engine's thread has ended; see the log for its last error")

    async def close(self) -> None:
        """See `LocalEngine.close`."""
        self._worker.close()
        await asyncio.to_thread(self._worker.join)
