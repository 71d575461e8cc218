"""Sums told in words: which are read, and which are false."""

from __future__ import annotations

import pytest

from agent.gate.arithmetic import check_arithmetic
from agent.gate.readable import readable
from agent.gate.spoken import false_statement


@pytest.mark.parametrize(
    "text",
    [
        "half of 84 = 43",
        "Half the 84 rolls is 43 rolls, so he eats them.",
        "So half of $84 is $43.",
        "twice 20 is 41",
        "A third of 30 is 11.",
        "Two-thirds of 30 is 21.",
        "three quarters of 80 is 50",
        "2/3 of 30 is 21.",
        "double 8 gives 15",
        "20 percent of 50 is 12",
        "twenty plus five is thirty",
        "three times four equals eleven",
        "One hundred and twenty minus twenty leaves ninety.",
        "Seven squared is 48.",
        "the square root of 50 is 7",
        "The difference between 9 and 4 is 6.",
        "7 added to 6 is 14",
        "5 less than 20 is 14",
        "43 is half of 84",
        "Natalia sold half of 48 = 25 clips in May.",
        "7 * 6 = 42 because half of 84 is 43.",
        "In total, seven plus six is fourteen.",
        "Half of 84 is 43 and he eats them.",
        "He has half of 84, which is 43 rolls.",
        "7*6 comes to 43 rolls.",
        "42 divided by six yields 8",
        "That makes 50 = 7 × 6.",
        "We know that 50 = 7 * 6.",
        "The total is 50 = 7 · 6.",
        "So we get half of 84 is 43.",
    ],
)
def test_a_false_sum_in_words_is_caught(text: str) -> None:
    check = check_arithmetic(text, text, None)
    assert (check.passed, check.detail.endswith("is false")) == (False, True)


@pytest.mark.parametrize(
    "text",
    [
        "Half of 84 is 42, a third of 30 is 10 and twice twenty is forty.",
        "5 more than twice 20 is 45",
        "Half of 20 is 5 more than 5.",
        "Twice 20 is 20 more.",
        "5 plus half of 20 is 15.",
        "The sum of 5, 6, and half of 20 is 21.",
        "the sum of 5 and\nhalf of 20 is 15",
        "Half of 1 hour is 30 minutes.",
        "Half of $1 is 50 cents.",
        "Half of three dozen is 18.",
        "Half of 20 is 5 apples each for two kids.",
        "Is half of 84 = 43?",
        "More than half of 84 is 43.",
        "Half of 25 is 12 whole rolls, rounded down.",
        "10 percent more than 50 is 55.",
        "One hundred minus 20 percent is 80.",
        "Half of fifteen is seven and a half.",
        "3 times more than 5 is 20.",
        "Four times 25 cents is one dollar.",
        "Four squared plus nine is 25.",
        "One plus one is 10 in binary.",
        "five minus eight is -3",
        "a third of 100 is 33.33",
        "Half of 84 is 84/2 = 42.",
        "Half of 25 is about 12.",
        "Half of 12 squared is 72.",
        "A third of 30 leaves 20.",
        "two thousand plus five is 2005",
        "The square root of 50 is 7.07.",
        "(1/2) 278 + 11 = 150",
        "Since 2/5 is equal to 12.8 hectares, he has 32.",
        "He has 5 more than twice 20, which is 45.",
        "He has twice 20 and 5 more, which is 45.",
        "Of 84 he has half, which is 42.",
        "The cross product gives: 275 x = 33 * 100",
        "Half of 15 is 7, with 1 left over.",
        "Half of 7 is 3, remainder 1.",
        "Half of 15 students is 7, rounding down.",
    ],
)
def test_what_is_true_or_may_mean_something_else_is_let_through(text: str) -> None:
    assert false_statement(readable(text)) is None
