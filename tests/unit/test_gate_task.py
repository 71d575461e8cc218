"""Which check applies to a demonstration, and that the gate stops at the first that fails."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from agent.demonstrations import Demonstration, Message
from agent.exceptions import GateError
from agent.gate import Gate, task_of
from agent.settings import GateSettings

OPTIONS = "Which is largest?\nA. Mars\nB. Jupiter"


@pytest.fixture
async def gate() -> AsyncIterator[Gate]:
    gate = Gate(GateSettings())
    yield gate
    await gate.aclose()


def demonstration(
    expert: str, *, question: str = "How many rolls?", reference: str | None = None, task: str | None = None
) -> Demonstration:
    return Demonstration("row-1", (Message("user", question),), expert, reference, task)


@pytest.mark.parametrize(
    ("row", "task"),
    [
        (demonstration("six sevens", reference="42"), "math"),
        (demonstration("6*7=42\n#### 42"), "math"),
        (demonstration(r"So \boxed{\frac12}."), "math"),
        (demonstration("6*7=42\nОтвет: 42"), "math"),
        (demonstration("Jupiter.", question=OPTIONS, reference="B"), "choice"),
        (demonstration("Jupiter, so the answer is B.", question=OPTIONS), "choice"),
        (demonstration("x = B", reference="B"), "math"),
        (demonstration("Count them.", question=OPTIONS, reference="42"), "math"),
        (demonstration("Water it less."), "text"),
        (demonstration("The answer is to water it less."), "text"),
        (demonstration("6*7=42\n#### 42", task="text"), "text"),
    ],
)
def test_the_task_follows_the_shape_of_the_row_unless_the_row_says(row: Demonstration, task: str) -> None:
    assert task_of(row) == task


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (demonstration("six sevens", task="poem"), "unknown task 'poem'"),
        (demonstration("six sevens", task="math"), "needs a reference answer"),
        (demonstration("Jupiter.", question=OPTIONS, task="choice"), "needs the letter"),
        (demonstration("Jupiter.", question=OPTIONS, reference="Jupiter", task="choice"), "needs the letter"),
    ],
)
def test_a_task_that_cannot_be_checked_is_an_error(row: Demonstration, message: str) -> None:
    with pytest.raises(GateError, match=message):
        task_of(row)


async def test_the_gate_stops_at_the_first_failed_check(gate: Gate) -> None:
    verdict = await gate.check(demonstration("6*7=42\n#### 42"), "The answer is 42.", finished=False)
    assert [(c.name, c.passed) for c in verdict.checks] == [("hygiene", False)]


async def test_a_right_solution_passes_every_check_in_order(gate: Gate) -> None:
    verdict = await gate.check(demonstration("6*7=42\n#### 42"), "Seven sixes: 6 * 7 = 42.\n#### 42")
    assert verdict.passed
    names = [check.name for check in verdict.checks]
    assert names == ["hygiene", "language", "math_answer", "arithmetic", "grounding", "steps"]
    assert verdict.checks[2].detail == "42 = 42"


async def test_a_reference_answer_in_a_box_or_hash_line_is_unwrapped(gate: Gate) -> None:
    for reference in (r"\boxed{42}", "#### 42", "$42$", " 42 "):
        verdict = await gate.check(demonstration("six sevens", reference=reference), "The answer is 42.")
        assert verdict.passed, reference


async def test_the_given_reference_wins_over_the_experts_own_answer(gate: Gate) -> None:
    row = demonstration("6*7=41\n#### 41", reference="42")
    assert (await gate.check(row, "Six sevens.\n#### 42")).passed
    assert not (await gate.check(row, "Six sevens.\n#### 41")).passed


async def test_a_question_for_a_percentage_makes_percent_a_unit(gate: Gate) -> None:
    row = demonstration("#### 50", question="What percent of the rolls are left?")
    assert (await gate.check(row, "Half of them.\n#### 50%")).passed
    assert not (await gate.check(row, "Half of them.\n#### 0.5")).passed


async def test_the_language_check_can_be_turned_off() -> None:
    row = Demonstration("a", (Message("user", "В 7 пакетах по 6 булочек. Сколько всего?"),), "6*7=42\n#### 42")
    english = "There are 7 bags with 6 rolls in each, so 7 * 6 = 42.\n#### 42"
    on, off = Gate(GateSettings()), Gate(GateSettings(language=False))
    verdicts = [await gate.check(row, english) for gate in (on, off)]
    for each in (on, off):
        await each.aclose()
    assert [v.passed for v in verdicts] == [False, True]
    assert verdicts[0].failed_check is not None
    assert verdicts[0].failed_check.name == "language"
