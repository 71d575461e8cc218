"""Log-probabilities of whole groups with gradients, each shared prompt token computed once.

TRL gives a training pass as padded rows, every completion with its own copy of the prompt. Here the rows are packed
into one: the opening that all prompts share, then for every group the rest of its prompt and its completions. The
model's own layers run on that row; `GroupPlan` computes its attention. No sampling and no loss here.

Shape suffixes: B rows, C completion positions, N packed tokens, K completions of one group, H heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

# A shared opening shorter than this is not worth a segment of its own.
_SHORTEST_OPENING = 32


@dataclass(frozen=True, slots=True)
class Group:
    """One group in the packed row: the rest of its prompt, then its completions.

    Attributes:
        prompt: tokens of the rest of the prompt.
        completions: tokens of its completions together.
        places_KC: place of every completion token among them, 0 where padded.
        held_KC: True where a token is.
    """

    prompt: int
    completions: int
    places_KC: Tensor
    held_KC: Tensor


class GroupPlan:
    """Attention of packed groups: see `agent.engine.attention.Plan`.

    Pieces are split off, not sliced: the gradient of a slice is a whole row of zeros.
    """

    def __init__(self, opening: int, groups: Sequence[Group]) -> None:
        self._groups = groups
        self._sizes = [opening, *(size for group in groups for size in (group.prompt, group.completions))]
        self._masks = [
            (
                _lower_right(opening, group.prompt, group.places_KC.device),
                _lower_right(opening + group.prompt, group.places_KC.shape[1], group.places_KC.device),
            )
            for group in groups
        ]

    def attend(self, layer: int, q_HND: Tensor, k_HND: Tensor, v_HND: Tensor, scaling: float) -> Tensor:
        """Attention output, (N, query heads, D)."""
        repeats = q_HND.shape[0] // k_HND.shape[0]
        k_HND, v_HND = k_HND.repeat_interleave(repeats, dim=0), v_HND.repeat_interleave(repeats, dim=0)
        queries, keys, values = (torch.split(x, self._sizes, dim=1) for x in (q_HND, k_HND, v_HND))
        opening = scaled_dot_product_attention(queries[0], keys[0], values[0], is_causal=True, scale=scaling)
        outputs = [opening.transpose(0, 1)] if self._sizes[0] else []
        for number, (group, (prompt_mask, completion_mask)) in enumerate(zip(self._groups, self._masks, strict=True)):
            prompt, completions = 2 * number + 1, 2 * number + 2
            k, v = torch.cat((keys[0], keys[prompt]), dim=1), torch.cat((values[0], values[prompt]), dim=1)
            outputs.append(
                scaled_dot_product_attention(
                    queries[prompt][None], k[None], v[None], attn_mask=prompt_mask, scale=scaling
                )[0].transpose(0, 1)
            )
            q, own_k, own_v = (_by_completion(x[completions], group.places_KC) for x in (queries, keys, values))
            answers = scaled_dot_product_attention(
                q,
                torch.cat((k.expand(len(q), -1, -1, -1), own_k), dim=2),
                torch.cat((v.expand(len(q), -1, -1, -1), own_v), dim=2),
                attn_mask=completion_mask,
                scale=scaling,
            )
            outputs.append(answers.transpose(1, 2)[group.held_KC])
        return torch.cat(outputs)


def _by_completion(x_HND: Tensor, places_KC: Tensor) -> Tensor:
    """(H, N, D) to (K, H, C, D), padded."""
    picked = x_HND.index_select(1, places_KC.flatten())
    return picked.view(len(x_HND), *places_KC.shape, -1).transpose(0, 1)


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
        places = torch.zeros(len(own_rows), max(lengths[row] for row in own_rows), dtype=torch.long)
        held = torch.zeros_like(places, dtype=torch.bool)
        for seat, row in enumerate(own_rows):
            completion = completion_ids_BC[row, : lengths[row]].tolist()
            here = len(ids)
            places[seat, : len(completion)] = torch.arange(here - stop, here - stop + len(completion))
            held[seat, : len(completion)] = True
            sources.extend([stop - 1, *range(here, here + len(completion) - 1)])
            targets.extend(completion)
            cells.extend(range(row * width, row * width + len(completion)))
            ids.extend(completion)
            positions.extend(range(len(prompt), len(prompt) + len(completion)))
        groups.append(Group(len(prompt) - opening, len(ids) - stop, places.to(device), held.to(device)))

    def tensor(values: list[int]) -> Tensor:
        return torch.tensor(values, device=device)

    return PackedRows(
        tensor(ids), tensor(positions), tensor(sources), tensor(targets), tensor(cells), GroupPlan(opening, groups)
    )


def token_logprobs(logits: Tensor, targets: Tensor, temperature: float, chunk: int = 256) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of its distribution at `temperature`, nats; both (tokens,).

    Args:
        logits: (tokens, V).
        targets: (tokens,).
        temperature: logits are divided by it.
        chunk: rows in float32 at once; nothing of that size is kept for the backward pass.
    """
    results = [
        torch.utils.checkpoint.checkpoint(
            _chunk_logprobs, logits[i : i + chunk], targets[i : i + chunk], temperature, use_reentrant=False
        )
        for i in range(0, len(targets), chunk)
    ]
    logprobs, entropies = zip(*results, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def _chunk_logprobs(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    scaled = logits.float() / temperature
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


def _lower_right(past: int, new: int, device: torch.device) -> Tensor:
    """Causal mask of `new` tokens after `past` ones, (new, past + new), True where attended."""
    return torch.ones(new, past + new, dtype=torch.bool, device=device).tril(diagonal=past)
