"""Scores of packed trees, on a tiny random model: what full logits give, pair by pair."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

from agent.engine.attention import ATTENTION_NAME
from agent.engine.cache import PagedCache
from agent.engine.loading import cache_shape
from agent.engine.runner import ModelRunner, Prompt, Tree
from tests.tiny_chat import packed_model

OPENING = list(range(3, 43))
TREES = [
    Tree([*OPENING, 50, 51, 52], [[5, 6, 7], [8], [9, 10, 11, 12, 13]]),
    Tree(OPENING, [[14, 15]]),
    Tree([*OPENING, 60], [list(range(3, 93)), [5], list(range(20, 90))]),
]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return packed_model().eval()


def plain_logprobs(model: LlamaForCausalLM, prompt: list[int], completion: list[int]) -> list[float]:
    model.set_attn_implementation("eager")
    logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    model.set_attn_implementation(ATTENTION_NAME)
    return logits.log_softmax(-1)[torch.arange(len(completion)), torch.tensor(completion)].tolist()


@pytest.mark.parametrize("trees", [TREES, TREES[:1], TREES[1:2], TREES[::-1]], ids=["all", "one", "pair", "reversed"])
@torch.inference_mode()
def test_scores_are_those_of_full_logits(model: LlamaForCausalLM, trees: list[Tree]) -> None:
    runner = ModelRunner(model, PagedCache(cache_shape(model), budget=0))
    for tree, scores in zip(trees, runner.score(trees), strict=True):
        for completion, score in zip(tree.completions, scores, strict=True):
            assert score == pytest.approx(plain_logprobs(model, list(tree.prompt_ids), list(completion)), abs=3e-5)


@pytest.fixture
def computed(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The token ids of every forward pass."""
    passes: list[torch.Tensor] = []
    decoder = model.get_decoder()
    forward = decoder.forward
    monkeypatch.setattr(decoder, "forward", lambda **given: passes.append(given["input_ids"]) or forward(**given))
    return passes


def test_what_the_prompts_of_a_pack_begin_with_is_computed_once(
    model: LlamaForCausalLM, computed: list[torch.Tensor]
) -> None:
    with torch.inference_mode():
        ModelRunner(model, PagedCache(cache_shape(model), budget=0)).score(TREES)
    tokens = sum(tree.tokens for tree in TREES)
    assert [ids.shape[1] for ids in computed] == [tokens - 2 * (len(OPENING) - 1)]


def test_a_longer_opening_is_computed_from_where_the_known_one_ends(
    model: LlamaForCausalLM, computed: list[torch.Tensor]
) -> None:
    longer = [*OPENING, *range(50, 90)]
    prompts = [[*OPENING, 50], [*OPENING, 51], [*longer, 52], [*longer, 53], [*longer, 54, 55]]
    with torch.inference_mode():
        runner = ModelRunner(model, PagedCache(cache_shape(model), budget=1 << 24))
        warm = [runner.prefill([Prompt(ids, ([],))], None)[0] for ids in prompts]
        assert [ids.shape[1] for ids in computed] == [41, 40, 1, 41, 40, 1, 2]
        for ids, logits in zip(prompts, warm, strict=True):
            cold = ModelRunner(model, PagedCache(cache_shape(model), budget=1 << 24))
            torch.testing.assert_close(logits, cold.prefill([Prompt(ids, ([],))], None)[0], atol=3e-5, rtol=0)
