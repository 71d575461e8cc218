"""The losses of single tokens: by hand, in chunks, and their gradients."""

from __future__ import annotations

import math

import pytest
import torch

from trainer.sft.loss import objective, token_losses

LOGITS = torch.tensor([[0.0, math.log(3)], [math.log(4), 0.0], [0.0, 0.0]])
TARGETS = torch.tensor([1, 1, 0])  # of probability 3/4, 1/5 and 1/2


def test_the_loss_of_a_token_is_its_surprisal() -> None:
    nll, kl = token_losses(LOGITS, TARGETS)
    assert nll.tolist() == pytest.approx([-math.log(0.75), -math.log(0.2), math.log(2)])
    assert kl.tolist() == [0, 0, 0]


def test_the_anchor_is_the_forward_kl_from_the_base() -> None:
    even = torch.zeros(3, 2)
    _, kl = token_losses(LOGITS, TARGETS, even)
    by_hand = [0.5 * math.log(0.5 / p) + 0.5 * math.log(0.5 / (1 - p)) for p in (0.75, 0.2, 0.5)]
    assert kl.tolist() == pytest.approx(by_hand, abs=1e-6)
    assert token_losses(LOGITS, TARGETS, LOGITS)[1].tolist() == pytest.approx([0, 0, 0], abs=1e-6)


def test_its_direction_forbids_losing_what_the_base_would_say() -> None:
    """Where the model gives up half of what the base may say, the forward KL is large; the reverse would be ln 2."""
    _, kl = token_losses(torch.tensor([[0.0, -20.0]]), torch.tensor([0]), torch.zeros(1, 2))
    assert kl.item() > 5


def test_chunks_change_neither_values_nor_gradients() -> None:
    torch.manual_seed(0)
    base, targets = torch.randn(7, 5), torch.randint(5, (7,))
    results = []
    for chunk in (2, 100):
        logits = torch.randn(7, 5, generator=torch.Generator().manual_seed(1), requires_grad=True)
        nll, kl = token_losses(logits, targets, base, chunk=chunk)
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
    nll, _ = token_losses(logits, TARGETS)
    loss = objective(nll, torch.ones(3), "dft")
    assert loss.item() == pytest.approx(0.75 * -math.log(0.75) + 0.2 * -math.log(0.2) + 0.5 * math.log(2))
    (gradient,) = torch.autograd.grad(loss, logits)
    # Of -log p alone it is softmax - one-hot, for the second token (0.8, -0.8); scaled by its 0.2.
    assert gradient[1].tolist() == pytest.approx([0.16, -0.16], abs=1e-6)


def test_no_token_is_no_loss() -> None:
    nll, kl = token_losses(torch.zeros(0, 2, requires_grad=True), torch.zeros(0, dtype=torch.long))
    assert (nll.sum() + kl.sum()).item() == 0
