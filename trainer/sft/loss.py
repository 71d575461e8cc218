"""Per-token losses of packed rows: only completion positions have logits, and few of them at once.

Rows are laid end to end, without padding. Each attends to itself alone, through the attention that scoring uses too
(`agent.engine.groups`), so packing is exact on every device and needs no kernel of its own.

Shape suffixes: N packed tokens, T completion tokens, H hidden size, V vocabulary.
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
from agent.engine.head import Head
from trainer.sft.data import SftRow

# Completion positions that have logits at once.
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


def completion_hidden(model: Any, batch: PackedBatch) -> Tensor:
    """Last hidden states that predict the completion tokens, (T, H), in the type that the model computes in.

    Args:
        model: loaded with this package's attention.
        batch: on the model's device.
    """
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
    hidden_TH: Tensor,
    head: Head,
    targets_T: Tensor,
    base: tuple[Tensor, Head] | None = None,
    *,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Surprisal of each target, and the forward KL from the base model at its position; both (T,), nats.

    No more than `chunk` rows of logits exist at once: the backward pass computes them again.

    KL(base || model) is exact, over the whole vocabulary; zero without `base`. It weighs every token by how likely the
    base model found it, so it resists losing what the base model would say.

    Args:
        hidden_TH: last hidden states that predict the targets.
        head: makes logits of them.
        targets_T: the tokens.
        base: the same two of the base model, which get no gradient.
        chunk: rows of logits at once.
    """
    if not len(targets_T):
        nothing = head(hidden_TH).float().sum(-1)
        return nothing, nothing
    base_TH, base_head = base or (None, None)
    # Pieces are split off, not sliced: the gradient of a slice is a whole tensor of zeros.
    hidden, targets = torch.split(hidden_TH, chunk), torch.split(targets_T, chunk)
    bases: Sequence[Tensor | None] = [None] * len(targets) if base_TH is None else torch.split(base_TH, chunk)
    losses = [
        checkpoint(_chunk_losses, head, states, their_targets, base_head, base_states, use_reentrant=False)
        for states, their_targets, base_states in zip(hidden, targets, bases, strict=True)
    ]
    nll, kl = zip(*losses, strict=True)
    return torch.cat(nll), torch.cat(kl)


def _chunk_losses(
    head: Head, states: Tensor, targets: Tensor, base_head: Head | None, base_states: Tensor | None
) -> tuple[Tensor, Tensor]:
    logprobs = head(states).float().log_softmax(dim=-1)
    nll = _surprisal(logprobs, targets)
    if base_head is None or base_states is None:
        return nll, torch.zeros_like(nll)
    with torch.no_grad():
        expected = base_head(base_states).float().log_softmax(dim=-1)
    return nll, (expected.exp() * (expected - logprobs)).sum(dim=-1)


def surprisal(logits_TV: Tensor, targets_T: Tensor) -> Tensor:
    """-log p of each target, (T,), nats."""
    return _surprisal(logits_TV.float().log_softmax(dim=-1), targets_T)


def _surprisal(logprobs_TV: Tensor, targets_T: Tensor) -> Tensor:
    return -logprobs_TV.gather(1, targets_T[:, None])[:, 0]


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
