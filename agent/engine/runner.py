"""The three forward passes of the engine: prefill prompts, decode one step, score completions.

Works on packed tokens, without padding. Knows the model and the cache; knows no queues and no sampling.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agent.engine.attention import CompletionPages, DecodePlan, KeyValues, PackedPlan, Plan, PromptPages, Segment
from agent.engine.cache import PagedCache, pages_for
from agent.engine.groups import Group, GroupPlan, make_group
from agent.engine.head import Head
from agent.engine.masked import lower_right

# Rows of logits held at once while scoring.
_LOGIT_ROWS = 128
# Rows of them whose normaliser is summed up at once on a CPU.
_SUM_ROWS = 8
# A shared opening shorter than this is cheaper to compute again than to look up and concatenate.
_SHORTEST_PREFIX = 32
# Shared openings kept at most.
_PREFIXES = 8


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt to prefill, and the empty page lists (one a group) that shall keep it."""

    ids: Sequence[int]
    holders: tuple[list[int], ...]


@dataclass(frozen=True, slots=True)
class Tree:
    """Completions of one prompt, scored together: the prompt is computed once."""

    prompt_ids: Sequence[int]
    completions: Sequence[Sequence[int]]

    @property
    def tokens(self) -> int:
        return len(self.prompt_ids) + sum(len(c) - 1 for c in self.completions)


class PrefixStore:
    """Keys and values of prompt openings that several prompts share (instructions, examples), newest kept."""

    def __init__(self) -> None:
        self._entries: OrderedDict[tuple[str | None, tuple[int, ...]], KeyValues] = OrderedDict()
        self._latest: dict[str | None, Sequence[int]] = {}

    def find(self, adapter: str | None, ids: Sequence[int]) -> tuple[tuple[int, ...], KeyValues] | None:
        """The longest stored opening that leaves at least one token of `ids` to compute."""
        best: tuple[str | None, tuple[int, ...]] | None = None
        for key in self._entries:
            owner, prefix = key
            matches = owner == adapter and len(prefix) < len(ids) and tuple(ids[: len(prefix)]) == prefix
            if matches and (best is None or len(prefix) > len(best[1])):
                best = key
        if best is None:
            return None
        self._entries.move_to_end(best)
        return best[1], self._entries[best]

    def worth_storing(self, adapter: str | None, ids: Sequence[int], known: int) -> tuple[int, ...]:
        """The opening that `ids` shares with the prompt before it, empty when that gains too little over `known`."""
        before = self._latest.get(adapter, ())
        self._latest[adapter] = ids
        limit = min(len(before), len(ids) - 1)
        shared = next((i for i in range(limit) if before[i] != ids[i]), limit)
        return tuple(ids[:shared]) if shared >= known + _SHORTEST_PREFIX else ()

    def add(self, adapter: str | None, prefix: tuple[int, ...], states: KeyValues) -> None:
        self._entries[adapter, prefix] = states
        while len(self._entries) > _PREFIXES:
            self._entries.popitem(last=False)

    def forget(self, adapter: str | None) -> None:
        """Drop what an adapter computed."""
        self._latest.pop(adapter, None)
        for key in [key for key in self._entries if key[0] == adapter]:
            del self._entries[key]


class ModelRunner:
    """Runs one causal language model that was loaded with this package's attention.

    Args:
        model: a transformers causal language model; its active adapter is the caller's business.
        cache: the buffers of running sequences.
    """

    def __init__(self, model: Any, cache: PagedCache) -> None:
        self._decoder = model.get_decoder()
        self._head = Head(model)
        self._device = cache.shape.device
        self._sum_rows = _SUM_ROWS if self._device.type == "cpu" else _LOGIT_ROWS
        self.cache = cache
        self.prefixes = PrefixStore()

    def prefill(self, prompts: Sequence[Prompt], adapter: str | None) -> tuple[Tensor, list[KeyValues | None]]:
        """Compute prompts into pages.

        Returns:
            Logits after each prompt's last token, (prompts, V), and the shared opening of each, which is not in
            its pages.
        """
        segments: list[Segment] = []
        ids: list[int] = []
        positions: list[int] = []
        pasts: list[KeyValues | None] = []
        for prompt in prompts:
            prefix, past = self._shared_opening(adapter, prompt.ids)
            pasts.append(past)
            new = prompt.ids[len(prefix) :]
            for holder in prompt.holders:
                for _ in range(pages_for(len(new))):
                    self.cache.prompts.append(holder)
            mask = lower_right(len(prefix), len(new), self._device) if past else None
            segments.append(Segment(len(ids), len(ids) + len(new), mask, past, prompt.holders))
            ids.extend(new)
            positions.extend(range(len(prefix), len(prompt.ids)))
        hidden = self._forward(ids, positions, PackedPlan(segments, self.cache))
        return self._head(hidden[[s.stop - 1 for s in segments]]), pasts

    def decode(
        self, tokens: list[int], prompts: Sequence[PromptPages], completions: Sequence[CompletionPages]
    ) -> Tensor:
        """One step of running samples.

        Args:
            tokens: the newest token of each sample, which these passes compute.
            prompts: the prompts they read, with the samples of each.
            completions: where each sample's keys and values are, the newest token's place included.

        Returns:
            Logits of each sample's next token, (samples, V).
        """
        positions = [completion.length - 1 for completion in completions]
        for prompt in prompts:
            for row in prompt.rows:
                positions[row] += prompt.length
        return self._head(self._forward(tokens, positions, DecodePlan(self.cache, prompts, completions)))

    def score(self, trees: Sequence[Tree]) -> list[list[list[float]]]:
        """Log-probability of every completion token, nats, nested as trees, completions, tokens."""
        groups: list[Group] = []
        opening = _common_opening([tree.prompt_ids for tree in trees])
        ids = list(trees[0].prompt_ids[:opening])
        positions = list(range(opening))
        sources: list[int] = []
        targets: list[int] = []
        for tree in trees:
            length = len(tree.prompt_ids)
            ids.extend(tree.prompt_ids[opening:])
            positions.extend(range(opening, length))
            last = len(ids) - 1
            for completion in tree.completions:
                sources.extend([last, *range(len(ids), len(ids) + len(completion) - 1)])
                targets.extend(completion)
                ids.extend(completion[:-1])
                positions.extend(range(length, length + len(completion) - 1))
            groups.append(make_group(length - opening, [len(c) - 1 for c in tree.completions], self._device))
        hidden = self._forward(ids, positions, GroupPlan(opening, groups))
        flat = iter(self._logprobs(hidden, sources, targets))
        return [[[next(flat) for _ in completion] for completion in tree.completions] for tree in trees]

    def _shared_opening(self, adapter: str | None, ids: Sequence[int]) -> tuple[tuple[int, ...], KeyValues | None]:
        known, past = self.prefixes.find(adapter, ids) or ((), None)
        prefix = self.prefixes.worth_storing(adapter, ids, len(known))
        if not prefix:
            return known, past
        new = prefix[len(known) :]
        mask = lower_right(len(known), len(new), self._device) if past else None
        states = KeyValues([], [])
        segment = Segment(0, len(new), mask, past, keep=states)
        self._forward(list(new), list(range(len(known), len(prefix))), PackedPlan([segment]))
        if past:
            states = past.followed_by(states)
        self.prefixes.add(adapter, prefix, states)
        return prefix, states

    def _forward(self, ids: list[int], positions: list[int], plan: Plan) -> Tensor:
        """Last hidden states of packed tokens, (N, hidden size)."""
        output = self._decoder(
            input_ids=self._tensor(ids)[None],
            position_ids=self._tensor(positions)[None],
            use_cache=False,
            plan=plan,
        )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def _logprobs(self, hidden: Tensor, sources: list[int], targets: list[int]) -> list[float]:
        parts: list[Tensor] = []
        for start in range(0, len(sources), _LOGIT_ROWS):
            rows = slice(start, start + _LOGIT_ROWS)
            logits = self._head(hidden[sources[rows]])
            picked = logits.gather(1, self._tensor(targets[rows])[:, None])[:, 0].float()
            # A few rows at a time, so that their float32 copy and its exponentials stay in the processor's cache.
            sums = torch.cat([part.float().logsumexp(dim=-1) for part in torch.split(logits, self._sum_rows)])
            parts.append(picked - sums)
        return torch.cat(parts).tolist() if parts else []

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._device)


def _common_opening(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that several different prompts begin with, their last one left out."""
    if len(prompts) < 2:
        return 0
    shared = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*prompts, strict=False))
    return min(sum(1 for _ in shared), min(map(len, prompts)) - 1)
