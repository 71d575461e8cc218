"""Attention for packed tokens, called by the model through transformers' attention interface.

The model always sees one packed row of tokens, without padding; a plan passed to its forward call says which
tokens belong together. `PackedPlan` serves prefill and scoring, `DecodePlan` one new token of many sequences.
Not here: the model's own projections, rotary embedding, norms.

Shape suffixes as in `agent.engine.cache`, and N packed tokens, R query heads a key-value head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from agent.engine.cache import PAGE, PagedCache
from agent.engine.masked import masked_attention

ATTENTION_NAME = "rewright"

# Not infinite: the scores of an empty page must stay numbers, for its weight to become zero when pages are merged.
_BLOCKED = -1e30


class Plan(Protocol):
    """Computes the attention of one forward pass."""

    def attend(self, layer: int, q_HND: Tensor, k_HND: Tensor, v_HND: Tensor, scaling: float) -> Tensor:
        """Attention output, shape (N, query heads, D)."""
        ...


@dataclass(frozen=True, slots=True)
class KeyValues:
    """Keys and values of a token run, a tensor (H, tokens, D) each layer."""

    k: list[Tensor]
    v: list[Tensor]

    @property
    def length(self) -> int:
        return self.k[0].shape[1]

    def followed_by(self, rest: KeyValues) -> KeyValues:
        """Those of this run and the one that was computed after it, as one."""
        return KeyValues(
            [torch.cat(pair, dim=1) for pair in zip(self.k, rest.k, strict=True)],
            [torch.cat(pair, dim=1) for pair in zip(self.v, rest.v, strict=True)],
        )


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of packed tokens that attend to `past`, then to each other.

    Attributes:
        start, stop: packed positions.
        mask: boolean (tokens, past + tokens), True where attended; None is causal and needs an empty past.
        past: keys and values computed before, None for none.
        holders: page lists, one a group, that keep this segment's own keys and values.
        keep: where this segment's own keys and values are appended, None to drop them.
    """

    start: int
    stop: int
    mask: Tensor | None = None
    past: KeyValues | None = None
    holders: tuple[list[int], ...] = ()
    keep: KeyValues | None = None


class PackedPlan:
    """Each segment attends within itself: prompts of different lengths, some of them after a past."""

    def __init__(self, segments: list[Segment], cache: PagedCache | None = None) -> None:
        self._segments = segments
        self._cache = cache

    def attend(self, layer: int, q_HND: Tensor, k_HND: Tensor, v_HND: Tensor, scaling: float) -> Tensor:
        outputs = []
        for segment in self._segments:
            span = slice(segment.start, segment.stop)
            k, v = k_HND[:, span], v_HND[:, span]
            if segment.keep is not None:
                segment.keep.k.append(k.clone())
                segment.keep.v.append(v.clone())
            if self._cache is not None:
                for holder in segment.holders:
                    self._cache.prompts.write_run(layer, holder, k, v)
            if segment.past is not None:
                k = torch.cat((segment.past.k[layer], k), dim=1)
                v = torch.cat((segment.past.v[layer], v), dim=1)
            outputs.append(masked_attention(q_HND[None, :, span], k[None], v[None], segment.mask, scaling)[0])
        return torch.cat(outputs, dim=1).transpose(0, 1)


@dataclass(frozen=True, slots=True)
class PromptPages:
    """A prompt in the cache and the packed rows of the samples that read it.

    Attributes:
        prefix: keys and values of its opening, where it shares one with other prompts.
        pages: the rest.
        length: tokens of the whole prompt.
        rows: packed rows.
    """

    prefix: KeyValues | None
    pages: list[int]
    length: int
    rows: list[int]


@dataclass(frozen=True, slots=True)
class CompletionPages:
    """A completion in the cache; its newest token, at `length - 1`, is the one being computed."""

    pages: list[int]
    length: int


class DecodePlan:
    """One new token of each running sample.

    Keys and values are read once for all the queries that need them: a shared opening by the samples of every prompt
    that begins with it (as in Hydragen, Juravsky et al. 2024), a prompt's page by the samples of the prompt, a
    completion's page by its one sample. Each read yields a softmax of its own with its normaliser, and the results
    of a sample are merged as in flash-decoding (Dao et al. 2023).

    Args:
        cache: the pages.
        prompts: every prompt that is read.
        completions: the completion of each packed row, in order.
    """

    def __init__(
        self, cache: PagedCache, prompts: Sequence[PromptPages], completions: Sequence[CompletionPages]
    ) -> None:
        self._cache = cache
        self._count = len(completions)
        device = cache.shape.device
        # Rows beyond the last stand for places nobody sits in: samples that are finished, pages of other adapters.
        nobody = self._count
        self._width = max(len(p.rows) for p in prompts)
        readers = [[nobody] * self._width for _ in range(cache.prompts.used)]
        prompt_fill = [0] * cache.prompts.used
        for prompt in prompts:
            seats = prompt.rows + [nobody] * (self._width - len(prompt.rows))
            own_length = prompt.length - (prompt.prefix.length if prompt.prefix else 0)
            for number, page in enumerate(prompt.pages):
                readers[page] = seats
                prompt_fill[page] = own_length - number * PAGE
        owner = [nobody] * cache.completions.used
        completion_fill = [0] * cache.completions.used
        newest = []
        for row, completion in enumerate(completions):
            for number, page in enumerate(completion.pages):
                owner[page] = row
                completion_fill[page] = completion.length - number * PAGE
            newest.append((completion.pages[-1], (completion.length - 1) % PAGE))

        heads = torch.arange(cache.shape.kv_heads, device=device)
        self._no_bias = torch.zeros(1, 1, 1, device=device)
        self._prefixes = [
            (states, self._rows(torch.tensor(rows, device=device), heads[:, None]))
            for states, rows in _rows_by_prefix(prompts)
        ]
        self._prompt_rows = self._rows(torch.tensor(readers, device=device)[:, None, :], heads[:, None])
        self._own_rows = self._rows(torch.tensor(owner, device=device)[:, None], heads)
        self._all_rows = torch.cat((*(rows for _, rows in self._prefixes), self._prompt_rows, self._own_rows))
        self._prompt_bias = _page_bias(prompt_fill, device)
        self._own_bias = _page_bias(completion_fill, device)
        page, offset = torch.tensor(newest, device=device).T
        self._write = ((page[:, None] * len(heads) + heads) * PAGE + offset[:, None]).flatten()

    def _rows(self, rows: Tensor, heads: Tensor) -> Tensor:
        """Indices into queries and results seen as (rows x heads, repeats x D)."""
        return (rows * self._cache.shape.kv_heads + heads).flatten()

    def attend(self, layer: int, q_HND: Tensor, k_HND: Tensor, v_HND: Tensor, scaling: float) -> Tensor:
        heads, dim = k_HND.shape[0], k_HND.shape[2]
        repeats = q_HND.shape[0] // heads
        prompts, own = self._cache.prompts, self._cache.completions
        own.write_rows(
            layer, self._write, k_HND.transpose(0, 1).reshape(-1, dim), v_HND.transpose(0, 1).reshape(-1, dim)
        )
        queries = q_HND.transpose(0, 1).reshape(-1, repeats * dim)
        queries = torch.cat((queries, queries.new_zeros(heads, repeats * dim)))

        def read(rows: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
            """Softmax within every matrix of keys: log of its normaliser, and weighted values, a query each."""
            q = queries.index_select(0, rows).view(len(keys), -1, dim)
            scores = torch.bmm(q, keys.transpose(1, 2)).view(len(bias), -1, keys.shape[1])
            scores = torch.add(bias, scores, alpha=scaling)
            weights = torch.softmax(scores, dim=-1)
            # The largest weight is exp(largest score) / normaliser.
            normaliser = scores.amax(dim=-1) - weights.amax(dim=-1).log_()
            result = torch.bmm(weights.to(q.dtype).view(len(keys), -1, keys.shape[1]), values)
            return normaliser.view(-1, repeats), result.view(-1, repeats, dim)

        reads = [read(rows, states.k[layer], states.v[layer], self._no_bias) for states, rows in self._prefixes]
        reads.append(read(self._prompt_rows, prompts.keys(layer), prompts.values(layer), self._prompt_bias))
        reads.append(read(self._own_rows, own.keys(layer), own.values(layer), self._own_bias))
        normaliser, values = (torch.cat(parts) for parts in zip(*reads, strict=True))
        rows = self._all_rows
        index = rows[:, None].expand(-1, repeats)
        best = normaliser.new_full(((self._count + 1) * heads, repeats), _BLOCKED)
        best.scatter_reduce_(0, index, normaliser, "amax")
        scale = (normaliser - best.index_select(0, rows)).exp_()
        sums = torch.zeros_like(best).scatter_add_(0, index, scale)
        result = best.new_zeros((self._count + 1) * heads, repeats, dim)
        result.index_add_(0, rows, values * scale[..., None])
        result = result[: self._count * heads] / sums[: self._count * heads, :, None]
        return result.to(q_HND.dtype).view(self._count, heads * repeats, dim)


def _rows_by_prefix(prompts: Sequence[PromptPages]) -> list[tuple[KeyValues, list[int]]]:
    """Every shared opening with all the packed rows that begin with it."""
    found: dict[int, tuple[KeyValues, list[int]]] = {}
    for prompt in prompts:
        if prompt.prefix is not None:
            found.setdefault(id(prompt.prefix), (prompt.prefix, []))[1].extend(prompt.rows)
    return list(found.values())


def _page_bias(fill: list[int], device: torch.device) -> Tensor:
    """0 where a page holds a token, a large negative number elsewhere; (pages, 1, P)."""
    held = torch.arange(PAGE, device=device) < torch.tensor(fill, device=device)[:, None]
    bias = torch.zeros(len(fill), PAGE, device=device).masked_fill_(~held, _BLOCKED)
    return bias[:, None]


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    plan: Plan,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface; `query` is (1, query heads, N, D). Returns (1, N, query heads, D)."""
    layer: int = module.layer_idx  # type: ignore[assignment]
    return plan.attend(layer, query[0], key[0], value[0], scaling)[None], None
