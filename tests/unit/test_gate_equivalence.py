"""When two final answers are equal: exact numbers, units and structure. Symbols are tested with their process."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.gate.equivalence import decide_exactly, equivalent
from agent.gate.notation import plain
from agent.gate.quantities import Quantity, read_quantity


def equal(candidate: str, reference: str, *, percent_asked: bool = False) -> bool:
    """Equality without a symbolic leaf: what needs one is different."""
    return equivalent(plain(candidate), plain(reference), lambda a, b: False, percent_asked=percent_asked)


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("42", Fraction(42), ""),
        ("-1,234.50", Fraction(-2469, 2), ""),
        ("1 234", Fraction(1234), ""),
        (r"\dfrac12", Fraction(1, 2), ""),
        (r"-2\frac{1}{4}", Fraction(-9, 4), ""),
        ("1 1/2", Fraction(3, 2), ""),
        (r"\$18.00", Fraction(18), "dollar"),
        ("18 dollars", Fraction(18), "dollar"),
        (r"42\text{ cm}^2", Fraction(42), "cm^2"),
        ("90°", Fraction(90), "degree"),
        ("42 apples", Fraction(42), "apple"),
    ],
)
def test_a_plain_quantity_is_read_exactly(text: str, value: Fraction, unit: str) -> None:
    assert read_quantity(plain(text)) == Quantity(value, unit)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "42x",
        "42 n",
        "42 thousand",
        "42 or so",
        "not 42",
        "1/0",
        "1e5",
        "12,34",
        "--4",
        "4-2",
        "4 2",
        "9" * 101,
    ],
)
def test_anything_else_is_no_quantity(text: str) -> None:
    assert read_quantity(plain(text)) is None


def test_a_percentage_is_its_share_unless_the_question_asks_for_one() -> None:
    assert equal("50%", "0.5")
    assert not equal("50%", "50")
    assert equal("50%", "50", percent_asked=True)
    assert not equal("50%", "0.5", percent_asked=True)


def test_different_units_conflict_and_a_missing_one_does_not() -> None:
    assert equal("42 apples", "42")
    assert equal("42", "42 cm")
    assert not equal("42 m", "42 cm")
    assert not equal("18 cents", r"\$18")


def test_brackets_and_order_matter_in_tuples_and_intervals() -> None:
    assert equal(r"\left[0, \tfrac12\right)", "[0,0.5)")
    assert not equal("[0,1]", "(0,1)")
    assert not equal("(2,1)", "(1,2)")
    assert not equal("1,2", "(1,2)")


def test_sets_and_lists_are_unordered_multisets() -> None:
    assert equal(r"\{2,1\}", r"\{1,2\}")
    assert equal("x = 2 or x = 1", "1, 2")
    assert equal(r"\pm 3", "-3, 3")
    assert not equal("1, 2, 2", "1, 1, 2")
    assert not equal(r"\{5\}", "5")


def test_an_equation_states_its_value_only_when_every_side_equals_it() -> None:
    assert equal("n = 42", "42")
    assert equal("84/2 = 42", "42")
    assert not equal("6 = 42", "42")
    assert not equal("x = 41 = 42", "42")
    assert not equal("y = 5", "x = 5")
    assert not equal("x < 42", "42")


def test_values_of_different_variables_are_compared_in_their_order_with_bare_ones() -> None:
    assert equal("x=1, y=2", "1, 2")
    assert equal("1 and 2", "x=1, y=2")
    assert not equal("2, 1", "x=1, y=2")
    assert not equal("x=2, y=1", "1, 2")
    assert equal("y=2, x=1", "x=1, y=2")
    assert not equal("x=2, y=1", "x=1, y=2")
    assert equal("x=2, x=1", "1, 2")


def test_the_roots_of_one_variable_have_no_order() -> None:
    assert equal("x_1 = 3, x_2 = -2", "-2, 3")
    assert equal("-2, 3", "x_{1} = 3, x_{2} = -2")
    assert not equal("x_1 = 3, x_2 = 2", "-2, 3")


def test_equations_that_always_hold_are_equal_to_no_other() -> None:
    def difference_is_zero(a: str, b: str) -> bool:
        """Of what is asked here: every difference is 0."""
        return not {a, b} & {"1", "2", "x", "y"}

    for a, b in (("1=1", "2=2"), ("x=x", "y=y"), ("1=1", "x=x")):
        assert not equivalent(a, b, difference_is_zero)
    assert equivalent("x=x", "x=x", difference_is_zero)
    assert equivalent("2x = y", "y = 2x", lambda a, b: False)


def test_words_are_equal_by_spelling_and_never_equal_to_numbers() -> None:
    assert equal(r"\text{Evelyn}", "evelyn")
    assert not equal("Everly", "Evelyn")
    assert decide_exactly("forty", "40") is False


def test_brackets_nested_to_the_length_limit_are_no_trouble() -> None:
    assert not equal("(1," * 90 + "1" + ")" * 90, "(1," * 90 + "2" + ")" * 90)


quantities = st.one_of(
    st.integers().map(str),
    st.integers().map(lambda n: f"{n:,}"),
    st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-(10**9), max_value=10**9).map(str),
    st.builds(r"\frac{{{}}}{{{}}}".format, st.integers(-999, 999), st.integers(1, 999)),
    st.builds("{}/{}".format, st.integers(-999, 999), st.integers(1, 999)),
)


@given(quantities)
def test_equality_is_reflexive_on_numbers(number: str) -> None:
    assert equal(number, number)


@given(st.integers(), st.integers().filter(bool))
def test_no_integer_equals_another(n: int, k: int) -> None:
    assert not equal(str(n), str(n + k))


@given(st.fractions(max_denominator=10**6), st.fractions(max_denominator=10**6))
def test_fractions_are_equal_exactly_when_their_values_are(a: Fraction, b: Fraction) -> None:
    assert equal(rf"\frac{{{a.numerator}}}{{{a.denominator}}}", f"{b.numerator}/{b.denominator}") == (a == b)


@given(st.integers(-(10**12), 10**12), st.integers(0, 9))
def test_a_decimal_equals_no_number_that_rounds_to_it(scaled: int, digit: int) -> None:
    text = f"{scaled // 10**6}.{scaled % 10**6:06d}"
    assert equal(text + str(digit), text) == (digit == 0)


@given(st.text(alphabet=r"0123456789.,/\frac{}()[]<>=% -+$^x", max_size=40))
def test_every_text_that_says_anything_equals_itself(text: str) -> None:
    assert equal(text, text) == bool(plain(text))
