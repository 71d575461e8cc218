"""The engine as a model of lm-eval: what does not fit its context."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from lm_eval.api.instance import Instance

from agent.chat import ChatFormat
from tests.scripted_engine import ScriptedEngine
from tests.tiny_chat import tiny_tokenizer
from trainer.exam.lm import EngineLM
from trainer.exam.settings import EvaluateSettings
from trainer.exceptions import EvaluationError


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


def model(runner: asyncio.Runner, *, max_length: int = 12) -> EngineLM:
    chat = ChatFormat(tiny_tokenizer())
    engine = ScriptedEngine(chat, "It is 3", max_length=max_length)
    return EngineLM(
        runner, engine, chat, None, EvaluateSettings(), needs_greedy=False, on_rows=lambda done, total: None
    )


def request(number: int, *arguments: Any, doc: dict[str, Any] | None = None) -> Instance:
    return Instance("loglikelihood", doc or {"row": number + 1}, arguments, 0, ("piqa", number, 1))


def test_a_continuation_that_the_context_cannot_hold_names_its_row(runner: asyncio.Runner) -> None:
    asked = [request(0, "Hi", " Plum"), request(1, "Hi", " so" * 12)]
    with pytest.raises(
        EvaluationError, match="benchmark piqa: row 2: a continuation of 12 tokens does not fit the context"
    ):
        model(runner).loglikelihood(asked)
    assert model(runner).loglikelihood([request(1, "Hi", " so" * 11)]) == [(-22.0, False)]


def test_rows_whose_context_is_cut_are_counted_once(runner: asyncio.Runner) -> None:
    lm = model(runner)
    asked = [request(number, "so " * words, ending) for number, words in ((0, 11), (1, 12)) for ending in (" a", " It")]
    assert lm.loglikelihood(asked) == [(-2.0, False)] * 4
    assert lm.cut == {"benchmark piqa: row 2"}


def test_a_prompt_that_leaves_no_room_for_an_answer_names_its_row(runner: asyncio.Runner) -> None:
    long = request(4, "so " * 12, {"max_gen_toks": 5}, doc={"key": 7})
    with pytest.raises(EvaluationError, match="benchmark piqa: row 4: a prompt of 12 tokens does not fit"):
        model(runner).generate_until([long])
