"""Drawing the next token. Exact nucleus sampling without sorting the vocabulary.

A token is drawn from the full distribution and kept when it lies in the allowed set; what is kept then
follows the truncated distribution exactly. A nucleus of mass p is hit with probability p or more, so a
draw is rarely repeated, and one comparison with the vocabulary replaces a sort of it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agent.engine import Sampling

_REDRAWS = 16
# Colder than this, float32 has nothing but the likeliest token left, and in the end a division by zero.
_COLDEST = 1e-4
# Rows of logits that fit the processor's cache together with their probabilities.
_CPU_ROWS = 8


@dataclass(slots=True)
class Draw:
    """How one row is drawn: its parameters and its own source of randomness.

    Attributes:
        used: numbers that the source has given.
    """

    sampling: Sampling
    random: random.Random
    used: int = 0

    def uniform(self) -> float:
        self.used += 1
        return self.random.random()


def draw_tokens(logits_NV: Tensor, draws: Sequence[Draw]) -> tuple[list[int], list[float]]:
    """Draw one token a row.

    Args:
        logits_NV: raw logits, any floating type.
        draws: parameters of each of the N rows.

    Returns:
        Token ids, and their log-probabilities under softmax(logits), temperature 1, nats.
    """
    step = len(draws) if logits_NV.is_cuda else _CPU_ROWS
    ids, logprobs = [], []
    for start in range(0, len(draws), step):
        rows = slice(start, start + step)
        some_ids, some_logprobs = _draw_some(logits_NV[rows], draws[rows])
        ids += some_ids
        logprobs += some_logprobs
    return ids, logprobs


def _draw_some(logits_NV: Tensor, draws: Sequence[Draw]) -> tuple[list[int], list[float]]:
    logits_NV = logits_NV.float()
    ids_N = torch.empty(len(draws), dtype=torch.long, device=logits_NV.device)
    rows = [row for row, draw in enumerate(draws) if draw.sampling.temperature >= _COLDEST]
    greedy = [row for row, draw in enumerate(draws) if draw.sampling.temperature < _COLDEST]
    if greedy:
        ids_N[greedy] = _take(logits_NV, greedy).argmax(dim=-1)
    if rows:
        ids_N[rows] = _draw_random(_take(logits_NV, rows), [draws[row] for row in rows])
    logprobs_N = logits_NV.gather(1, ids_N[:, None])[:, 0] - logits_NV.logsumexp(dim=-1)
    return ids_N.tolist(), logprobs_N.tolist()


def _draw_random(logits_NV: Tensor, draws: Sequence[Draw]) -> Tensor:
    temperatures = torch.tensor([d.sampling.temperature for d in draws], device=logits_NV.device)
    probs_NV = torch.softmax(logits_NV / temperatures[:, None], dim=-1)
    ids_N = torch.empty(len(draws), dtype=torch.long, device=logits_NV.device)
    pending = torch.arange(len(draws), device=logits_NV.device)
    cumulative = probs_NV.cumsum(dim=-1)
    for _ in range(_REDRAWS):
        who = pending.tolist()
        probs, sums = _take(probs_NV, who), _take(cumulative, who)
        uniform = torch.tensor([draws[i].uniform() for i in who], device=probs.device)
        # The last sum is 1 up to rounding: scaling by it keeps the index inside the vocabulary.
        found = torch.searchsorted(sums, uniform[:, None] * sums[:, -1:], right=True).clamp_(max=probs.shape[1] - 1)
        ids_N[pending] = found[:, 0]
        pending = pending[~_allowed(probs, found, [draws[i].sampling for i in who])]
        if not len(pending):
            return ids_N
    for i in pending.tolist():
        ids_N[i] = _draw_sorted(probs_NV[i], draws[i])
    return ids_N


def _allowed(probs_NV: Tensor, ids_N1: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """Whether each drawn token lies in its row's nucleus."""
    drawn = probs_NV.gather(1, ids_N1)
    allowed = drawn[:, 0] > 0
    truncated = [i for i, s in enumerate(samplings) if s.top_p < 1]
    if not truncated:
        return allowed
    probs_NV = _take(probs_NV, truncated)
    mass = torch.where(probs_NV > drawn[truncated], probs_NV, 0.0).sum(dim=-1)
    allowed[truncated] &= mass < mass.new_tensor([samplings[i].top_p for i in truncated])
    return allowed


def _take(x_NV: Tensor, rows: list[int]) -> Tensor:
    """Some rows, in their order; no copy where they are all."""
    return x_NV if len(rows) == len(x_NV) else x_NV[rows]


def _draw_sorted(probs_V: Tensor, draw: Draw) -> int:
    """The same draw with a sort, for the row whose allowed set holds almost no mass."""
    ordered, ids = probs_V.sort(descending=True)
    before = ordered.cumsum(0) - ordered
    kept = before < draw.sampling.top_p
    kept[0] = True
    sums = (ordered * kept).cumsum(0)
    index = int(torch.searchsorted(sums, draw.uniform() * sums[-1], right=True))
    return int(ids[min(index, int(kept.nonzero()[-1]))])
