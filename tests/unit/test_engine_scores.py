"""Packs of waiting completions: what is scored together, and that nothing is lost or torn apart needlessly."""

from __future__ import annotations

from concurrent.futures import Future

from hypothesis import given
from hypothesis import strategies as st

from agent.engine.requests import ScoreRequest
from agent.engine.scores import ScoreQueue
from agent.engine.urgency import bulk_work


def queue(pack_tokens: int, *requests: tuple[int, int, int]) -> ScoreQueue:
    """Requests as (name of the prompt, its length, the completion's length)."""
    waiting = ScoreQueue(pack_tokens)
    for name, prompt, completion in requests:
        waiting.add(ScoreRequest([name] * prompt, [0] * completion, None, Future()))
    return waiting


def shape(waiting: ScoreQueue) -> list[dict[int, list[int]]]:
    """Every pack until none is left: lengths of completions by prompt."""
    packs = []
    while waiting:
        pack = waiting.take()
        packs.append(
            {prompt[0]: [len(request.completion_ids) for request in branch] for prompt, branch in pack.items()}
        )
    return packs


def test_a_prompt_is_computed_once_for_all_that_waits_for_it_wherever_it_waits() -> None:
    assert shape(queue(100, (1, 10, 20), (2, 10, 5), (1, 10, 21))) == [{1: [20, 21], 2: [5]}]


def test_a_group_that_does_not_fit_into_the_rest_of_a_pack_begins_the_next() -> None:
    assert shape(queue(100, (1, 10, 60), (2, 10, 15), (2, 10, 16), (3, 10, 5))) == [{1: [60]}, {2: [15, 16], 3: [5]}]


def test_a_group_beyond_a_pack_is_parted() -> None:
    assert shape(queue(100, *[(1, 10, 40)] * 7)) == [{1: [40] * 3}, {1: [40] * 3}, {1: [40]}]


def test_short_completions_of_a_long_prompt_are_scored_together_while_their_copies_of_it_are_few() -> None:
    assert shape(queue(100, *[(1, 200, 2)] * 6)) == [{1: [2] * 4}, {1: [2] * 2}]
    assert shape(queue(100, *[(1, 2000, 2)] * 2)) == [{1: [2]}, {1: [2]}]


def test_a_pack_is_scored_under_one_adapter() -> None:
    waiting = ScoreQueue(100)
    for adapter in (None, "math@1", None):
        waiting.add(ScoreRequest([1, 2], [3], adapter, Future()))
    packs = [waiting.take(), waiting.take()]
    assert [[request.adapter for request in pack[1, 2]] for pack in packs] == [[None, None], ["math@1"]]
    assert not waiting


def test_what_nobody_waits_for_any_more_is_left_out() -> None:
    waiting = queue(100, (1, 10, 20), (2, 10, 20))
    next(iter(waiting)).future.cancel()
    assert shape(waiting) == [{2: [20]}]
    waiting = queue(100, (1, 10, 20))
    next(iter(waiting)).future.cancel()
    assert waiting.take() == {}
    assert not waiting


def test_bulk_work_is_passed_over_but_where_an_urgent_completion_needs_the_same_prompt() -> None:
    waiting = ScoreQueue(100)
    with bulk_work():
        for name in (1, 2):
            waiting.add(ScoreRequest([name] * 10, [0] * 5, None, Future()))
    assert not waiting.urgent
    assert waiting.take(bulk=False) == {}
    waiting.add(ScoreRequest([2] * 10, [0] * 6, None, Future()))
    assert waiting.urgent
    pack = waiting.take(bulk=False)
    assert {prompt[0]: [len(r.completion_ids) for r in branch] for prompt, branch in pack.items()} == {2: [5, 6]}
    assert shape(waiting) == [{1: [5]}]


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 400), st.integers(1, 400))), st.integers(1, 500))
def test_every_request_is_handed_out_once(requests: list[tuple[int, int, int]], pack_tokens: int) -> None:
    waiting = queue(pack_tokens, *requests)
    added = list(waiting)
    taken = []
    while waiting:
        taken += [request for branch in waiting.take().values() for request in branch]
    assert sorted(map(id, taken)) == sorted(map(id, added))
