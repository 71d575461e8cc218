"""What makes a candidate unusable whatever it says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.gate.answers import extract_answer, taken_back
from agent.gate.hygiene import ROOM_CHARS, check_hygiene
from agent.settings import GateSettings

EXPERT = "Each of the 7 bags holds 6 rolls, so she packs 7 * 6 = 42 rolls.\n#### 42"
CLEAN = "There are 7 bags with 6 rolls in each. 7 * 6 = 42, so she packs 42 rolls.\n#### 42"


def detail(candidate: str, *, expert: str = EXPERT, finished: bool = True) -> str:
    check = check_hygiene(candidate, expert, GateSettings(), finished=finished)
    assert check.passed == (check.detail == "clean")
    return check.detail


def test_an_ordinary_solution_is_clean() -> None:
    assert detail(CLEAN) == "clean"


@pytest.mark.parametrize("text", ["", " \n", "\u200b\ufeff", "...", "\\[ \\]"])
def test_a_text_without_letters_and_digits_is_empty(text: str) -> None:
    assert detail(text) == "empty"


def test_a_candidate_without_end_of_turn_is_cut_off() -> None:
    assert detail(CLEAN, finished=False).startswith("cut off")


def test_the_length_is_bounded_by_the_expert_in_both_directions() -> None:
    expert = "word by word " * 200
    assert detail(CLEAN, expert=expert).startswith("too short")
    assert detail(" ".join(str(n) for n in range(10_000)), expert=expert).startswith("too long")


def test_a_terse_expert_leaves_room_for_an_ordinary_solution() -> None:
    spelled_out = " ".join(str(n) for n in range(1000))[: ROOM_CHARS - 1]
    assert detail(spelled_out, expert="6*7=42\n#### 42") == "clean"
    assert detail(spelled_out + " 999 998", expert="6*7=42\n#### 42").startswith("too long")


@pytest.mark.parametrize(
    "token",
    [
        "<|im_start|>",
        "<|im_end|>",
        "<|eot_id|>",
        "<|endoftext|>",
        "<s>",
        "</s>",
        "[INST]",
        "[/INST]",
        "<<SYS>>",
        "<file_sep>",
        "<jupyter_start>",
        "<empty_output>",
        "<fim_middle>",
        "<start_of_turn>",
        "<end_of_turn>",
        "<|im\u200b_end|>",
        "＜|im_end|＞",
        "<｜end▁of▁sentence｜>",
        "< |im_end|>",
    ],
)
def test_control_tokens_are_seen_also_in_disguise(token: str) -> None:
    assert detail(f"{CLEAN} {token}").startswith("chat-control token")


@pytest.mark.parametrize(
    "text", ["if a <|b| and c>|d|", "<b>6</b> <table>", "<output>", "x < s > 0 y", "a[INSTANCE]", "1 < 2 | 3 > 2"]
)
def test_signs_that_only_resemble_control_tokens_are_clean(text: str) -> None:
    assert detail(f"{CLEAN} {text}") == "clean"


@pytest.mark.parametrize(
    "text",
    [
        "As the given solution says, it is 42.",
        "The expert's solution multiplies.",
        "Here is the rewritten answer: 42",
        "Rewritten:\n42",
        "Sure, here is what I got: 42.",
        "As an AI I cannot count, but 42.",
        "Here's the step-by-step solution: 42",
        "Конечно! Получается 42.",
        "Переписанное решение: 42",
        "Согласно исходному решению, 42.",
        "It is 42.\nUser: thanks!",
    ],
)
def test_words_about_the_task_are_leaks(text: str) -> None:
    assert detail(f"{text}\n{CLEAN}").startswith("leaks the task")


@pytest.mark.parametrize(
    "text",
    [
        "We rewrite the fraction as 6/7.",
        "Let us rewrite the equation.",
        "The original price was 42.",
        "Перепишем уравнение иначе.",
        "The sample mean is given.",
    ],
)
def test_mathematical_uses_of_the_same_words_are_no_leaks(text: str) -> None:
    assert detail(f"{text}\n{CLEAN}") == "clean"


def test_a_phrase_that_the_expert_uses_is_no_leak() -> None:
    assert (
        detail(f"The given solution of salt.\n{CLEAN}", expert=f"The given solution weighs 42 g. {EXPERT}") == "clean"
    )


@pytest.mark.parametrize(
    "loop",
    [
        "So the answer is 42 and we are done. " * 4,
        "The total is 42.\n" * 4,
        "very " * 30,
        "one and two and three and " * 7,
        "42" * 50,
        "Multiply by six.\nCheck the bag once more.\n" * 5,
    ],
)
def test_repetition_loops_are_seen(loop: str) -> None:
    assert detail(f"There are 7 bags.\n{loop}").startswith("repeats")


@pytest.mark.parametrize(
    "again",
    [
        "The answer is 5 because: The answer is 5 because: The answer is 5 because: it is.",
        "The sum is 42, because:\nSix rolls.\nThe sum is 42, because:\nSeven bags.\nThe sum is 42, because:",
        "So the answer is 42.\n\nSo the answer is 42.",
        "1. Count the rolls per bag: 6.\n2. Count the rolls per bag: 6.",
        " ".join(f"She puts {n} rolls into a bag." for n in range(1, 9)),
        "We add the rolls up. One more. We add the rolls up. Two more. We add the rolls up.",
    ],
)
def test_a_sentence_said_again_is_seen(again: str) -> None:
    assert detail(f"{CLEAN}\n{again}").startswith(("says again", "repeats"))


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(f"After day {n} she has 6 * {n} = {6 * n} rolls in the shop." for n in range(1, 6)),
        "Florida: touches the ocean\nOregon: touches the ocean\nTexas: touches the ocean",
        "She packs the rolls. She packs the bags. She packs the rolls and the bags.",
        "6 * 7 = 42. 6 * 7 = 42.",
    ],
)
def test_lists_in_the_same_words_are_not_said_again(text: str) -> None:
    assert detail(f"{text}\n{CLEAN}") == "clean"


def test_a_refrain_of_the_experts_may_be_kept() -> None:
    song = "Oh no, down she goes! Oh no, down she goes!"
    assert detail(f"{song} And so she sank.", expert=f"There was a ship. {song} The end.") == "clean"
    assert detail(f"{song} And so she sank.").startswith("says again")


@pytest.mark.parametrize(
    "text",
    [
        "6 + 6 + 6 + 6 + 6 + 6 + 6 = 42",
        "\n".join(f"Bag {n}: 6 rolls." for n in range(1, 8)),
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
        "-" * 80,
        "1" + "0" * 60,
        "She has 6 rolls. He has 6 rolls. They have 6 rolls.",
    ],
)
def test_enumerations_sums_and_rules_are_no_loops(text: str) -> None:
    assert detail(f"{text}\n{CLEAN}") == "clean"


@given(st.lists(st.sampled_from("abcdefgh"), min_size=4, max_size=30), st.integers(1, 60))
def test_a_phrase_said_often_enough_is_always_a_loop(phrase: list[str], shift: int) -> None:
    words = [str(n) for n in range(shift)] + phrase * max(4, 60 // len(phrase))
    assert detail(" ".join(words), expert=" ".join(words)).startswith("repeats")


@pytest.mark.parametrize("blank", ["\n", "\n ", " ", "\t\n"], ids=repr)
def test_long_blank_stretches_are_read_once_and_not_over_and_over(blank: str) -> None:
    """It would take hours with a pattern that begins anew at every character."""
    stretch = blank * (100_000 // len(blank))
    assert detail(f"It is{stretch}{CLEAN}", expert=f"It is{stretch}{EXPERT}") == "clean"
    answer = extract_answer(f"It is{stretch}{CLEAN}{stretch}")
    assert answer is not None
    assert (answer.text, answer.retracted) == ("42", False)
    assert taken_back(f"{stretch}. But then it is 8.")


def test_a_long_number_is_read_once_and_not_over_and_over() -> None:
    assert detail("1" * 100_000, expert="2" * 100_000).startswith("repeats")
