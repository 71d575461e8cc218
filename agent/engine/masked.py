"""Softmax attention of several queries on keys that they may see in part: torch's fused kernel, or plain products.

Shape suffixes: B batch, H query heads, G key-value heads, N queries, M keys, D head dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

# Scores of one call in bfloat16 that plain products may hold; training keeps them for the backward pass.
_MOST_SCORES = 1 << 25


def masked_attention(q_BHND: Tensor, k_BGMD: Tensor, v_BGMD: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Attention output, (B, H, N, D). Each key-value head serves H / G query heads that are neighbours.

    Args:
        q_BHND, k_BGMD, v_BGMD: queries, keys and values.
        mask: boolean (N, M), True where attended, at least one in each row; None is causal and needs N = M.
        scaling: scores are multiplied by it.
    """
    batch, heads, queries, _ = q_BHND.shape
    keys = k_BGMD.shape[2]
    # torch's fused kernel for CPUs multiplies bfloat16 through float32, and blocks too small to pay for it: forward
    # and backward together take four times as long as the plain products.
    small = batch * heads * queries * keys <= _MOST_SCORES
    if q_BHND.device.type == "cpu" and q_BHND.dtype == torch.bfloat16 and small:
        return _by_products(q_BHND, k_BGMD, v_BGMD, mask, scaling)
    repeats = heads // k_BGMD.shape[1]
    return scaled_dot_product_attention(
        q_BHND,
        k_BGMD.repeat_interleave(repeats, dim=1),
        v_BGMD.repeat_interleave(repeats, dim=1),
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
    )


def lower_right(past: int, new: int, device: torch.device) -> Tensor:
    """Causal mask of `new` tokens after `past` ones, (new, past + new), True where attended."""
    return torch.ones(new, past + new, dtype=torch.bool, device=device).tril(diagonal=past)


def _by_products(q_BHND: Tensor, k_BGMD: Tensor, v_BGMD: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    batch, heads, queries, dim = q_BHND.shape
    groups, keys = k_BGMD.shape[1:3]
    if mask is None:
        mask = lower_right(0, queries, q_BHND.device)
    bias = torch.zeros_like(mask, dtype=q_BHND.dtype).masked_fill_(~mask, -torch.inf)
    rows = (q_BHND * scaling).reshape(batch, groups, -1, dim)
    scores = (rows @ k_BGMD.transpose(2, 3)).view(batch, heads, queries, keys).add_(bias)
    weights = torch.softmax(scores, dim=-1).view(batch, groups, -1, keys)
    return (weights @ v_BGMD).view(batch, heads, queries, dim)
