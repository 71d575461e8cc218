"""The order of demonstrations."""

from __future__ import annotations

import json
from itertools import chain, pairwise

import pytest

from trainer.curriculum import Curriculum, span_of_step
from trainer.exceptions import CheckpointError


def test_no_row_comes_twice_before_all_came() -> None:
    queue = Curriculum([5] * 7, seed=1, by_difficulty=True, planned=1000)
    first, second = queue.take(7), queue.take(7)
    assert sorted(first) == sorted(second) == list(range(7))


def test_a_request_may_span_passes() -> None:
    queue = Curriculum([1, 2, 3], seed=0, by_difficulty=False, planned=1000)
    assert sorted(queue.take(6)) == [0, 0, 1, 1, 2, 2]


def test_short_experts_come_first() -> None:
    queue = Curriculum(list(range(1000)), seed=0, by_difficulty=True, planned=1000)
    order = queue.take(1000)
    assert max(order[:100]) < 200
    assert min(order[-100:]) > 800


def test_a_short_training_sees_experts_of_every_length_and_the_short_ones_first() -> None:
    order = Curriculum(list(range(1000)), seed=0, by_difficulty=True, planned=100).take(1000)
    assert 400 < sum(order[:100]) / 100 < 600
    assert max(order[:20]) < 450
    assert min(order[80:100]) > 550
    assert sorted(order) == list(range(1000))


def test_rows_that_are_passed_over_do_not_bring_the_short_ones_back() -> None:
    queue = Curriculum(list(range(1000)), seed=0, by_difficulty=True, planned=800)
    steps: list[list[int]] = []
    for _ in range(20):  # of 20 rows each, with as many in reserve, of which every other step takes half
        steps.append(queue.take(20 + 10 * (len(steps) % 2)))
        queue.pass_over(40 - len(steps[-1]))
    means = [sum(rows) / len(rows) for rows in steps]
    assert means[0] < 100
    assert means[-1] > 900
    assert all(later > earlier - 50 for earlier, later in pairwise(means))
    assert sorted([*chain(*steps), *queue.take(500)]) == list(range(1000))


@pytest.mark.parametrize("rows", [128, 160, 200, 250, 256, 1000])
def test_a_training_that_refills_nothing_goes_from_the_short_to_the_long_however_many_rows_there_are(rows: int) -> None:
    span = span_of_step(rows, steps=16, groups=8, refills=1)
    queue = Curriculum(list(range(rows)), seed=0, by_difficulty=True, planned=16 * span)
    seen: list[int] = []
    for _ in range(16):
        seen += queue.take(8)
        queue.pass_over(span - 8)
    assert len(set(seen)) == 128
    assert max(seen) > 0.9 * rows
    assert 0.4 < sum(seen) / len(seen) / rows < 0.6


def test_of_few_rows_none_is_passed_over() -> None:
    queue, plain = (Curriculum([1, 2, 3, 4], seed=0, by_difficulty=True, planned=5) for _ in range(2))
    queue.pass_over(2)
    assert queue.take(4) == plain.take(4)


def test_without_difficulty_length_plays_no_part() -> None:
    order = Curriculum(list(range(1000)), seed=0, by_difficulty=False, planned=1000).take(1000)
    assert 440 < sum(order[:300]) / 300 < 560


def test_later_passes_begin_with_rows_that_sometimes_pass() -> None:
    queue = Curriculum([1] * 400, seed=0, by_difficulty=True, planned=1000)
    for row in queue.take(400):
        queue.report(row, 0.5 if row < 100 else 0.0)
    again = queue.take(100)
    assert sum(row < 100 for row in again) > 80


def test_the_order_depends_on_the_seed_alone() -> None:
    one, same, other = (Curriculum([1] * 50, seed, by_difficulty=True, planned=1000).take(50) for seed in (1, 1, 2))
    assert one == same != other


def test_a_restored_queue_goes_on_where_it_was() -> None:
    queue = Curriculum([3, 1, 2, 5, 4], seed=3, by_difficulty=True, planned=1000)
    queue.take(3)
    queue.report(1, 0.25)
    copy = Curriculum([3, 1, 2, 5, 4], seed=3, by_difficulty=True, planned=1000)
    copy.restore(json.loads(json.dumps(queue.state())))
    assert copy.take(9) == queue.take(9)


def test_state_of_other_data_is_refused() -> None:
    state = Curriculum([1] * 10, seed=0, by_difficulty=True, planned=1000).state()
    with pytest.raises(CheckpointError, match="other data"):
        Curriculum([1] * 9, seed=0, by_difficulty=True, planned=1000).restore(state)
