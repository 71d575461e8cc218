"""Attention by plain products against torch's fused kernel in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from agent.engine.masked import lower_right, masked_attention

CPU = torch.device("cpu")
MASKS = {"causal": (7, 7, None), "after a past": (5, 12, lower_right(7, 5, CPU))}


def states(queries: int, keys: int, dtype: torch.dtype) -> list[Tensor]:
    """Queries of 6 heads, keys and values of 2, as a batch of 3; the same numbers in every type."""
    source = torch.Generator().manual_seed(0)
    shapes = [(3, 6, queries, 8), (3, 2, keys, 8), (3, 2, keys, 8)]
    return [torch.randn(shape, generator=source).bfloat16().to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("name", MASKS)
def test_bfloat16_products_give_the_output_and_the_gradients_of_the_fused_kernel(name: str):
    queries, keys, mask = MASKS[name]
    exact, rounded = states(queries, keys, torch.float64), states(queries, keys, torch.bfloat16)
    outputs = [masked_attention(*inputs, mask, 0.35) for inputs in (exact, rounded)]
    for output in outputs:
        (output * torch.arange(8)).sum().backward()
    torch.testing.assert_close(outputs[1].double(), outputs[0], atol=0.02, rtol=0.02)
    for one, other in zip(rounded, exact, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.nn.functional.cosine_similarity(one.grad.double().flatten(), other.grad.flatten(), dim=0) > 0.9995


def test_a_key_that_is_masked_out_has_no_influence():
    q, k, v = states(5, 12, torch.bfloat16)
    mask = lower_right(7, 5, CPU)
    mask[:, 3] = False
    before = masked_attention(q, k, v, mask, 0.35)
    with torch.no_grad():
        v[:, :, 3] = 1e4
        k[:, :, 3] = -7
    assert torch.equal(masked_attention(q, k, v, mask, 0.35), before)
