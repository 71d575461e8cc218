"""Correction for samples that an engine drew which computes a little differently from the trainer.

Two copies of the same weights do not round alike, so a token is drawn with a probability q that is not quite the
policy's p. Its part of the loss is weighted by p / q, cut off above so that no single token decides an update:
truncated importance sampling by token, TRL's `token_truncate`. With a nucleus below 1, q is that of the nucleus, and
the weight holds its mass.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_WEIGHT = 2.0


def truncated_weights(trained_BC: Tensor, drawn_BC: Tensor, mask_BC: Tensor) -> Tensor:
    """min(p / q, 2) of each token, (B, C); 1 where masked.

    Args:
        trained_BC: log-probabilities in the trainer's model, nats.
        drawn_BC: those that the tokens were drawn with, nats.
        mask_BC: 1 at the tokens that are trained on.
    """
    # No product: a log-probability that is no number would be none behind the mask too.
    return torch.exp(torch.where(mask_BC.bool(), trained_BC - drawn_BC, 0.0)).clamp(max=LARGEST_WEIGHT)


def correction_metrics(trained_BC: Tensor, drawn_BC: Tensor, mask_BC: Tensor) -> dict[str, float]:
    """How far apart engine and trainer are, over the tokens that are trained on (NaN where there is none).

    Returns:
        `engine/difference`: mean distance of the two log-probabilities, nats.
        `engine/weight`: mean of the weights.
        `engine/cut`: share of tokens whose weight was cut off.
    """
    kept = mask_BC.bool()
    difference = (trained_BC - drawn_BC)[kept]
    weights = truncated_weights(trained_BC, drawn_BC, mask_BC)[kept]
    return {
        "engine/difference": difference.abs().mean().item(),
        "engine/weight": weights.mean().item(),
        "engine/cut": (weights == LARGEST_WEIGHT).float().mean().item(),
    }


def kl_terms(trained_BC: Tensor, base_BC: Tensor) -> Tensor:
    """What each token that the trained model drew adds to KL(trained || base), (B, C), nats, never negative.

    q/p - log(q/p) - 1 with q of the base model: unbiased, and of less variance than -log(q/p), which may be negative
    (k3 in Schulman, Approximating KL Divergence, 2020).

    Args:
        trained_BC, base_BC: log-probabilities of the drawn tokens, nats.
    """
    ratio = base_BC - trained_BC
    return torch.exp(ratio) - ratio - 1
