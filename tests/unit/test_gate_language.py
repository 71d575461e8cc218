"""The candidate's script and language against the expert's: what is refused, and what must not be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.gate.language import _FUNCTION_WORDS, check_language

RUSSIAN_QUESTION = "В каждом из семи пакетов лежит по шесть булочек. Сколько всего булочек испекла Анна?"
RUSSIAN = "В одном пакете 6 булочек, пакетов 7, значит, всего 7 * 6 = 42 булочки.\nОтвет: 42"
ENGLISH_QUESTION = "A baker puts 6 rolls into each of 7 bags. How many rolls does she pack?"
ENGLISH = "There are 7 bags with 6 rolls in each of them, so she packs 7 * 6 = 42 rolls.\n#### 42"
GERMAN_QUESTION = "In jeder von sieben Tüten sind sechs Brötchen. Wie viele Brötchen sind das insgesamt?"
GERMAN = "In einer Tüte sind 6 Brötchen und wir haben 7 Tüten, das sind dann 7 * 6 = 42 Brötchen.\n#### 42"


def refused(candidate: str, expert: str, question: str = "") -> bool:
    return not check_language(candidate, expert, question).passed


@pytest.mark.parametrize(
    ("candidate", "expert", "question"),
    [
        (ENGLISH, RUSSIAN, RUSSIAN_QUESTION),
        (RUSSIAN, ENGLISH, ENGLISH_QUESTION),
        ("7 * 6 = 42. The answer is 42.", RUSSIAN, RUSSIAN_QUESTION),
        ("Each bag has 6 rolls, so 7 * 6 = 42 rolls. Ответ: 42", RUSSIAN, RUSSIAN_QUESTION),
        (f"{RUSSIAN} {ENGLISH}", RUSSIAN, RUSSIAN_QUESTION),
        (
            "一共有七袋，每袋六个面包，所以一共是四十二个面包。",
            "七つの袋にパンが六個ずつあるので、全部で四十二個です。",
            "",
        ),
        (
            "七つの袋にパンが六個ずつあるので、全部で四十二個です。",
            "一共有七袋，每袋六个面包，所以一共是四十二个面包。",
            "",
        ),
        (ENGLISH, "Επτά σακούλες με έξι ψωμάκια η καθεμία κάνουν συνολικά 42 ψωμάκια.", ""),
    ],
)
def test_another_script_than_the_experts_is_refused(candidate: str, expert: str, question: str) -> None:
    assert refused(candidate, expert, question)


def test_an_expert_of_formulas_leaves_the_language_to_the_question() -> None:
    assert refused(ENGLISH, "6*7=42\n#### 42", RUSSIAN_QUESTION)
    assert not refused(RUSSIAN, "6*7=42\n#### 42", RUSSIAN_QUESTION)


def test_a_translation_is_written_in_the_language_of_the_expert_and_not_of_the_question() -> None:
    question = "Переведи на английский язык: булочки лежат в пакетах, и их сорок две."
    assert not refused(
        "The rolls are in bags and there are forty-two of them.", "There are 42 rolls in bags.", question
    )
    assert refused("Булочки лежат в пакетах, всего их сорок две.", "There are 42 rolls in bags.", question)


@pytest.mark.parametrize(
    ("candidate", "expert", "question"),
    [
        ("Пусть $x$ булочек; then: $\\text{the total number of rolls} = 7x$, всего 42.", RUSSIAN, RUSSIAN_QUESTION),
        ("Запустим код:\n```python\nprint('the answer is', 6 * 7)\n```\nОн печатает 42.", RUSSIAN, RUSSIAN_QUESTION),
        ("\\boxed{42}", RUSSIAN, RUSSIAN_QUESTION),
        ("7 * 6 = 42 rolls", RUSSIAN, RUSSIAN_QUESTION),
        ("Anna Petersen печёт булочки: 7 * 6 = 42.", RUSSIAN, "Anna Petersen печёт по 6 булочек в 7 пакетов. Сколько?"),
        ("Let α + β = γ and Σ = π, so sin α = cos β.", "Since α + β is a right angle, sin α = cos β.", ""),
        ("Sie packt alles ein: 42 Brötchen.", GERMAN, GERMAN_QUESTION),
        ("She bakes a soufflé and a crème brûlée for each of the 7 señores.", ENGLISH, ENGLISH_QUESTION),
        (ENGLISH, "The word «булочка» means a roll, and there are 42 of them.", ENGLISH_QUESTION),
        ("総計は四十二個。七袋掛ける六個。", "ふくろが七つあって、パンが六つずつ入り、ぜんぶで四十二です。", ""),
    ],
)
def test_names_formulas_code_and_short_texts_are_not_held_against_a_candidate(
    candidate: str, expert: str, question: str
) -> None:
    assert not refused(candidate, expert, question)


def test_an_expert_with_one_foreign_word_does_not_open_its_script_to_the_candidate() -> None:
    expert = "The Russian word «булочка» means a roll, and in the bags there are 42 of them."
    assert refused(RUSSIAN, expert, ENGLISH_QUESTION)


SAME_IN = {
    "English": "She fills 7 bags and each of them has 6 rolls, so there are 7 * 6 = 42 rolls. That is what she bakes.",
    "German": "Sie füllt 7 Tüten und in jeder Tüte sind 6 Brötchen, also sind es insgesamt 42. Das ist nicht viel.",
    "Dutch": "Het zijn 7 zakken en elke zak heeft 6 broodjes, dus het zijn 42 broodjes. Dat is ook niet veel.",
    "French": "Elle a 7 sacs et chaque sac contient 6 pains, donc elle a 42 pains. Les pains sont dans une boîte.",
    "Spanish": "Ella llena 7 bolsas y las bolsas tienen 6 panes; entonces los panes son 42. Es muy poco.",
    "Italian": "Ogni sacchetto ha 6 panini e i sacchetti sono 7, quindi nel negozio ci sono 42 panini di grano.",
    "Portuguese": "Ela tem 7 sacos e os pães são 6 em cada um, então ela tem 42 pães. Não é muito pela manhã.",
    "Russian": "Она печёт 7 пакетов, и в каждом 6 булочек; если сложить, это 42 булочки. Он сказал, что это много.",
    "Ukrainian": "Вона пече 7 пакетів, і в кожному 6 булочок; якщо скласти, це 42 булочки. Він каже, що це багато.",
}


@pytest.mark.parametrize("written", SAME_IN)
@pytest.mark.parametrize("expected", SAME_IN)
def test_languages_with_a_word_list_are_told_apart_by_function_words(written: str, expected: str) -> None:
    assert refused(SAME_IN[written], SAME_IN[expected]) == (written != expected)


def test_a_quotation_in_another_language_is_no_change_of_language() -> None:
    expert = "Im Englischen sagt man: the rolls are in the bags. Das ist nicht schwer und sie sind für alle da."
    assert not refused(f"{expert} {GERMAN}", expert)


def test_no_function_word_is_listed_for_two_languages() -> None:
    words = [word for words in _FUNCTION_WORDS.values() for word in words.split()]
    assert len(set(words)) == len(words)


@given(st.text(max_size=200), st.text(max_size=200))
def test_a_text_is_always_in_its_own_language(text: str, question: str) -> None:
    assert not refused(text, text, question)
