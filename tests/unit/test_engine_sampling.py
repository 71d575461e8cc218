"""Drawing tokens: exact truncation, reproducible streams, log-probabilities at temperature 1."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
import torch

from agent.engine import Sampling
from agent.engine.sampling import Draw, draw_tokens

PROBABILITIES = torch.tensor([0.5, 0.25, 0.15, 0.07, 0.03])
LOGITS = PROBABILITIES.log()


def frequencies(sampling: Sampling, draws: int = 4000) -> dict[int, float]:
    source = random.Random(7)
    ids, _ = draw_tokens(LOGITS.expand(draws, -1), [Draw(sampling, source)] * draws)
    return {token: count / draws for token, count in Counter(ids).items()}


def test_temperature_zero_takes_the_most_likely_token() -> None:
    ids, _ = draw_tokens(LOGITS[None], [Draw(Sampling(temperature=0), random.Random(0))])
    assert ids == [0]


@pytest.mark.parametrize("temperature", [5e-324, 1e-45, 1e-38, 1e-9])
def test_the_coldest_temperatures_take_the_most_likely_token_too(temperature: float) -> None:
    logits = torch.tensor([[-300.0, 300.0, 0.0]])
    ids, logprobs = draw_tokens(logits, [Draw(Sampling(temperature=temperature), random.Random(0))])
    assert (ids, logprobs) == ([1], [0.0])


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 0), (1, 2, 3), (2, 3), (0,), (0, 1), (1, 2)])
def test_rows_of_every_kind_stand_side_by_side(order: tuple[int, ...]) -> None:
    kinds = [Sampling(temperature=0), Sampling(), Sampling(top_p=0.4), Sampling(top_p=1e-9)]
    ids, logprobs = draw_tokens(LOGITS.expand(len(order), -1), [Draw(kinds[i], random.Random(3)) for i in order])
    assert [token for token, i in zip(ids, order, strict=True) if kinds[i] != Sampling()] == [0] * (
        len(order) - order.count(1)
    )
    assert logprobs == pytest.approx([math.log(PROBABILITIES[token]) for token in ids], abs=1e-5)


def test_untruncated_draws_follow_the_softmax() -> None:
    seen = frequencies(Sampling(temperature=1.0))
    assert seen == pytest.approx(dict(enumerate(PROBABILITIES.tolist())), abs=0.03)


def test_temperature_sharpens_the_distribution() -> None:
    seen = frequencies(Sampling(temperature=0.5))
    squared = PROBABILITIES**2 / (PROBABILITIES**2).sum()
    assert seen[0] == pytest.approx(float(squared[0]), abs=0.03)


def test_the_nucleus_is_the_smallest_set_that_reaches_its_mass() -> None:
    seen = frequencies(Sampling(temperature=1.0, top_p=0.8))
    kept = PROBABILITIES[:3] / PROBABILITIES[:3].sum()
    assert seen == pytest.approx(dict(enumerate(kept.tolist())), abs=0.03)


def test_a_nucleus_that_holds_almost_no_mass_is_still_drawn_exactly() -> None:
    flat = torch.zeros(1, 5000)
    flat[0, 123] = 0.01
    ids, _ = draw_tokens(flat, [Draw(Sampling(temperature=1.0, top_p=1e-6), random.Random(0))])
    assert ids == [123]


def test_log_probabilities_are_those_of_temperature_one() -> None:
    ids, logprobs = draw_tokens(LOGITS[None] + 3.0, [Draw(Sampling(temperature=0.3), random.Random(1))])
    assert logprobs == pytest.approx([math.log(PROBABILITIES[ids[0]])], abs=1e-5)


def test_a_row_draws_the_same_token_whatever_stands_beside_it() -> None:
    sampling = Sampling(temperature=1.0, top_p=0.9)
    alone, _ = draw_tokens(LOGITS[None], [Draw(sampling, random.Random(5))])
    neighbours = [Draw(sampling, random.Random(i)) for i in range(100, 119)]
    among, _ = draw_tokens(LOGITS.expand(20, -1), [*neighbours, Draw(sampling, random.Random(5))])
    assert among[-1:] == alone


def test_a_token_without_probability_is_never_drawn() -> None:
    logits = torch.tensor([[0.0, float("-inf"), 0.0]])
    ids, _ = draw_tokens(logits.expand(500, -1), [Draw(Sampling(), random.Random(i)) for i in range(500)])
    assert set(ids) == {0, 2}


@pytest.mark.parametrize("wrong", [{"temperature": -0.1}, {"top_p": 0.0}, {"top_p": 1.1}, {"max_tokens": 0}])
def test_senseless_sampling_parameters_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)  # type: ignore[arg-type]
