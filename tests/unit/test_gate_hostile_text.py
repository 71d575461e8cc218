"""Text that once kept a pattern of the gate busy for minutes to hours: each test ends at once, or hardly ever."""

from __future__ import annotations

import time
from collections.abc import Callable
from fractions import Fraction

import pytest

from agent.demonstrations import Demonstration
from agent.gate.answers import extract_answer
from agent.gate.choice import option_letter, options, stated_letters
from agent.gate.hygiene import check_hygiene
from agent.gate.language import check_language
from agent.gate.math_answer import percent_asked
from agent.gate.notation import plain
from agent.gate.units import wrong_unit
from agent.intake import read_json_rows
from agent.settings import GateSettings


@pytest.mark.parametrize("text", ["\n " * 5_000, "\n" * 10_000, " " * 10_000, "\n- " * 5_000])
def test_blank_lines_are_read_once_in_search_of_options(text: str) -> None:
    assert options(f"Which?{text}A) Mars\nB) Venus") == {"A", "B"}


@pytest.mark.parametrize("words", ["option ", "the answer to ", "to answer is ", "ответ под буквой "])
def test_words_that_lead_to_an_option_are_read_a_few_times_each(words: str) -> None:
    text = words * 30_000 + "\nThe answer is B."
    assert stated_letters(text) == [(len(text) - 1, "B")]


@pytest.mark.parametrize("space", [" ", "\n", "\u00a0"])
def test_spaces_before_a_power_are_read_once(space: str) -> None:
    assert plain(f"a{space * 500_000}b") == "a b"


@pytest.mark.parametrize("space", ["", " "])
def test_braces_around_all_of_a_text_are_matched_once(space: str) -> None:
    opening, close = f"{{{space}" * 200_000, f"{space}}}" * 200_000
    assert plain(f"{opening}42{close}") == "42"
    assert plain(f"{opening}4{close}{{2}}") == " ".join(f"{opening}4{close}{{2}}".split())


def test_a_long_reference_is_no_letter() -> None:
    assert option_letter("(" * 100 + "B") == "B"
    assert option_letter("(" * 400_000 + "B") is None


@pytest.mark.parametrize(
    "words",
    [
        "#### x\n",
        "answer is ",
        "answer is" + " " * 19,
        "answer to is      is      is      ",
        "answer is      ",
    ],
)
def test_what_leads_to_an_answer_over_and_over_is_read_a_few_times_each(words: str) -> None:
    found = extract_answer(words * 20_000 + "\nSo the answer is 42.")
    assert found is not None
    assert found.text == "42"


@pytest.mark.parametrize(
    "text",
    ["The answer is x." + "\n" * 60_000, ("The answer is " + " " * 3000) * 20 + "\nThe answer is x."],
    ids=["lines", "spaces"],
)
def test_long_runs_of_blanks_are_read_in_no_time(text: str) -> None:
    start = time.process_time()
    found = extract_answer(text)
    assert time.process_time() - start < 1
    assert found is not None
    assert found.text == "x"


@pytest.mark.parametrize(
    "piece", ["$", "9", "9,", "= ", "how much ", "how many ", "9 a ", "<<", "$9 ", "\n", "9-", "1+1=2. ", "1+1=$2. "]
)
def test_units_of_hostile_texts_take_no_seconds(piece: str) -> None:
    text = piece * (20_000 // len(piece))
    began = time.process_time()
    wrong_unit(f"2 + 3 = 5 {text}", f"2 + 3 = $5 {text}", text, Fraction(5))
    assert time.process_time() - began < 2


@pytest.mark.parametrize("opening", ["\\(", "\\[", "1-", "\\begin{align}"])
def test_what_opens_and_never_closes_is_not_read_to_the_end_for_each(
    monkeypatch: pytest.MonkeyPatch, opening: str
) -> None:
    monkeypatch.setattr("agent.gate.language._MAX_CHARACTERS", 10**6)
    text = "The boxes are with the apples. " + opening * 30_000
    assert check_language(text, "There are two boxes.", "How many?").passed


def test_long_words_of_signs_alone_are_searched_for_loops_once() -> None:
    text = "Two boxes. " + " ".join("(" * (1_000 + n) for n in range(1_000))
    assert check_hygiene(text, text, GateSettings()).passed


@pytest.mark.parametrize(
    ("read", "text", "found"),
    [
        (options, "Which?\n  - (A) Mars\n\n\t* B. Venus\n\n  (C): Earth", {"A", "B", "C"}),
        (stated_letters, "The answer to the question is option letter B.", [(45, "B")]),
        (plain, "x  ^{2}", "x^{2}"),
    ],
)
def test_what_is_meant_is_read_as_before(read: Callable[[str], object], text: str, found: object) -> None:
    assert read(text) == found


def row_of(question: str) -> Demonstration:
    (row,) = read_json_rows([{"question": question, "answer": "3 #### 3"}])
    assert isinstance(row, Demonstration)
    return row


def test_a_question_of_percent_signs_is_read_once() -> None:
    assert not percent_asked(row_of("% " * 500_000))


@pytest.mark.parametrize(
    ("question", "asked"),
    [
        ("He ran 3 of 4 miles. What percent did he run?", True),
        ("Сколько процентов он прошёл? ", True),
        ("What % is left?", True),
        ("A 20 % tax applies. How much is left?", False),
        ("How much is a 20% tax?", False),
        ("What percent is left", False),
        ("How many dollars is it after a discount of ten percent?", False),
        ("How much is left after twenty-five percent are paid?", False),
        ("Сколько стоит шляпа со скидкой в двадцать процентов?", False),
        ("Сколько стоит шляпа со скидкой в пять процентов?", False),
        ("Каким стал процент брака?", True),
        ("Какой у этой семьи процент?", True),
        ("What percent is ten percent of a half?", True),
        ("?", False),
    ],
)
def test_a_percentage_is_asked_for_by_the_last_question_alone(question: str, asked: bool) -> None:
    assert percent_asked(row_of(question)) is asked
