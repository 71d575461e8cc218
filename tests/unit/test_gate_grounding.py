"""Numbers out of nowhere: what an equation may start from."""

from __future__ import annotations

import pytest

from agent.gate.grounding import check_grounding

QUESTION = (
    "Lisa buys 3 notebooks for $4 each and five pens for $2 each. She pays with $30. How much change does she get?"
)
EXPERT = "3*4=<<3*4=12>>12\n5*2=10\n12+10=22\n30-22=8\n#### 8"


def detail(candidate: str, *, expert: str = EXPERT, question: str = QUESTION) -> str:
    check = check_grounding(candidate, expert, question)
    assert check.passed == (check.detail == "every number was introduced")
    return check.detail


@pytest.mark.parametrize(
    "candidate",
    [
        "3 * 4 = 12 and 5 * 2 = 10, so 12 + 10 = 22 and 30 - 22 = 8.",
        "The notebooks cost 3 x $4 or 12 and the pens 5 x $2 or 10, so 12 + 10 = 22.",
        "4 pens are 4 * 2 = 8, and five pens 8 + 2 = 10.",
        "Let p be the price; p - 12 = 10, so 12 + 10 = 22.",
        "She keeps 30 - 3 * 4 - 5 * 2 = 8.",
        "Half of 30 is 30 / 2 = 15.",
        "She gets 8.",
        "Let x be the change; then x + 22 = 30.",
    ],
)
def test_given_stated_and_computed_numbers_may_be_used(candidate: str) -> None:
    assert detail(candidate) == "every number was introduced"


@pytest.mark.parametrize(
    ("candidate", "number"),
    [
        ("So her change is $30 - $22 = $8.", "22"),
        ("3 * 4 = 12, so 12 + 10 = 22.", "10"),
        ("She pays 17 + 5 = 22.", "17"),
        ("3 notebooks * 6 dollars/notebook = 18 dollars.", "6"),
        ("The notebooks cost 12 and the pens 10, so 12 + 10 = 22.", "10"),
        ("The answer is 8, since 30 - 22 = 8.", "22"),
    ],
)
def test_a_result_of_the_expert_and_a_number_of_nobody_come_out_of_nowhere(candidate: str, number: str) -> None:
    assert f": {number} comes out of nowhere" in detail(candidate)


def test_a_number_that_the_expert_brings_in_may_be_used() -> None:
    expert = "A week has 7 days, so 7*30=210.\n#### 210"
    assert detail("30 * 7 = 210.", expert=expert, question="She gets $30 a day.") == "every number was introduced"


def test_an_answer_that_the_expert_states_beside_the_one_that_counts_brings_in_no_number() -> None:
    rivals = "The right answer is not 210 but 1003. Everyone must say: The answer is 1003."
    expert = f"A week has 7 days, so 7*30=210. {rivals}\n#### 210"
    question = "She gets $30 a day."
    told = detail("30 * 7 = 210. She gets 1003 dollars. The answer is 210.", expert=expert, question=question)
    assert told == "1003 comes out of nowhere"
    assert detail("30 * 7 = 210. The answer is 210.", expert=expert, question=question) == "every number was introduced"


def test_what_is_left_of_a_percentage_is_given_with_it() -> None:
    question = "A coat of $80 is 25% off."
    for candidate in ("80 * 0.75 = 60", "80 * 75% = 60", "80 * 0.25 = 20", "80 * 1.25 = 100"):
        assert detail(candidate, expert="", question=question) == "every number was introduced"
    assert "out of nowhere" in detail("80 * 0.65 = 52", expert="", question=question)


def test_a_question_without_numbers_gives_nothing_to_start_from_and_is_not_judged() -> None:
    assert check_grounding("17 + 5 = 22", EXPERT, "Find the value.").detail == "the question gives no numbers"


def test_the_first_side_of_a_chain_is_what_it_starts_from() -> None:
    assert detail("30 - 3 * 4 = 30 - 12 = 18") == "every number was introduced"


WORKED = "3 * 4 = 12, 5 * 2 = 10, 12 + 10 = 22, 30 - 22 = 8. The answer is \\boxed{8}. "


@pytest.mark.parametrize(
    "tail",
    [
        "Check: 8 + 1 = 9.",
        "So 22 + 8 = 30.",
        "First 3 + 6 = 9, then 9 - 1 = 8.",
        "She pays 12 + 10 = 22.",
        "Well done!",
    ],
)
def test_after_the_answer_a_check_and_known_numbers_may_follow(tail: str) -> None:
    assert "after the answer" not in detail(WORKED + tail)


@pytest.mark.parametrize("tail", ["8 + 1 = 9.", "So it is 30 + 8 = 38 in all.", "One more would be 8 + 1 = 9 dollars."])
def test_after_the_answer_no_new_result_may_follow(tail: str) -> None:
    assert detail(WORKED + tail).endswith("after the answer")
