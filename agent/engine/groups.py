"""Attention for groups: completions that share a prompt, and prompts that share an opening, each computed once.

One packed row holds the opening, then for every group the rest of its prompt and its completions. `GroupPlan` serves
scoring and, since gradients pass through it, training.

Shape suffixes: N packed tokens, K completions of one group, C completion positions, H heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agent.engine.masked import lower_right, masked_attention


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


def make_group(prompt: int, completions: Sequence[int], device: torch.device) -> Group:
    """The group of a prompt and completions of so many tokens; a completion may have none."""
    places = torch.zeros(len(completions), max(completions), dtype=torch.long)
    held = torch.zeros_like(places, dtype=torch.bool)
    start = 0
    for seat, length in enumerate(completions):
        places[seat, :length] = torch.arange(start, start + length)
        held[seat, :length] = True
        start += length
    return Group(prompt, start, places.to(device), held.to(device))


class GroupPlan:
    """Attention of packed groups: see `agent.engine.attention.Plan`.

    Pieces are split off, not sliced: the gradient of a slice is a whole row of zeros.
    """

    def __init__(self, opening: int, groups: Sequence[Group]) -> None:
        self._groups = groups
        self._sizes = [opening, *(size for group in groups for size in (group.prompt, group.completions))]
        self._masks = [
            (
                lower_right(opening, group.prompt, group.places_KC.device) if opening else None,
                lower_right(opening + group.prompt, group.places_KC.shape[1], group.places_KC.device),
            )
            for group in groups
        ]

    def attend(self, layer: int, q_HND: Tensor, k_HND: Tensor, v_HND: Tensor, scaling: float) -> Tensor:
        """Attention output, (N, query heads, D)."""
        queries, keys, values = (torch.split(x, self._sizes, dim=1) for x in (q_HND, k_HND, v_HND))
        outputs = []
        if self._sizes[0]:
            opening = masked_attention(queries[0][None], keys[0][None], values[0][None], None, scaling)
            outputs.append(opening[0].transpose(0, 1))
        for number, (group, (prompt_mask, completion_mask)) in enumerate(zip(self._groups, self._masks, strict=True)):
            prompt, completions = 2 * number + 1, 2 * number + 2
            k, v = torch.cat((keys[0], keys[prompt]), dim=1), torch.cat((values[0], values[prompt]), dim=1)
            rest = masked_attention(queries[prompt][None], k[None], v[None], prompt_mask, scaling)
            outputs.append(rest[0].transpose(0, 1))
            if not group.completions:
                continue
            q, own_k, own_v = (_by_completion(x[completions], group.places_KC) for x in (queries, keys, values))
            answers = masked_attention(
                q,
                torch.cat((k.expand(len(q), -1, -1, -1), own_k), dim=2),
                torch.cat((v.expand(len(q), -1, -1, -1), own_v), dim=2),
                completion_mask,
                scaling,
            )
            outputs.append(answers.transpose(1, 2)[group.held_KC])
        return torch.cat(outputs)


def _by_completion(x_HND: Tensor, places_KC: Tensor) -> Tensor:
    """(H, N, D) to (K, H, C, D), padded."""
    picked = x_HND.index_select(1, places_KC.flatten())
    return picked.view(len(x_HND), *places_KC.shape, -1).transpose(0, 1)
