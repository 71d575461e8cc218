"""The learning rate of each update."""

from __future__ import annotations

import math

from trainer.settings import OptimizerSettings


def rate_factor(update: int, optimizer: OptimizerSettings, updates: int) -> float:
    """What the learning rate is multiplied with in an update, 0 to 1.

    That of transformers, but its warm-up begins at 0, and an update at rate 0 is a roll-out for nothing: here the
    first of `warmup_steps` updates has 1 / (warmup_steps + 1).

    Args:
        update: its number, from 0.
        optimizer: schedule and warm-up.
        updates: of the whole training.
    """
    warmup = optimizer.warmup_steps
    if update < warmup:
        return (update + 1) / (warmup + 1)
    done = (update - warmup) / max(1, updates - warmup)
    match optimizer.schedule:
        case "constant_with_warmup":
            return 1.0
        case "linear":
            return max(0.0, 1 - done)
        case "cosine":
            return max(0.0, 0.5 * (1 + math.cos(math.pi * done)))
