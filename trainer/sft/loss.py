"""Per-token losses of packed rows: only completion positions have logits, and float32 holds few of them at once.

Rows are laid end to end, without padding. Each attends to itself alone, through the attention that scoring uses too
(`agent.engine.groups`), so packing is exact on every device and needs no kernel of its own.

Shape suffixes: N packed tokens, T completion tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from agent.engine.groups import GroupPlan, make_group
from trainer.sft.data import SftRow

# Completion positions in float32 at once.
CHUNK = 256


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Rows end to end.

    Attributes:
        ids_N, positions_N: tokens, and their positions in their own row.
        sources_T: packed position whose logits predict each completion token.
        targets_T: the completion tokens.
        lengths: tokens of each row.
    """

    ids_N: Tensor
    positions_N: Tensor
    sources_T: Tensor
    targets_T: Tensor
    lengths: list[int]


def pack(rows: Sequence[SftRow], device: torch.device | None = None) -> PackedBatch:
    """Lay rows end to end; the completion tokens come out in the order of the rows."""
    ids: list[int] = []
    positions: list[int] = []
    sources: list[int] = []
    targets: list[int] = []
    for row in rows:
        first = len(ids) + len(row.prompt_ids)
        sources.extend(range(first - 1, first - 1 + len(row.completion_ids)))
        targets.extend(row.completion_ids)
        ids.extend(row.prompt_ids)
        ids.extend(row.completion_ids)
        positions.extend(range(row.tokens))

    def tensor(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    lengths = [row.tokens for row in rows]
    return PackedBatch(tensor(ids), tensor(positions), tensor(sources), tensor(targets), lengths)


def completion_logits(model: Any, batch: PackedBatch) -> Tensor:
    """Logits that predict the completion tokens, (T, V), in the type that the model computes in.

    Args:
        model: loaded with this package's attention.
        batch: on the model's device.
    """
    logits: Tensor = model(**_inputs(batch), logits_to_keep=batch.sources_T).logits[0]
    return logits


def completion_hidden(model: Any, batch: PackedBatch) -> Tensor:
    """Last hidden states that predict the completion tokens, (T, hidden size); arguments as `completion_logits`."""
    hidden: Tensor = model.get_decoder()(**_inputs(batch)).last_hidden_state[0, batch.sources_T]
    return hidden


def _inputs(batch: PackedBatch) -> dict[str, Any]:
    groups = [make_group(length, [0], batch.ids_N.device) for length in batch.lengths]
    return {
        "input_ids": batch.ids_N[None],
        "position_ids": batch.positions_N[None],
        "use_cache": False,
        "plan": GroupPlan(0, groups),
    }


def token_losses(
    logits_TV: Tensor, targets_T: Tensor, base_logits_TV: Tensor | None = None, *, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Surprisal of each target, and the forward KL from the base model at its position; both (T,), nats.

    KL(base || model) is exact, over the whole vocabulary; zero without `base_logits_TV`. It weighs every token by how
    likely the base model found it, so it resists losing what the base model would say.
    """
    if not len(targets_T):
        return logits_TV.float().sum(-1), logits_TV.float().sum(-1)
    bases: Sequence[Tensor | None] = (
        torch.split(base_logits_TV, chunk) if base_logits_TV is not None else [None] * math.ceil(len(targets_T) / chunk)
    )
    # Pieces are split off, not sliced: the gradient of a slice is a whole tensor of zeros.
    pieces = zip(torch.split(logits_TV, chunk), torch.split(targets_T, chunk), bases, strict=True)
    losses = [checkpoint(_chunk_losses, *piece, use_reentrant=False) for piece in pieces]
    nll, kl = zip(*losses, strict=True)
    return torch.cat(nll), torch.cat(kl)


def _chunk_losses(logits: Tensor, targets: Tensor, base: Tensor | None) -> tuple[Tensor, Tensor]:
    logprobs = logits.float().log_softmax(dim=-1)
    nll = -logprobs.gather(1, targets[:, None])[:, 0]
    if base is None:
        return nll, torch.zeros_like(nll)
    expected = base.float().log_softmax(dim=-1)
    return nll, (expected.exp() * (expected - logprobs)).sum(dim=-1)


def objective(nll_T: Tensor, weights_T: Tensor, kind: Literal["nll", "dft"]) -> Tensor:
    """Sum of the weighted losses of the tokens, nats.

    `dft` scales each by the probability that the model gives the token now, without a gradient of it (Dynamic
    Fine-Tuning, arXiv 2508.05629), as TRL's loss of that name.
    """
    losses_T = nll_T * (-nll_T.detach()).exp() if kind == "dft" else nll_T
    return (losses_T * weights_T).sum()


def top_entropy(logits_TV: Tensor, k: int, *, chunk: int = CHUNK) -> Tensor:
    """Entropy of the `k` likeliest tokens, renormalised among themselves, over ln k: (T,), from 0 to 1.

    The gate of EAFT (arXiv 2601.02151), with k as in the paper 20 by default. A smaller vocabulary is taken whole.
    """
    entropies = []
    for piece in torch.split(logits_TV, chunk):
        top = piece.topk(min(k, piece.shape[-1]), dim=-1).values.float()
        logprobs = top.log_softmax(dim=-1)
        entropies.append(-(logprobs.exp() * logprobs).sum(dim=-1) / math.log(top.shape[-1]))
    return torch.cat(entropies).clamp(0, 1)
