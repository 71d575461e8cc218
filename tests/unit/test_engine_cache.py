"""Pages: the ones in use stay first, and holders follow the moves."""

from __future__ import annotations

import random

import torch

from agent.engine.cache import PAGE, CacheShape, PagePool, pages_for

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
    pool = PagePool(SHAPE)
    first, second, third = filled(pool, 10, 1.0), filled(pool, PAGE + 5, 2.0), filled(pool, 3, 3.0)
    pool.free(first)
    assert (first, second, third, pool.used) == ([], [1, 2], [0], 3)
    assert [first_key(pool, 1, page) for page in (*second, *third)] == [2.0, 2.0, 3.0]


def test_contents_survive_any_order_of_growth_and_release() -> None:
    pool, source = PagePool(SHAPE), random.Random(0)
    held: dict[float, list[int]] = {}
    for step in range(300):
        if held and source.random() < 0.45:
            pool.free(held.pop(source.choice(list(held))))
        else:
            held[float(step + 1)] = filled(pool, source.randint(1, 3 * PAGE), float(step + 1))
    assert sorted(page for holder in held.values() for page in holder) == list(range(pool.used))
    for value, holder in held.items():
        assert {first_key(pool, 0, page) for page in holder} == {value}


def test_single_rows_land_at_their_head_and_offset() -> None:
    pool = PagePool(SHAPE)
    holder: list[int] = []
    pool.append(holder)
    row = (holder[0] * 3 + 2) * PAGE + 7
    pool.write_rows(1, torch.tensor([row]), torch.full((1, 4), 5.0), torch.full((1, 4), 6.0))
    assert pool.keys(1).view(1, 3, PAGE, 4)[0, 2, 7].tolist() == [5.0] * 4
    assert float(pool.values(1).sum()) == 24.0
