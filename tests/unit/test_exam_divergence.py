"""Which questions the divergence is measured on."""

from __future__ import annotations

import pytest

from agent.chat import ChatFormat
from agent.demonstrations import Demonstration, Message
from tests.scripted_engine import ScriptedEngine
from tests.tiny_chat import CHATML, NO_SYSTEM, tiny_tokenizer
from trainer.exam.accuracy import Question
from trainer.exam.divergence import check_same_tokens, draw_from_base, that_fit
from trainer.exam.settings import EvaluateSettings
from trainer.exceptions import EvaluationError

ASKED = Message("user", "What is 1 + 2 ?")
QUESTIONS = [
    Question(Demonstration("a", (Message("system", "Be brief"), ASKED), "It is 3"), "3"),
    Question(Demonstration("b", (ASKED,), "It is 3"), "3"),
    Question(Demonstration("c", (Message("user", "2 " * 50),), "It is 3"), "3"),
]


async def test_questions_that_cannot_be_asked_stop_no_others() -> None:
    chat = ChatFormat(tiny_tokenizer(NO_SYSTEM))
    engine = ScriptedEngine(chat, "It is 3", max_length=32)
    drawn = await draw_from_base(engine, chat, QUESTIONS, EvaluateSettings())
    assert [(draw.row, draw.text) for draw in drawn.draws] == [("b", "It is 3")]
    assert drawn.left_out == {
        "the base model's chat template refuses it": 1,
        "longer than the base model's context": 1,
    }


async def test_what_the_base_model_drew_too_long_for_the_examined_one_is_left_out_and_counted() -> None:
    chat = ChatFormat(tiny_tokenizer(CHATML))
    drawn = await draw_from_base(ScriptedEngine(chat, "It is 3"), chat, QUESTIONS, EvaluateSettings(kl_samples=2))
    lengths = {draw.row: len(draw.prompt_ids) + len(draw.ids) for draw in drawn.draws}
    assert lengths == {"a": 20, "b": 15, "c": 59}
    kept = that_fit(drawn, 20)
    assert [draw.row for draw in kept.draws] == ["a", "a", "b", "b"]
    assert kept.left_out == {"longer than the model's context": 1}
    assert not that_fit(drawn, 59).left_out


def test_a_question_that_model_and_base_refuse_tells_no_templates_apart() -> None:
    strict, plain = ChatFormat(tiny_tokenizer(NO_SYSTEM)), ChatFormat(tiny_tokenizer(CHATML))
    check_same_tokens(strict, strict, QUESTIONS)
    with pytest.raises(EvaluationError, match="another chat template"):
        check_same_tokens(plain, strict, QUESTIONS[:1])
