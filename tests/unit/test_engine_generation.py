"""Groups of samples from waiting to finished, with the passes of a tiny real model."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface

from agent.engine import Completion, Sampling
from agent.engine.attention import ATTENTION_NAME, CompletionPages, PromptPages, packed_attention
from agent.engine.cache import PagedCache
from agent.engine.generation import Generation
from agent.engine.loading import cache_shape
from agent.engine.requests import GenerationRequest
from agent.engine.runner import ModelRunner
from tests.tiny_chat import tiny_model


@torch.inference_mode()
def test_a_pass_that_fails_drops_what_nobody_waits_for_under_another_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    AttentionInterface.register(ATTENTION_NAME, packed_attention)
    model = tiny_model().eval()
    model.set_attn_implementation(ATTENTION_NAME)
    runner = ModelRunner(model, PagedCache(cache_shape(model), budget=1 << 24))
    active: list[str | None] = []
    generation = Generation(runner, active.append, frozenset(), str, max_samples=8, pack_tokens=64)
    futures: dict[str | None, Future[list[Completion]]] = {None: Future(), "b": Future()}
    for adapter, future in futures.items():
        generation.add(GenerationRequest([4, 5, 6], Sampling(max_tokens=9), 2, adapter, future))
    generation.admit()

    def fail(tokens: list[int], prompts: Sequence[PromptPages], completions: Sequence[CompletionPages]) -> Tensor:
        futures["b" if active[-1] is None else None].cancel()
        raise RuntimeError("the first pass fails")

    monkeypatch.setattr(runner, "decode", fail)
    generation.step()
    assert sorted(future.cancelled() for future in futures.values()) == [False, True]
    assert not generation
    assert (runner.cache.prompts.used, runner.cache.completions.used) == (0, 0)
