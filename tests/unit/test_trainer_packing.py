"""Packed groups give the log-probabilities and gradients of padded rows."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

from agent.engine.attention import ATTENTION_NAME
from tests.tiny_chat import packed_model
from trainer.packing import completion_logprobs, pack_rows, token_logprobs

OPENING = list(range(3, 43))
PROMPTS = [[*OPENING, 50, 51, 52], [*OPENING, 60], [*OPENING, 70, 71]]
COMPLETIONS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15], [5, 6, 7], [16, 17]]
ROWS = list(zip([PROMPTS[0]] * 3 + [PROMPTS[1]] * 2 + [PROMPTS[2]], COMPLETIONS, strict=True))


@pytest.fixture
def model() -> LlamaForCausalLM:
    return packed_model()


def padded(rows: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, ...]:
    width, length = max(len(p) for p, _ in rows), max(len(c) for _, c in rows)
    return tuple(
        torch.tensor(values)
        for values in (
            [[0] * (width - len(p)) + p for p, _ in rows],
            [[0] * (width - len(p)) + [1] * len(p) for p, _ in rows],
            [c + [0] * (length - len(c)) for _, c in rows],
            [[1] * len(c) + [0] * (length - len(c)) for _, c in rows],
        )
    )


def packed_logprobs(model: LlamaForCausalLM, rows: list[tuple[list[int], list[int]]]) -> torch.Tensor:
    prompt_ids, prompt_mask, completion_ids, completion_mask = padded(rows)
    logprobs, _ = completion_logprobs(model, prompt_ids, prompt_mask, completion_ids, completion_mask, 0.7)
    return logprobs[completion_mask.bool()]


def plain_logprobs(model: LlamaForCausalLM, rows: list[tuple[list[int], list[int]]]) -> torch.Tensor:
    model.set_attn_implementation("eager")
    parts = []
    for prompt, completion in rows:
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1] / 0.7
        parts.append(logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0])
    model.set_attn_implementation(ATTENTION_NAME)
    return torch.cat(parts)


def test_the_shared_opening_and_every_prompt_are_packed_once() -> None:
    packed = pack_rows(*padded(ROWS))
    assert len(packed.ids_N) == 40 + (3 + 1 + 2) + sum(map(len, COMPLETIONS))
    assert packed.targets.tolist() == [token for completion in COMPLETIONS for token in completion]


def test_logprobs_equal_those_of_each_row_alone(model: LlamaForCausalLM) -> None:
    with torch.no_grad():
        assert torch.allclose(packed_logprobs(model, ROWS), plain_logprobs(model, ROWS), atol=1e-5)


def test_gradients_equal_those_of_each_row_alone(model: LlamaForCausalLM) -> None:
    gradients = []
    for logprobs in (packed_logprobs, plain_logprobs):
        model.zero_grad()
        weights = torch.linspace(-1, 1, sum(map(len, COMPLETIONS)))
        (logprobs(model, ROWS) * weights).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.allclose(*gradients, atol=1e-5)


def test_prompts_without_a_common_opening_pack_too(model: LlamaForCausalLM) -> None:
    rows = [([1, 2, 3], [4, 5]), ([6, 7], [8])]
    with torch.no_grad():
        assert torch.allclose(packed_logprobs(model, rows), plain_logprobs(model, rows), atol=1e-5)


def test_a_masked_completion_takes_no_part() -> None:
    prompts, prompt_mask, completions, mask = padded(ROWS)
    mask[1] = 0
    packed = pack_rows(prompts, prompt_mask, completions, mask)
    assert 8 not in packed.targets
    assert packed.cells.tolist()[:8] == [0, 1, 2, 10, 11, 12, 13, 14]


def test_nothing_left_is_an_error() -> None:
    prompts, prompt_mask, completions, mask = padded(ROWS)
    with pytest.raises(ValueError, match="masked out"):
        pack_rows(prompts, prompt_mask, completions, mask * 0)


def test_entropy_is_that_of_the_scaled_distribution() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 50.0, 0.0, 0.0]])
    logprobs, entropies = token_logprobs(logits, lambda states: states, torch.tensor([2, 1]), temperature=0.5)
    assert logprobs.tolist() == pytest.approx([-torch.tensor(4.0).log().item(), 0.0], abs=1e-6)
    assert entropies.tolist() == pytest.approx([torch.tensor(4.0).log().item(), 0.0], abs=1e-6)
