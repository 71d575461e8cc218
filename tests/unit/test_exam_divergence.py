"""Which questions the divergence is measured on."""

from __future__ import annotations

import pytest

from agent.chat import ChatFormat
from agent.demonstrations import Demonstration, Message
from tests.scripted_engine import ScriptedEngine
from tests.tiny_chat import CHATML, NO_SYSTEM, tiny_tokenizer
from trainer.exam.accuracy import Question
from trainer.exam.divergence import check_same_tokens, draw_from_base
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
    assert [(draw.row, draw.text) for draw in drawn] == [("b", "It is 3")]


def test_a_question_that_model_and_base_refuse_tells_no_templates_apart() -> None:
    strict, plain = ChatFormat(tiny_tokenizer(NO_SYSTEM)), ChatFormat(tiny_tokenizer(CHATML))
    check_same_tokens(strict, strict, QUESTIONS)
    with pytest.raises(EvaluationError, match="another chat template"):
        check_same_tokens(plain, strict, QUESTIONS[:1])
