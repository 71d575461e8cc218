"""Pages: the ones in use stay first, and holders follow the moves."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from agent.engine.cache import PAGE, CacheShape, PagedCache, PagePool, pages_for

SHAPE = CacheShape(layers=2, kv_heads=3, head_dim=4, dtype=torch.float32, device=torch.device("cpu"))


def filled(pool: PagePool, tokens: int, value: float) -> list[int]:
    """A new holder whose `tokens` keys are `value` and values are -`value` in both layers."""
    holder: list[int] = []
    for _ in range(pages_for(tokens)):
        pool.append(holder)
    run = torch.full((3, tokens, 4), value)
    for layer in range(2):
        pool.write_run(layer, holder, run, -run)
    return holder


def first_key(pool: PagePool, layer: int, page: int) -> float:
    return float(pool.keys(layer).view(pool.used, 3, PAGE, 4)[page, 0, 0, 0])


def test_a_full_page_needs_another_one() -> None:
    assert [pages_for(n) for n in (0, 1, PAGE, PAGE + 1)] == [0, 1, 1, 2]


def test_a_freed_page_is_filled_with_the_last_one_and_its_holder_follows() -> None:
    pool = PagePool(SHAPE, most=1000)
    first, second, third = filled(pool, 10, 1.0), filled(pool, PAGE + 5, 2.0), filled(pool, 3, 3.0)
    pool.free(first)
    assert (first, second, third, pool.used) == ([], [1, 2], [0], 3)
    assert [first_key(pool, 1, page) for page in (*second, *third)] == [2.0, 2.0, 3.0]


def test_contents_survive_any_order_of_growth_and_release() -> None:
    pool, source = PagePool(SHAPE, most=1000), random.Random(0)
    held: dict[float, list[int]] = {}
    for step in range(300):
        if held and source.random() < 0.45:
            pool.free(held.pop(source.choice(list(held))))
        else:
            held[float(step + 1)] = filled(pool, source.randint(1, 3 * PAGE), float(step + 1))
    assert sorted(page for holder in held.values() for page in holder) == list(range(pool.used))
    for value, holder in held.items():
        assert {first_key(pool, 0, page) for page in holder} == {value}


@pytest.mark.parametrize("layers", [1, 3, 4, 9, 30])
def test_a_pool_never_takes_much_more_than_the_budget_even_while_it_grows(
    layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = replace(SHAPE, layers=layers)
    cache = PagedCache(shape, 1000 * shape.bytes_per_page)
    assert cache.budget_pages == 1000
    most, zeros = 0, PagePool._zeros

    def counted(pool: PagePool, layers: int, pages: int) -> torch.Tensor:
        nonlocal most
        held = sum(part.nbytes for part in pool._parts_L2CHPD)
        made = zeros(pool, layers, pages)
        most = max(most, held + made.nbytes)
        return made

    monkeypatch.setattr(PagePool, "_zeros", counted)
    holder: list[int] = []
    for _ in range(1000):
        cache.completions.append(holder)
    assert sum(part.nbytes for part in cache.completions._parts_L2CHPD) == 1000 * shape.bytes_per_page
    part = max(0.25, -(-layers // 4) / layers)
    assert most <= (1 + part) * 1000 * shape.bytes_per_page


def test_growth_that_runs_out_of_memory_half_way_keeps_what_the_pool_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = PagePool(SHAPE, most=1000)
    holder, zeros, calls = filled(pool, 16 * PAGE, 3.0), PagePool._zeros, 0

    def refused_once(pool: PagePool, layers: int, pages: int) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return zeros(pool, layers, pages)

    monkeypatch.setattr(PagePool, "_zeros", refused_once)
    with pytest.raises(torch.OutOfMemoryError):
        pool.append(holder)
    assert (pool.used, len(holder)) == (16, 16)
    pool.append(holder)
    assert {first_key(pool, layer, page) for layer in range(2) for page in holder[:16]} == {3.0}


def test_single_rows_land_at_their_head_and_offset() -> None:
    pool = PagePool(SHAPE, most=1000)
    holder: list[int] = []
    pool.append(holder)
    row = (holder[0] * 3 + 2) * PAGE + 7
    pool.write_rows(1, torch.tensor([row]), torch.full((1, 4), 5.0), torch.full((1, 4), 6.0))
    assert pool.keys(1).view(1, 3, PAGE, 4)[0, 2, 7].tolist() == [5.0] * 4
    assert float(pool.values(1).sum()) == 24.0
