"""The letter a multiple-choice solution states."""

from __future__ import annotations

import pytest

from agent.gate.choice import check_choice, option_letter, options

ABCD = frozenset("ABCD")


def test_options_are_found_on_lines_and_inline() -> None:
    assert options("Which?\nA. Mars\nB) Venus\n(C) Earth") == frozenset("ABC")
    assert options("Which? (A) Mars (B) Venus") == frozenset("AB")
    assert options("Что верно?\nА) одно\nБ) другое") == frozenset("АБ")


def test_a_prompt_with_one_lettered_line_has_no_options() -> None:
    assert options("A. Smith has 7 bags.\nHow many rolls?") == frozenset()


@pytest.mark.parametrize("text", ["B", "(B)", "B.", " b ".upper(), "$B$", r"\text{B}"])
def test_a_reference_letter_is_read_in_its_usual_forms(text: str) -> None:
    assert option_letter(text) == "B"


@pytest.mark.parametrize("text", ["", "b", "Bag", "AB", "42", "B or C"])
def test_anything_else_is_no_reference_letter(text: str) -> None:
    assert option_letter(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "B",
        "(B)",
        "B) Jupiter",
        "B. Jupiter is the largest.",
        "It outweighs the others, so the answer is (B).",
        r"It outweighs the others: \boxed{B}",
        r"It outweighs the others: \boxed{\text{(B)}}",
        r"It outweighs the others: \boxed{B. Jupiter}",
        "**Answer: B**",
        "The answer to the question is option B.",
        "The correct option is B because Jupiter is heavy.",
        "Ответ: B",
    ],
)
def test_the_stated_letter_passes(text: str) -> None:
    assert check_choice(text, "B", ABCD).passed


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("The answer is (A).", "A ≠ B"),
        ("Jupiter is the largest.", "states no option letter"),
        ("A, B and C are planets.", "states no option letter"),
        ("The answer is a planet.", "states no option letter"),
        ("The answer is not B.", "states no option letter"),
        ("The answer is (B). No: the answer is (C).", "contradicts itself: B, C"),
        (r"\boxed{A} \boxed{B}", "contradicts itself: A, B"),
        (r"The answer is (B), that is \boxed{Venus}.", "contradicts itself: B, ?"),
        ("The answer is B. Wait, that is wrong.", "takes B back"),
        ("The answer is E.", "E is none of the options A, B, C, D"),
    ],
)
def test_anything_but_one_right_letter_fails_and_says_why(text: str, detail: str) -> None:
    check = check_choice(text, "B", ABCD)
    assert (check.passed, check.detail) == (False, detail)
