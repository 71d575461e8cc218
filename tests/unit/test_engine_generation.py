"""Groups of samples from waiting to finished, with the passes of a tiny real model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from agent.engine.sampling import Draw, draw_tokens
from agent.exceptions import EngineMemoryError
from tests.tiny_chat import tiny_model


def tiny_generation(activate: Callable[[str | None], None]) -> tuple[Generation, ModelRunner]:
    AttentionInterface.register(ATTENTION_NAME, packed_attention)
    model = tiny_model().eval()
    model.set_attn_implementation(ATTENTION_NAME)
    runner = ModelRunner(model, PagedCache(cache_shape(model), budget=1 << 24))
    return Generation(runner, activate, frozenset(), str, max_samples=8, pack_tokens=64), runner


@torch.inference_mode()
def test_a_pass_that_fails_drops_what_nobody_waits_for_under_another_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    active: list[str | None] = []
    generation, runner = tiny_generation(active.append)
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


@pytest.mark.parametrize("failing", [{1, 2}, {3}], ids=["of the prompts", "while decoding"])
@torch.inference_mode()
def test_memory_that_a_draw_lacks_costs_the_request_to_blame_alone(
    monkeypatch: pytest.MonkeyPatch, failing: set[int]
) -> None:
    def outcomes(failing: set[int]) -> list[BaseException | list[list[int]]]:
        generation, runner = tiny_generation(lambda adapter: None)
        draws = 0

        def draw(logits: Tensor, rows: Sequence[Draw]) -> tuple[list[int], list[float]]:
            nonlocal draws
            draws += 1
            drawn = draw_tokens(logits, rows)
            if draws in failing:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return drawn

        monkeypatch.setattr("agent.engine.generation.draw_tokens", draw)
        futures: list[Future[list[Completion]]] = [Future(), Future()]
        for future in futures:
            sampling = Sampling(temperature=1.0, top_p=0.5, max_tokens=9, seed=0)
            generation.add(GenerationRequest([4, 5, 6], sampling, 2, None, future))
        while generation:
            generation.admit()
            generation.step()
        assert (runner.cache.prompts.used, runner.cache.completions.used) == (0, 0)
        return [future.exception() or [c.ids for c in future.result()] for future in futures]

    undisturbed, disturbed = outcomes(set()), outcomes(failing)
    assert undisturbed[0] == undisturbed[1]
    assert disturbed.count(undisturbed[0]) == 1, "the other request gets what it would have got"
    assert sum(isinstance(outcome, EngineMemoryError) for outcome in disturbed) == 1
