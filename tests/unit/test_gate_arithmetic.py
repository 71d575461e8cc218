"""Equations in prose: what is read, what holds, and whether the answer is computed."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.gate.arithmetic import check_arithmetic, equations

EXPERT = "18 * 3 = 54, and 54 + 2 = 56\n#### 56"


@pytest.mark.parametrize(
    "text",
    [
        "18 * 3 = 54 cups",
        "$3 / 2 = $1.50",
        "25% of 16 = 4",
        "10/50*100 = 20%",
        "10 / 3 = 3.33",
        "4 trays * 6 muffins = 24 muffins",
        "- 5 * 3 = 15",
        "\\frac{1}{2} \\times 4 = 2",
        "1,000 - 250 = 750",
        "(2 + 3) * 4 = 20",
        "12 x 3 = 36",
        "7 − 2 = 5",
        "5 snakes/jaguar * 6 jaguars = 30 snakes",
        "40 students x $6/day = $240",
        "70 km/h * 3 = 210 km",
        "300 g / 4 = 75 g",
        "5 * 3 = 15 - 1 + 1",
        "36 + 45 = 81 push-ups",
        "Soo-jin has 230 + 180 = 410 gems",
        "12 * 5 = 60 T-shirts in sister-in-law boxes",
    ],
)
def test_a_true_equation_is_read_and_holds(text: str) -> None:
    assert [e.holds for e in equations(text)] == [True]


@pytest.mark.parametrize(
    "text",
    [
        "18 - 5 = 8 years",
        "32 pieces because 32 x 4 = 120 pieces",
        "10 / 3 = 3",
        "18 * 3 = $55",
        "5 + 3 = 8 = 9",
        "1/4 x 1 = 1/2",
        "10 / 3 = 3.34",
        "60 x $6/day = $400",
        "1500 cars / 150 cars/row = 30 minutes",
        "300 / 4 = 70 g of rice",
    ],
)
def test_a_false_equation_is_caught(text: str) -> None:
    assert not all(e.holds for e in equations(text))


@pytest.mark.parametrize(
    "label",
    [
        "1) ",
        "1)",
        "(1) ",
        "a) ",
        "(a) ",
        "(i) ",
        "IV) ",
        "б) ",
        "Part (b) ",
        "Step 2) ",
        "**(a)** ",
        "- a) ",
        "### (a) ",
    ],
)
def test_a_sum_behind_a_label_is_judged(label: str) -> None:
    assert [e.holds for e in equations(f"{label}54 + 2 = 57 cups.")] == [False]
    assert [e.holds for e in equations(f"18 * 3 = 54.\n{label}54 + 2 = 57 cups.")] == [True, False]


@pytest.mark.parametrize("text", ["Two steps: 1) 54 + 2 = 57", "She sells cups. (b) 54 + 2 = 57"])
def test_a_label_may_begin_a_sentence_inside_a_line(text: str) -> None:
    assert [e.holds for e in equations(text)] == [False]


def test_labelled_steps_are_read_one_by_one() -> None:
    text = "1) 20 - 7 = 13\n2) 5 * 4 = 20\n3) 13 + 20 = 33\nThe answer is 33."
    assert [(e.operands, e.result, e.holds) for e in equations(text)] == [
        ((20, 7), 13, True),
        ((5, 4), 20, True),
        ((13, 20), 33, True),
    ]


@pytest.mark.parametrize(
    "text", ["(7) * 6 = 50", "(7) x 6 = 50", "(7) times 6 = 50", "(7) multiplied by 6 = 50", "(7) - 6 = 50"]
)
def test_a_number_in_brackets_that_an_operation_follows_is_no_label(text: str) -> None:
    assert [(e.operands[0], e.holds) for e in equations(text)] == [(7, False)]


@pytest.mark.parametrize(
    "text",
    [
        "7 * 6 gives us 50.",
        "7 multiplied by 6 makes us 50 rolls",
        "7 * 6 will be $50.",
        "7 * 6 results in 50",
        "`7 * 6` = `50`",
        "7 ⨯ 6 = 50",
        "7 ✖️ 6 = 50",
        "¥7 * 6 = ¥50",
    ],
)
def test_a_false_sum_in_other_words_and_signs_is_caught(text: str) -> None:
    assert [e.holds for e in equations(text)] == [False]


def test_an_approximation_is_not_judged() -> None:
    assert list(equations("7 * 6 ≈ 50, and 7 * 6 = about 50, and 7 * 6 will be about 50.")) == []


@pytest.mark.parametrize(
    "text",
    [
        "$\\sqrt{49} = 7$",
        "\\sqrt{50} = 5\\sqrt{2}",
        "\\frac{\\sqrt{2}}{2} = \\frac{1}{\\sqrt{2}}",
        "(2\\sqrt{2})^2 = 8",
        "\\sqrt{3^2 + 4^2} = \\sqrt{25} = 5",
        "√2 = 1.414",
        "sqrt(9 + 16) = 5",
        "\\sqrt[3]{27} + 1 = 4",
        "5! = 120",
        "\\frac{5!}{3! \\cdot 2!} = 10",
        "7! \\times 2! = 10,\\!080",
        "7 * 6 = 42!",
        "\\binom{5}{2} = 10",
        "35 \\left( \\frac15 \\right)^4 \\left( \\frac45 \\right)^3 = \\frac{448}{15625}",
        "\\frac34 \\left( \\frac{\\sqrt{3}}{8} \\right)^2 = \\frac{9}{256}",
    ],
)
def test_true_equations_with_functions_hold(text: str) -> None:
    assert [e.holds for e in equations(text, functions=True)][-1:] == [True]
    assert check_arithmetic(text, text, None).passed


@pytest.mark.parametrize(
    "text",
    [
        "\\sqrt{49} = 6",
        "√49 = 6",
        "sqrt(9 + 16) = 6",
        "\\sqrt{50} = 7",
        "\\sqrt[3]{27} = 4",
        "5! = 100",
        "\\binom{5}{2} = 9",
        "\\frac12 \\cdot 84 = 43",
    ],
)
def test_a_false_equation_with_functions_is_caught_and_asks_nothing_of_a_rewrite(text: str) -> None:
    assert list(equations(text)) == []
    assert not check_arithmetic(text, text, None).passed


@pytest.mark.parametrize(
    "words",
    [
        "Forget the last.",
        "Scratch that!",
        "Oh, never mind.",
        "Please ignore the previous line.",
        "Disregard what I said.",
    ],
)
def test_a_sum_that_is_taken_back_fails(words: str) -> None:
    check = check_arithmetic(f"18 * 3 = 54. 54 + 1 = 55. {words} 54 + 2 = 56. The answer is 56.", EXPERT, Fraction(56))
    assert (check.passed, check.detail[:20]) == (False, "takes back what it s")


@pytest.mark.parametrize(
    "words",
    [
        "Do not forget the last two.",
        "We ignore the last digit.",
        "The root -2 is too small, so ignore it.",
        "Never mind the cups.",
    ],
)
def test_what_is_left_out_of_account_is_not_taken_back(words: str) -> None:
    assert check_arithmetic(f"18 * 3 = 54. {words} 54 + 2 = 56. The answer is 56.", EXPERT, Fraction(56)).passed


def test_thousands_of_roots_are_not_multiplied_out() -> None:
    assert check_arithmetic("*".join(["√2"] * 6600) + " = 5", "", None).passed


@pytest.mark.parametrize(
    "text",
    ["2x + 3 = 7", "a + 2 = 5", "f(3) = 7", "14\n14 / 2", "x = 5"],
)
def test_what_is_no_plain_equation_is_not_judged(text: str) -> None:
    assert list(equations(text)) == []


def test_a_false_step_fails_a_solution_with_the_right_answer() -> None:
    check = check_arithmetic("18 * 3 = 44. 54 + 2 = 56. The answer is 56.", EXPERT, Fraction(56))
    assert (check.passed, check.detail) == (False, "18 * 3 = 44 does not hold")


def test_an_answer_out_of_nowhere_fails_where_the_expert_computes_it() -> None:
    check = check_arithmetic("18 * 3 = 54 cups were sold. The answer is 56.", EXPERT, Fraction(56))
    assert (check.passed, check.detail) == (False, "no equation arrives at the answer, as one of the expert's does")


def test_a_solution_that_computes_the_answer_passes() -> None:
    check = check_arithmetic("She made 54 + 2 = 56 cups. The answer is 56.", EXPERT, Fraction(56))
    assert (check.passed, check.detail) == (True, "1 equations hold")


def test_prose_passes_where_the_expert_writes_prose_too() -> None:
    assert check_arithmetic("Twice 28 is 56. The answer is 56.", "Double 28 gives 56.", Fraction(56)).passed


@given(st.integers(-999, 999), st.integers(-999, 999), st.sampled_from("+-*"), st.integers(1, 9))
def test_a_sum_holds_exactly_when_it_is_right(a: int, b: int, operator: str, off: int) -> None:
    value = {"+": a + b, "-": a - b, "*": a * b}[operator]
    assert [e.holds for e in equations(f"So ({a}) {operator} ({b}) = {value} apples.")] == [True]
    assert [e.holds for e in equations(f"So ({a}) {operator} ({b}) = {value + off} apples.")] == [False]


def test_brackets_in_brackets_without_end_are_not_read() -> None:
    text = "(" * 5000 + "1" + ")" * 5000
    assert list(equations(f"{text} = 2")) == []


@pytest.mark.parametrize(
    "text",
    [
        "(" + "*".join(["9" * 30] * 150) + ")^2 = 5",
        "2^" + "9" * 5000 + " = 5",
        "*".join(["9" * 30] * 150) + " = 5",
    ],
    ids=["base", "exponent", "product"],
)
def test_equations_of_enormous_numbers_are_not_judged(text: str) -> None:
    assert check_arithmetic(text, text, Fraction(5)).passed
