"""What the gate reads is written by models: each of its readers gets arbitrary texts, and none raises."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.gate.answers import extract_answer
from agent.gate.arithmetic import equations
from agent.gate.choice import check_choice
from agent.gate.equivalence import equivalent
from agent.gate.grounding import check_grounding
from agent.gate.hygiene import check_hygiene
from agent.gate.language import check_language
from agent.gate.notation import plain
from agent.gate.spoken import false_statement
from agent.gate.units import wrong_unit
from agent.settings import GateSettings

EXPERT = "Each of the 7 bags holds 6 rolls, so she packs 7 * 6 = 42 rolls.\n#### 42"


def signs(alphabet: str, most: int) -> st.SearchStrategy[str]:
    return st.text(alphabet=alphabet, max_size=most)


def anything(most: int) -> st.SearchStrategy[str]:
    return st.text(max_size=most)


@pytest.mark.parametrize(
    ("read", "texts"),
    [
        pytest.param(extract_answer, [signs("\\boxed{}# answer is:42.\n", 200)], id="answers"),
        pytest.param(
            lambda text: [equation.holds for equation in equations(text)],
            [signs("0123456789+-*/=(). x%$,\\{}ab\n", 80)],
            id="arithmetic",
        ),
        pytest.param(lambda text: check_choice(text, "B", frozenset("ABCD")), [anything(200)], id="choice"),
        pytest.param(
            lambda text, expert: equivalent(plain(text), plain(expert), lambda a, b: False),
            [anything(60), anything(60)],
            id="equivalence",
        ),
        pytest.param(
            lambda text, expert: check_grounding(text, expert, ""), [anything(200), anything(100)], id="grounding"
        ),
        pytest.param(lambda text: check_hygiene(text, EXPERT, GateSettings()), [anything(300)], id="hygiene"),
        pytest.param(
            lambda text, expert: check_language(text, expert, ""), [anything(200), anything(200)], id="language"
        ),
        pytest.param(
            lambda opening, text: false_statement(opening + text),
            [st.sampled_from(["half of 8 is ", "two plus "]), signs("abdefhilnoqrstuw 0123456789.,=/%\n", 60)],
            id="spoken",
        ),
        pytest.param(
            lambda text, expert, question: wrong_unit(
                f"2 + 3 = 5 {text}", f"2+3=$5 {expert}", f"5 days {question}", Fraction(5)
            ),
            [anything(150), anything(80), anything(80)],
            id="units",
        ),
    ],
)
@given(data=st.data())
def test_no_text_raises(read: Callable[..., object], texts: list[st.SearchStrategy[str]], data: st.DataObject) -> None:
    read(*map(data.draw, texts))
