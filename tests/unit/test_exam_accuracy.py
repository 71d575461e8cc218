"""Answers found strictly and leniently, and what their means are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.chat import ChatFormat
from agent.demonstrations import Demonstration, Message
from agent.gate.answer_checker import AnswerChecker
from tests.scripted_engine import ScriptedEngine
from tests.tiny_chat import NO_SYSTEM, tiny_tokenizer
from trainer.exam.accuracy import (
    Question,
    accuracy_metrics,
    grade,
    last_number,
    load_questions,
    measure_accuracy,
    subset,
)
from trainer.exam.settings import EvaluateSettings
from trainer.exceptions import EvaluationError


@pytest.fixture(scope="module")
def answers() -> Iterator[AnswerChecker]:
    checker = AnswerChecker()
    yield checker
    checker.close()


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 3 + 4 = 7 pears.", "7"),
        ("The total is $1,234.50.", "$1,234.50"),
        ("It falls to -3", "-3"),
        ("x=-3", "-3"),
        ("10-3", "3"),
        ("Half of it, 1/2, remains.", "1/2"),
        ("That is 45 %.", "45 %"),
        ("0.5 of 12, so .5", ".5"),
        ("It falls to \u22123", "\u22123"),
        ("about 1.5e3 of them", "1.5e3"),
        ("10^6 or 10^{7}.", "10^{7}"),
        (r"that is \frac{3}{4}.", r"\frac{3}{4}"),
        (r"so -\dfrac{3}{4}$", r"-\dfrac{3}{4}"),
        (r"2\frac{1}{2}", r"2\frac{1}{2}"),
        ("He walks 1 1/2 miles", "1 1/2"),
        ("of 3, 4, 5", "5"),
        ("x^2", "2"),
        ("at 10:30", "30"),
        ("no number at all", None),
        ("", None),
    ],
)
def test_the_last_number_is_taken_as_it_is_written(text: str, number: str | None) -> None:
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("It falls to \u22123 degrees", "-3"),
        ("So 1.5e3 pears", "1500"),
        ("So 2e-3 of it", "0.002"),
        ("So 10^6 pears", "1000000"),
        (r"So \frac{3}{4} of it", "0.75"),
        ("So 1 1/2 miles", "1.5"),
    ],
)
async def test_a_last_number_is_compared_by_its_value(answers: AnswerChecker, text: str, reference: str) -> None:
    row = Demonstration("a", (Message("user", "How many?"),), f"#### {reference}")
    assert (await grade(answers, Question(row, reference), text)).lenient
    assert not (await grade(answers, Question(row, "7"), text)).lenient


@pytest.mark.parametrize(
    ("text", "strict", "lenient", "answer"),
    [
        ("3 + 4 = 7. The answer is 7.", True, True, "7"),
        (r"\boxed{7} pears, as 2 of 9 were eaten", True, True, "7"),
        ("So she has 7 pears.", False, True, None),
        ("So she has $7.00", False, True, None),
        ("So she has 7 pears and 2 figs.", False, False, None),
        ("The answer is 8.", False, False, "8"),
        ("The answer is 7. Wait, it is 8.", False, False, "7"),
        ("", False, False, None),
    ],
)
async def test_strict_wants_a_stated_answer_and_lenient_takes_the_last_number(
    answers: AnswerChecker, text: str, strict: bool, lenient: bool, answer: str | None
) -> None:
    question = Question(Demonstration("1", (Message("user", "How many pears?"),), "3+4=7\n#### 7"), "7")
    found = await grade(answers, question, text)
    assert (found.strict, found.lenient, found.answer) == (strict, lenient, answer)


async def test_questions_that_cannot_be_asked_are_counted_and_stop_no_others(answers: AnswerChecker) -> None:
    def question(row: str, *turns: Message) -> Question:
        return Question(Demonstration(row, turns, "It is 3"), "3")

    asked, system = Message("user", "What is 1 + 2 ?"), Message("system", "Be brief")
    questions = [question("a", system, asked), question("b", asked), question("c", Message("user", "2 " * 50))]
    chat = ChatFormat(tiny_tokenizer(NO_SYSTEM))
    engine = ScriptedEngine(chat, "The answer is 3", max_length=32)
    done: list[int] = []
    records, left_out = await measure_accuracy(
        engine, chat, questions, answers, EvaluateSettings(), adapter=None, on_row=done.append
    )
    assert [(record["row"], record["strict"]) for record in records] == [("b", True)]
    assert left_out == {"the model's chat template refuses it": 1, "longer than the model's context": 1}
    assert done == [1, 2, 3]


def test_means_are_over_questions_and_samples_count_as_their_mean() -> None:
    def record(
        row: str, draw: str | int, strict: bool, answer: str | None, reason: str, tokens: int
    ) -> dict[str, object]:
        return {
            "row": row,
            "draw": draw,
            "strict": strict,
            "lenient": True,
            "answer": answer,
            "finish_reason": reason,
            "tokens": tokens,
        }

    records = [
        record("a", "greedy", True, "1", "stop", 10),
        record("a", 0, True, "1", "stop", 20),
        record("a", 1, False, None, "length", 40),
        record("b", "greedy", False, None, "length", 30),
        record("b", 0, False, "2", "stop", 10),
        record("b", 1, False, "3", "stop", 10),
    ]
    metrics = accuracy_metrics(records, samples=2)
    assert {name: figure.value for name, figure in metrics.items()} == {
        "greedy/strict": 0.5,
        "greedy/lenient": 1.0,
        "greedy/no_answer": 0.5,
        "greedy/cut_off": 0.5,
        "greedy/tokens": 20.0,
        "avg@2/strict": 0.25,
        "avg@2/lenient": 1.0,
        "avg@2/no_answer": 0.25,
        "avg@2/cut_off": 0.25,
        "avg@2/tokens": 20.0,
    }
    # row means 0.5 and 0: s = 0.5 / sqrt(2), over sqrt(2)
    assert metrics["avg@2/strict"].stderr == pytest.approx(0.25)
    assert "avg@2/strict" not in accuracy_metrics(records, samples=0)


def test_rows_that_cannot_be_asked_are_counted(tmp_path: Path) -> None:
    rows = [
        {"question": "1 + 1?", "answer": "#### 2"},
        {"Body": "Ann has 3 pears", "Question": "How many are 2 more?", "Answer": 5.0},
        {"question": "Who are you?", "answer": "Nobody in particular."},
        {"question": "x"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows) + "no json\n")
    found = load_questions("sums", file, limit=None, seed=0)
    assert [question.reference for question in found.asked] == ["2", "5"]
    assert found.left_out == {"cannot be read": 2, "no reference answer in mathematics": 1}
    one = load_questions("sums", file, limit=1, seed=0)
    assert one.asked == load_questions("sums", file, limit=1, seed=0).asked
    assert len(one.asked) == 1
    file.write_text('{"question": "Who are you?", "answer": "Nobody."}')
    with pytest.raises(EvaluationError, match=r"sums: .*rows\.jsonl has no row"):
        load_questions("sums", file, limit=None, seed=0)


def test_a_subset_is_drawn_by_its_seed() -> None:
    drawn = subset(1000, 10, "0/piqa")
    assert drawn == sorted(set(drawn))
    assert len(drawn) == 10
    assert drawn == subset(1000, 10, "0/piqa")
    assert drawn != subset(1000, 10, "1/piqa")
    assert subset(3, 10, "0/piqa") == subset(3, None, "0/piqa") == [0, 1, 2]
