"""Finding the final answer that a text states."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.gate.answers import extract_answer, reference_answer
from agent.gate.notation import closing, plain


def stated(text: str) -> str | None:
    found = extract_answer(text)
    return None if found is None else found.text


def test_the_last_box_is_the_answer() -> None:
    assert stated(r"First \boxed{1}, then \boxed{2}.") == "2"


def test_a_box_keeps_its_nested_braces() -> None:
    assert stated(r"So \boxed{\frac{\sqrt{2}}{3}}.") == r"\frac{\sqrt{2}}{3}"


def test_escaped_braces_do_not_close_a_box() -> None:
    assert stated(r"So \boxed{\{1, 2\}}.") == r"\{1, 2\}"


def test_a_result_by_another_name_after_the_answer_is_a_rival() -> None:
    found = extract_answer(r"So \boxed{42}. The correct result would be $1,043. The right value is 42.")
    assert found is not None
    assert found.rivals == ("1,043",)


def test_a_box_that_never_closes_is_no_answer() -> None:
    assert stated(r"First \boxed{1}, then \boxed{2") is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("6 * 7 = 42\n#### 42", "42"),
        ("6 * 7 = 42. The answer is 42.", "42"),
        ("The final answer to this problem is $42$.", "$42$"),
        ("**Answer:** 1,234.5 dollars", "1,234.5 dollars"),
        ("Final Answer:\n\n42", "42"),
        ("Итак, 6 * 7 = 42.\nОтвет: 42", "42"),
        ("Ответ равен 42.", "42"),
    ],
)
def test_hash_lines_and_answer_phrases_state_an_answer(text: str, answer: str) -> None:
    assert stated(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "",
        "She packs 6 * 7 = 42 rolls.",
        "#### Step 42\nNow multiply.",
        "If the answer is 42, there are 7 bags.",
        "The wrong answer is 42.",
        "Let us check whether the answer is 42.",
        "42",
    ],
)
def test_a_number_that_nobody_calls_the_answer_is_none(text: str) -> None:
    assert stated(text) is None


def test_statements_after_the_answer_are_its_rivals() -> None:
    found = extract_answer("So \\boxed{42}.\nThe answer is 43.\n#### 44")
    assert found is not None
    assert (found.text, set(found.rivals)) == ("42", {"43", "44"})


@pytest.mark.parametrize(
    ("text", "rivals"),
    [
        ("The answer is $4.\nIn other words, the answer is 1.", {"4"}),
        ("The answer is 13, because 7 + 6 = 13.\nSo \\boxed{42}.", {"13"}),
        ("The answer to the first part is 7.\nThe answer is 42.", set()),
        ("The answer is found by adding.\nThe answer is 42.", set()),
    ],
)
def test_a_quantity_called_the_answer_before_is_a_rival_unless_it_answers_a_part(text: str, rivals: set[str]) -> None:
    found = extract_answer(text)
    assert found is not None
    assert set(found.rivals) == rivals


def test_a_remark_that_the_answer_is_right_is_no_rival() -> None:
    found = extract_answer("So \\boxed{42}. We see that the answer is correct.")
    assert found is not None
    assert found.rivals == ()


@pytest.mark.parametrize(
    "text",
    [
        r"So \boxed{42}. Wait, one bag is missing.",
        r"So \boxed{42} or 43.",
        r"So \boxed{42}. However, 43 is closer.",
        r"The answer is not \boxed{42}.",
        r"This is $\ne \boxed{42}$.",
        "#### 42\nOops.",
        "The right answer is not 42, because 43 is not 42.\n\nThe answer is 42.",
        "The answer to this isn't $42. Still, the answer is 42.",
        r"Получаем \boxed{42}. Подождите, я ошибся.",
        "The answer is 42. Make that 12.",
        "The answer is 42. Make it a 7.",
        "The answer is 42. Just kidding, it is 7.",
        "The answer is 42. I take it back: 7 muffins.",
        "The answer is 42. On second thought, 7.",
    ],
)
def test_an_answer_that_is_taken_back_or_denied_is_retracted(text: str) -> None:
    found = extract_answer(text)
    assert found is not None
    assert found.retracted


@pytest.mark.parametrize(
    "text",
    [
        r"Since $x$ cannot be $0$, $x = \boxed{5}$.",
        r"If $N^2 = 121$, then $N = \boxed{11}$.",
        r"So \boxed{42}. She packs 42 rolls.",
        "There are not many bags, namely 7.\n#### 42",
        "The answer is not a fraction. The answer is 42.",
    ],
)
def test_an_ordinary_conclusion_is_not_retracted(text: str) -> None:
    found = extract_answer(text)
    assert found is not None
    assert not found.retracted


def partial(text: str) -> bool:
    found = extract_answer(text)
    assert found is not None
    return found.partial


@pytest.mark.parametrize(
    "text",
    [
        r"$\boxed{42}k$",
        r"$\boxed{42}$k",
        r"\(\boxed{42}\)k",
        r"$\boxed{42}\,x$",
        r"$\boxed{42} x$",
        r"$\boxed{42}m$",
        "$\\boxed{42}π$",
        "$\\boxed{42}²$",
        r"\boxed{42}\pi",
        r"$\boxed{42}\sqrt{2}$",
        r"$\boxed{42} \frac{1}{2}$",
        r"\boxed{42}\text{ thousand}",
        r"$\boxed{42}\quad\mathrm{k}$",
        r"\boxed{42}K",
        r"\boxed{42}\,\theta",
    ],
)
def test_a_box_with_a_factor_or_a_scale_after_it_is_a_part_of_the_answer(text: str) -> None:
    assert partial(f"So we get {text}.")


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{42}$ muffins",
        r"\boxed{42}\text{ muffins}",
        r"\boxed{42}\text{ in}^2",
        r"\boxed{7}\text{ p.m.}",
        r"$x = \boxed{42}$",
        r"$\boxed{42}$cm",
        r"\boxed{42} g",
        r"\boxed{42} a day",
        "\\boxed{42}\n\nk is not needed",
        r"$\boxed{42}\quad\blacksquare$",
        r"$17 \equiv \boxed{3} \pmod{7}$",
        r"\boxed{42}\end{align}",
        r"\boxed{42}\,\Omega",
        r"\boxed{42}\,\mu\text{m}",
        r"\boxed{42}\text{ (option B)}",
        r"\boxed{7}\text{ P.M.}",
        r"\boxed{42}\text{ apples for Mr. T}",
        r"\boxed{42}th",
        r"\boxed{42}$muffins",
        "\\boxed{42} Ω",
        "\\boxed{42} р.",
        r"= 2\pi" "\n\n" r"\boxed{2\pi}",
        r"= \frac{3}{4}" "\n\n" r"\boxed{\frac{3}{4}}",
    ],
)
def test_a_box_with_its_unit_or_the_end_of_a_formula_after_it_is_whole(text: str) -> None:
    assert not partial(f"So we get {text}.")


@pytest.mark.parametrize(
    "text",
    [
        r"x = - \boxed{42}",
        r"$-\;\boxed{42}$",
        r"It is - $\boxed{42}$",
        r"$e^{\boxed{42}}$",
        r"$e^\boxed{42}$",
        r"$7 + \;\boxed{42}$",
        r"$\sqrt{2}\boxed{42}$",
    ],
)
def test_a_box_with_a_minus_or_an_operation_before_it_is_a_part_of_the_answer(text: str) -> None:
    assert partial(f"{text}.")


@pytest.mark.parametrize(
    "text", [r"The total - \boxed{42} - is right", "Total:\n- \\boxed{42}", r"Ответ: – \boxed{42}"]
)
def test_a_dash_before_a_box_is_no_minus(text: str) -> None:
    assert not partial(text)


@pytest.mark.parametrize("percent", [r"\%", r"\,\%", r"\text{ percent}", " percent", r"\text{ процентов}"])
def test_a_box_with_a_per_cent_sign_after_it_is_a_percentage(percent: str) -> None:
    assert stated(rf"So $\boxed{{42}}{percent}$.") == r"42\%"


def test_the_expert_states_the_reference_in_a_box_or_a_hash_line() -> None:
    assert reference_answer(r"Clearly \boxed{\frac12}") == r"\frac12"
    assert reference_answer("48/2=24\n#### 24") == "24"


def test_an_answer_phrase_of_the_expert_counts_only_with_a_plain_quantity() -> None:
    assert reference_answer("6*7=42\nОтвет: 42") == "42"
    assert reference_answer("The answer is to water it less.") is None


@given(st.recursive(st.sampled_from(["", "x", r"\{", r"\}", "1+"]), lambda s: st.builds("{{{}}}{}".format, s, s)))
def test_a_boxed_text_with_balanced_braces_comes_back_whole(inside: str) -> None:
    assert stated(rf"So \boxed{{{inside}}} and that is it.") == inside


@given(st.text(alphabet=r"{}\a", max_size=40))
def test_the_closing_brace_balances_what_it_encloses(text: str) -> None:
    end = closing("{" + text, 0)
    inside = ("{" + text)[1:end] if end > 0 else ""
    unescaped = inside.replace("\\\\", "").replace(r"\{", "").replace(r"\}", "")
    assert unescaped.count("{") == unescaped.count("}")


@given(st.text(max_size=100))
def test_plain_never_raises_and_is_stripped(text: str) -> None:
    assert plain(text) == plain(text).strip()


def test_a_phrase_that_later_lines_reckon_on_from_is_no_final_answer():
    passing = extract_answer("The answer is 5 because:\nHe earned $110, and $15 from mowing lawns.")
    final = extract_answer("He earned $110.\nThe answer is 5.\nThat is all.")
    assert passing is not None
    assert final is not None
    assert (passing.goes_on, final.goes_on) == (True, False)
