"""The units of results: which conflict with the expert's or the question's."""

from __future__ import annotations

from fractions import Fraction

import pytest

from agent.gate.units import wrong_unit

QUESTION = "Jack is paid $3 for each of 32 windows. He spends $20 on soap. How much does he earn after that?"
EXPERT = "32*3=$<<32*3=96>>96\n96-20=$76\n#### 76"
LAPS = "Ella swims 20 laps an hour. How many laps does she swim in 5 hours?"


@pytest.mark.parametrize(
    ("candidate", "wrong"),
    [
        ("He washes 32 * 3 = 96 windows.", "96 is a price for the expert, not windows"),
        ("He washes for 3 * 32 = 96 hours.", "96 is a price for the expert, not hours"),
        ("That is 100 - 24 = 76 minutes.", "the question is for a price, not minutes"),
    ],
)
def test_a_result_of_another_kind_than_the_experts_or_the_asked_is_named(candidate: str, wrong: str) -> None:
    assert wrong_unit(candidate, EXPERT, QUESTION, Fraction(76)) == wrong


@pytest.mark.parametrize(
    "candidate",
    [
        "He gets 32 * $3 = $96, so $96 - $20 = $76 are left.",
        "He gets 32 * 3 = 96, so 96 - 20 = 76 are left.",
        "He gets 32 windows * 3 = 96 dollars.",
        "He takes 32 * 3 = 96 minutes and gets $96.",  # said as well: nothing is certain
        "For 30 + 2 = 32 windows he gets 32 * 3 = 96 payments.",
        r"Formulas: \(32 \times 3 = 96\) windows.",
    ],
)
def test_what_may_be_meant_rightly_is_let_through(candidate: str) -> None:
    assert wrong_unit(candidate, EXPERT, QUESTION, Fraction(76)) is None


@pytest.mark.parametrize(
    ("candidate", "wrong"),
    [
        ("She swims 20 * 5 = 100 days.", "the question is for lap, not days"),
        ("She swims 20 * 5 = 100 hours.", None),  # hours are in the question's sentence
        ("She swims 20 * 5 = 100 lengths.", None),
        ("She swims 20 * 5 = 100 meters.", None),  # laps may be measured in meters
        ("She swims 20 * 5 = 100 minutes, that is 100 laps.", None),
    ],
)
def test_a_measure_is_no_count_of_what_is_asked_for(candidate: str, wrong: str | None) -> None:
    assert wrong_unit(candidate, "20*5=100\n#### 100", LAPS, Fraction(100)) == wrong


def test_how_many_times_asks_for_no_time() -> None:
    assert wrong_unit("30 / 5 = 6 meters", "30/5=6", "How many times is 5 in 30 m?", Fraction(6)) is None
    assert wrong_unit("30 / 5 = 6 hours", "30/5=6", "How many weights of 5 make 30?", Fraction(6)) is not None


def test_two_questions_ask_for_nothing_for_certain() -> None:
    asked = f"{LAPS} How many days does she swim?"
    assert wrong_unit("20 * 5 = 100 weeks", "20*5=100", asked, Fraction(100)) is None
