"""The losses of single tokens: by hand, in chunks, and their gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig, PeftModelForCausalLM
from transformers import AttentionInterface

from agent.engine.attention import ATTENTION_NAME, packed_attention
from agent.engine.head import Head
from tests.tiny_chat import tiny_model
from trainer.sft.data import SftRow
from trainer.sft.loss import completion_hidden, objective, pack, token_losses

LOGITS = torch.tensor([[0.0, math.log(3)], [math.log(4), 0.0], [0.0, 0.0]])
AS_IT_IS = cast("Head", torch.nn.Identity())  # the hidden states of these tests are logits already
TARGETS = torch.tensor([1, 1, 0])  # of probability 3/4, 1/5 and 1/2


def test_the_loss_of_a_token_is_its_surprisal() -> None:
    nll, kl = token_losses(LOGITS, AS_IT_IS, TARGETS)
    assert nll.tolist() == pytest.approx([-math.log(0.75), -math.log(0.2), math.log(2)])
    assert kl.tolist() == [0, 0, 0]


def test_the_anchor_is_the_forward_kl_from_the_base() -> None:
    even = torch.zeros(3, 2)
    _, kl = token_losses(LOGITS, AS_IT_IS, TARGETS, (even, AS_IT_IS))
    by_hand = [0.5 * math.log(0.5 / p) + 0.5 * math.log(0.5 / (1 - p)) for p in (0.75, 0.2, 0.5)]
    assert kl.tolist() == pytest.approx(by_hand, abs=1e-6)
    assert token_losses(LOGITS, AS_IT_IS, TARGETS, (LOGITS, AS_IT_IS))[1].tolist() == pytest.approx([0, 0, 0], abs=1e-6)


def test_its_direction_forbids_losing_what_the_base_would_say() -> None:
    """Where the model gives up half of what the base may say, the forward KL is large; the reverse would be ln 2."""
    _, kl = token_losses(torch.tensor([[0.0, -20.0]]), AS_IT_IS, torch.tensor([0]), (torch.zeros(1, 2), AS_IT_IS))
    assert kl.item() > 5


def test_chunks_change_neither_values_nor_gradients() -> None:
    torch.manual_seed(0)
    base, targets = torch.randn(7, 5), torch.randint(5, (7,))
    results = []
    for chunk in (2, 100):
        logits = torch.randn(7, 5, generator=torch.Generator().manual_seed(1), requires_grad=True)
        nll, kl = token_losses(logits, AS_IT_IS, targets, (base, AS_IT_IS), chunk=chunk)
        (nll.sum() + kl.sum()).backward()
        results.append([nll.detach(), kl.detach(), logits.grad])
    for few, many in zip(*results, strict=True):
        assert few is not None
        assert torch.allclose(few, many, atol=1e-6)


def test_weights_scale_each_token() -> None:
    nll = torch.tensor([1.0, 2.0, 4.0])
    assert objective(nll, torch.tensor([1.0, 0.5, 0.0]), "nll").item() == 2


def test_dft_scales_by_the_probability_without_its_gradient() -> None:
    logits = LOGITS.clone().requires_grad_()
    nll, _ = token_losses(logits, AS_IT_IS, TARGETS)
    loss = objective(nll, torch.ones(3), "dft")
    assert loss.item() == pytest.approx(0.75 * -math.log(0.75) + 0.2 * -math.log(0.2) + 0.5 * math.log(2))
    (gradient,) = torch.autograd.grad(loss, logits)
    # Of -log p alone it is softmax - one-hot, for the second token (0.8, -0.8); scaled by its 0.2.
    assert gradient[1].tolist() == pytest.approx([0.16, -0.16], abs=1e-6)


def test_no_token_is_no_loss() -> None:
    nll, kl = token_losses(torch.zeros(0, 2, requires_grad=True), AS_IT_IS, torch.zeros(0, dtype=torch.long))
    assert (nll.sum() + kl.sum()).item() == 0


ROW = SftRow("a", "expert", [2, 5, 7], [6, 7, 8, 9, 3])


def a_model(kind: str) -> Any:
    """A random model, with an adapter whose weights are random, too, unless it is trained whole."""
    AttentionInterface.register(ATTENTION_NAME, packed_attention)
    model: Any = tiny_model()
    if kind in ("full", "tied"):
        if kind == "tied":
            model.lm_head.weight = model.model.embed_tokens.weight
        return model
    targets = ["q_proj", "lm_head"] if kind == "adapter on the head" else ["q_proj"]
    saved = ["lm_head"] if kind == "trained copy of the head" else None
    lora = LoraConfig(r=2, target_modules=targets, modules_to_save=saved, task_type="CAUSAL_LM")
    model = PeftModelForCausalLM(model, lora)
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(weight)
    return model


@contextmanager
def attention(model: Any, name: str) -> Iterator[None]:
    model.set_attn_implementation(name)
    yield
    model.zero_grad()


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("kind", ["full", "tied", "adapter", "adapter on the head", "trained copy of the head"])
def test_losses_and_gradients_are_those_of_whole_logits(kind: str) -> None:
    model, other = a_model(kind), tiny_model()
    torch.nn.init.normal_(other.lm_head.weight, std=0.3)
    targets, batch = torch.tensor(ROW.completion_ids), pack([ROW])
    has_adapter = hasattr(model, "disable_adapter")
    base_model = model if has_adapter else other

    def whole(of: Any) -> torch.Tensor:
        return of(torch.tensor([ROW.prompt_ids + ROW.completion_ids])).logits[0, len(ROW.prompt_ids) - 1 : -1]

    with attention(model, "eager"):
        with torch.no_grad(), model.disable_adapter() if has_adapter else nullcontext():
            expected = whole(base_model).log_softmax(-1)
        logprobs = whole(model).log_softmax(-1)
        nll = -logprobs.gather(1, targets[:, None])[:, 0]
        kl = (expected.exp() * (expected - logprobs)).sum(-1)
        before = gradients(model, nll.sum() + kl.sum())
    for model_ in (model, base_model):
        model_.set_attn_implementation(ATTENTION_NAME)
    with attention(model, ATTENTION_NAME):
        with torch.no_grad(), model.disable_adapter() if has_adapter else nullcontext():
            base = completion_hidden(base_model, batch)
        base_of = (base, Head(base_model, adapted=False))
        found = token_losses(completion_hidden(model, batch), Head(model), targets, base_of, chunk=2)
        after = gradients(model, found[0].sum() + found[1].sum())
    assert found[0].tolist() == pytest.approx(nll.tolist(), rel=1e-5)
    assert found[1].tolist() == pytest.approx(kl.tolist(), rel=1e-4, abs=1e-6)
    assert kl.max() > 1e-4
    assert before.keys() == after.keys()
    assert any("lm_head" in name for name in after) == (kind in ("full", "adapter on the head") or "copy" in kind)
    for name, gradient in before.items():
        assert (after[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-5, name


def test_few_tokens_have_logits_at_once_in_both_directions() -> None:
    rows: list[int] = []

    def head(states: torch.Tensor) -> torch.Tensor:
        rows.append(len(states))
        return states

    hidden = torch.randn(7, 5, requires_grad=True)
    nll, _ = token_losses(hidden, cast("Head", head), torch.randint(5, (7,)), chunk=3)
    assert rows == [3, 3, 1]
    nll.sum().backward()
    assert sorted(rows) == [1, 1, 3, 3, 3, 3]
