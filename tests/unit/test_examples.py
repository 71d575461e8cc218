"""The shipped demonstrations: how many of which kind, that they are right, and which rows are broken on purpose."""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

from agent.demonstrations import BadRow, Demonstration
from agent.intake import read_rows

EXAMPLES = Path(__file__).parents[2] / "examples" / "demonstrations.jsonl"
OPERATIONS = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
}
EQUATION = re.compile(r"(\d+) ?([-+*/]) ?(\d+) ?= ?\$?(?:\\boxed\{)?(-?[\d,]*\d)")
FINAL = re.compile(r"(?:####\s*|\\boxed\{)([^}\n]*)")


@pytest.fixture(scope="module")
def rows() -> list[Demonstration | BadRow]:
    return list(read_rows(EXAMPLES))


@pytest.fixture(scope="module")
def good(rows: list[Demonstration | BadRow]) -> list[Demonstration]:
    return [row for row in rows if isinstance(row, Demonstration)]


def shape(row: Demonstration) -> str:
    names = ("messages", "conversations", "completion", "output", "solution", "answer")
    return next(name for name in names if name in row.source)


def plain(text: str) -> str:
    return text.replace("\\cdot", "*").replace("\\times", "*").replace("$", "").replace("\\,", "")


def test_every_shape_is_shown(good: list[Demonstration]):
    assert Counter(map(shape, good)) == {
        "answer": 17,
        "solution": 9,
        "completion": 10,
        "messages": 7,
        "output": 5,
        "conversations": 4,
    }


def test_kinds_of_demonstrations(good: list[Demonstration]):
    assert len(good) == 52
    assert Counter(row.task for row in good) == {None: 45, "choice": 3, "text": 4}
    assert sum(bool(re.search("[а-я]", row.question)) for row in good) == 6
    assert sum(row.id.startswith("hostile-") for row in good) == 4
    assert sum(row.reference_answer is not None for row in good) == 42


def test_the_broken_rows_are_these(rows: list[Demonstration | BadRow]):
    broken = [(row.id, row.line, row.field) for row in rows if isinstance(row, BadRow)]
    assert broken == [
        ("hostile-missing-field", 53, "output"),
        ("row-54", 54, None),
        ("hostile-wrong-type", 55, "answer"),
        ("row-56", 56, "id"),
        ("hostile-empty", 57, "completion"),
    ]


def test_every_equation_of_the_experts_holds_but_one(good: list[Demonstration]):
    checked, wrong = 0, []
    for row in good:
        for left, operation, right, result in EQUATION.findall(plain(row.expert)):
            checked += 1
            if OPERATIONS[operation](Fraction(left), Fraction(right)) != Fraction(result.replace(",", "")):
                wrong.append(row.id)
    assert checked > 50
    assert wrong == ["hostile-wrong-expert"]


def test_every_expert_agrees_with_its_reference_but_one(good: list[Demonstration]):
    wrong = []
    for row in good:
        if row.task is None and row.reference_answer is not None:
            (answer,) = FINAL.findall(row.expert.replace(r"\frac{1}{2}", "1/2"))
            if answer.replace(",", "") != row.reference_answer.replace(r"\frac{1}{2}", "1/2"):
                wrong.append(row.id)
    assert wrong == ["hostile-wrong-expert"]
