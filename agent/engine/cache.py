"""Keys and values of running samples, in pages: a prompt's once for all its samples, a completion's once each.

Two pools of pages, one for prompts and one for completions. The pages in use are always the first of their
pool, so that attention reads a pool as one contiguous batch of small matrices, with no padding but in last
pages and no copy from step to step. A freed page is filled with the pool's last one.

Shape suffixes: L layers, C pages, H key-value heads, P tokens of a page, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PAGE = 64
# Tensors that the layers of a pool are shared out among. A pool grows one after the other, so that only one of them is
# there twice meanwhile; more of them, and every freed page takes more copies.
_PARTS = 4


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What the model fixes: layers, key-value heads, head size, and the element type."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_page(self) -> int:
        return 2 * self.layers * self.kv_heads * PAGE * self.head_dim * self.dtype.itemsize


def pages_for(tokens: int) -> int:
    """Pages that hold this many tokens."""
    return -(-tokens // PAGE)


class PagePool:
    """Pages of keys and values, those in use first.

    A holder is a list of page numbers, in the order of its tokens; the pool keeps the numbers in it up to date.

    Args:
        shape: the model's part of the shape.
        most: pages that are made at most, unless more than these are in use.
    """

    def __init__(self, shape: CacheShape, most: int) -> None:
        self._shape, self._most = shape, most
        self._places: list[tuple[list[int], int]] = []
        self._capacity = 0
        self._part_layers = -(-shape.layers // _PARTS)
        sizes = (min(self._part_layers, shape.layers - first) for first in range(0, shape.layers, self._part_layers))
        self._parts_L2CHPD = [self._zeros(layers, 0) for layers in sizes]

    @property
    def used(self) -> int:
        return len(self._places)

    def append(self, holder: list[int]) -> None:
        """Give `holder` one more page."""
        if self.used == self._capacity:
            self._grow()
        self._places.append((holder, len(holder)))
        holder.append(self.used - 1)

    def _grow(self) -> None:
        """Make room for twice as many pages.

        Where memory runs out on the way, some parts have more room than the pool counts on, until it grows again.
        """
        capacity = max(min(max(16, 2 * self._capacity), self._most), self._capacity + 1)
        for number, part in enumerate(self._parts_L2CHPD):
            grown = self._zeros(len(part), capacity)
            grown[:, :, : self.used] = part[:, :, : self.used]
            self._parts_L2CHPD[number] = grown
        self._capacity = capacity

    def free(self, holder: list[int]) -> None:
        """Take all pages of `holder` back."""
        for page in sorted(holder, reverse=True):
            moved, place = self._places.pop()
            if page < self.used:
                for part in self._parts_L2CHPD:
                    part[:, :, page] = part[:, :, self.used]
                self._places[page] = (moved, place)
                moved[place] = page
        holder.clear()

    def keys(self, layer: int) -> Tensor:
        """Keys of the pages in use, (pages x H, P, D)."""
        return self._pages(layer, 0)[: self.used].flatten(0, 1)

    def values(self, layer: int) -> Tensor:
        """Values of the pages in use, (pages x H, P, D)."""
        return self._pages(layer, 1)[: self.used].flatten(0, 1)

    def write_run(self, layer: int, holder: list[int], k_HND: Tensor, v_HND: Tensor) -> None:
        """Fill the holder's pages with a run of tokens that starts at the first of them."""
        heads, tokens, dim = k_HND.shape
        pages = torch.tensor(holder, device=k_HND.device)
        for which, run in enumerate((k_HND, v_HND)):
            padded = torch.nn.functional.pad(run, (0, 0, 0, len(holder) * PAGE - tokens))
            paged = padded.view(heads, len(holder), PAGE, dim).transpose(0, 1)
            self._pages(layer, which).index_copy_(0, pages, paged)

    def write_rows(self, layer: int, rows: Tensor, k: Tensor, v: Tensor) -> None:
        """Write single (head, token) vectors; `rows` are indices of the pool seen as (C x H x P, D)."""
        for which, vectors in enumerate((k, v)):
            self._pages(layer, which).view(-1, vectors.shape[1]).index_put_((rows,), vectors)

    def _pages(self, layer: int, which: int) -> Tensor:
        """All pages of a layer's keys (0) or values (1), (C, H, P, D)."""
        return self._parts_L2CHPD[layer // self._part_layers][layer % self._part_layers, which]

    def _zeros(self, layers: int, pages: int) -> Tensor:
        # Zeros: positions that are masked are still multiplied, by a weight of zero, and must be finite.
        s = self._shape
        return torch.zeros(layers, 2, pages, s.kv_heads, PAGE, s.head_dim, dtype=s.dtype, device=s.device)


class PagedCache:
    """The two pools and the budget they share.

    Args:
        shape: the model's part of the shape.
        budget: bytes that pages in use may take. Pages that are free again are kept: each pool holds up to twice as
            many as it ever used at a time, though no more than the budget.
    """

    def __init__(self, shape: CacheShape, budget: int) -> None:
        self.shape = shape
        self.budget_pages = max(1, budget // shape.bytes_per_page)
        self.prompts = PagePool(shape, self.budget_pages)
        self.completions = PagePool(shape, self.budget_pages)
