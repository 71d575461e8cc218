"""Log-probabilities of whole groups with gradients, each shared prompt token computed once.

TRL gives a training pass as padded rows, every completion with its own copy of the prompt. Here the rows are packed
into one: the opening that all prompts share, then for every group the rest of its prompt and its completions. The
model's own layers run on that row, with the attention of `agent.engine.groups`. No sampling and no loss here.

Shape suffixes: B rows, P prompt positions, C completion positions, N packed tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from agent.engine.groups import GroupPlan, make_group
from agent.engine.head import Head
from trainer.forward import called_for

# A shared opening shorter than this is not worth a segment of its own.
_SHORTEST_OPENING = 32
# Rows of logits at once; nothing of that size is kept for the backward pass.
_CHUNK = 256


@dataclass(frozen=True, slots=True)
class PackedRows:
    """One packed row and the way back to the padded ones.

    Attributes:
        ids_N, positions_N: tokens, and their positions in their own sequence.
        sources: packed position whose logits predict each scored token.
        targets: the scored tokens.
        cells: index of each scored token in the flattened (B, C).
        plan: the attention.
    """

    ids_N: Tensor
    positions_N: Tensor
    sources: Tensor
    targets: Tensor
    cells: Tensor
    plan: GroupPlan


def completion_logprobs(
    model: Any,
    prompt_ids_BP: Tensor,
    prompt_mask_BP: Tensor,
    completion_ids_BC: Tensor,
    completion_mask_BC: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of completion tokens, (B, C), nats; zero where masked.

    Args:
        model: with the attention of `agent.engine.attention`, perhaps wrapped for several processes.
        prompt_ids_BP, prompt_mask_BP: left-padded.
        completion_ids_BC, completion_mask_BC: right-padded; rows of one prompt are neighbours.
        temperature: logits are divided by it.

    Raises:
        ValueError: every completion is masked out.
    """
    packed = pack_rows(prompt_ids_BP, prompt_mask_BP, completion_ids_BC, completion_mask_BC)
    plain = extract_model_from_parallel(model)

    def packed_logprobs(ids_N: Tensor) -> tuple[Tensor, Tensor]:
        states = plain.get_decoder()(
            input_ids=ids_N[None], position_ids=packed.positions_N[None], use_cache=False, plan=packed.plan
        ).last_hidden_state[0, packed.sources]
        return token_logprobs(states, Head(plain), packed.targets, temperature)

    with called_for(plain, packed_logprobs):
        found = model(packed.ids_N)
    blank = torch.zeros(completion_ids_BC.numel(), device=completion_ids_BC.device)
    logprobs, entropies = (blank.scatter(0, packed.cells, values).view(completion_ids_BC.shape) for values in found)
    return logprobs, entropies


def pack_rows(
    prompt_ids_BP: Tensor, prompt_mask_BP: Tensor, completion_ids_BC: Tensor, completion_mask_BC: Tensor
) -> PackedRows:
    """Pack left-padded prompts and right-padded completions; rows of one group must be neighbours.

    A row whose completion is masked out altogether takes no part.

    Raises:
        ValueError: every completion is masked out.
    """
    device = completion_ids_BC.device
    prompts = [ids[mask.bool()].tolist() for ids, mask in zip(prompt_ids_BP, prompt_mask_BP, strict=True)]
    lengths = completion_mask_BC.sum(1).tolist()
    rows = [row for row, length in enumerate(lengths) if length]
    if not rows:
        raise ValueError("no completion is left to pack: all are masked out")
    opening = _shared_opening([prompts[row] for row in rows])
    ids = prompts[rows[0]][:opening]
    positions = list(range(opening))
    sources: list[int] = []
    targets: list[int] = []
    cells: list[int] = []
    groups = []
    width = completion_ids_BC.shape[1]
    for _, members in groupby(rows, key=lambda row: prompts[row]):
        own_rows = list(members)
        prompt = prompts[own_rows[0]]
        ids.extend(prompt[opening:])
        positions.extend(range(opening, len(prompt)))
        stop = len(ids)
        for row in own_rows:
            completion = completion_ids_BC[row, : lengths[row]].tolist()
            here = len(ids)
            sources.extend([stop - 1, *range(here, here + len(completion) - 1)])
            targets.extend(completion)
            cells.extend(range(row * width, row * width + len(completion)))
            ids.extend(completion)
            positions.extend(range(len(prompt), len(prompt) + len(completion)))
        groups.append(make_group(len(prompt) - opening, [lengths[row] for row in own_rows], device))

    def tensor(values: list[int]) -> Tensor:
        return torch.tensor(values, device=device)

    return PackedRows(
        tensor(ids), tensor(positions), tensor(sources), tensor(targets), tensor(cells), GroupPlan(opening, groups)
    )


def token_logprobs(
    states: Tensor, head: Callable[[Tensor], Tensor], targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of its distribution at `temperature`, nats; both (tokens,).

    Few rows of logits exist at once: the backward pass computes them again.

    Args:
        states: last hidden states that predict the targets, (tokens, hidden size).
        head: makes logits of them.
        targets: (tokens,).
        temperature: logits are divided by it.
    """
    # Split, not sliced: the gradient of a slice is a whole matrix of zeros.
    results = [
        checkpoint(_chunk_logprobs, some, head, their_targets, temperature, use_reentrant=False)
        for some, their_targets in zip(torch.split(states, _CHUNK), torch.split(targets, _CHUNK), strict=True)
    ]
    logprobs, entropies = zip(*results, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def _chunk_logprobs(
    states: Tensor, head: Callable[[Tensor], Tensor], targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    scaled = head(states).float() / temperature
    normaliser = scaled.logsumexp(dim=-1)
    logprobs = scaled.gather(1, targets[:, None])[:, 0] - normaliser
    with torch.no_grad():
        entropies = normaliser - (torch.softmax(scaled, dim=-1) * scaled).sum(dim=-1)
    return logprobs, entropies


def _shared_opening(prompts: Sequence[list[int]]) -> int:
    """Tokens that all prompts begin with, 0 when too few; at least one token of each is left."""
    first = prompts[0]
    if all(prompt == first for prompt in prompts):
        return 0
    length = min(len(prompt) for prompt in prompts) - 1
    for prompt in prompts:
        length = next((i for i in range(length) if prompt[i] != first[i]), length)
    return length if length >= _SHORTEST_OPENING else 0
