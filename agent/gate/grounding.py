"""Whether a solution computes with numbers that it has, and not with numbers out of nowhere.

The arithmetic check sees `72 - 30 = 42` hold; it does not see that nobody said where 30 came from. Here every number
that an equation starts from must have come up before: in the question, earlier in the candidate, or in the expert's
solution without being a result there (a number that the question says in words, a conversion). What the expert works
out the candidate must work out as well: told in prose, it may come with any story. And a number in the prose must be in
the question, the expert's solution or an equation: "so she packs 43" does not follow from `7 * 6 = 42`. Nothing new is
worked out from the answer, and no result has a unit that is certainly wrong (`units`). Not here: what else the numbers
stand for, and numbers that algebra leads to.
"""

from __future__ import annotations

import re
from fractions import Fraction

from agent.gate.answers import extract_answer, without_answers
from agent.gate.arithmetic import Equation, equations
from agent.gate.notation import plain
from agent.gate.quantities import read_quantity
from agent.gate.readable import readable
from agent.gate.units import wrong_unit
from agent.records import Check

_NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+")
_PERCENT = re.compile(r"(\d{1,3}(?:\.\d+)?)\s?%|(\d{1,3}(?:\.\d+)?)\s+percent")
_WORDS = re.compile(r"[a-z]+")
_COUNTING = "one two three four five six seven eight nine ten eleven twelve"
_NUMBER_WORDS = {word: n for n, word in enumerate(_COUNTING.split(), start=1)} | {
    "dozen": 12,
    "triple": 3,
    "thrice": 3,
    "third": 3,
    "quarter": 4,
}
_MAX_DIGITS = 30
_CLAUSE_END = re.compile(r"\n|[.;:?](?!\d)|!(?!\d|\s?[-+*/=])|,\s")  # no end: `3! = 6`
_RECKONS = re.compile(r"=|\d\s*[-+*/x×÷]\s*\.?\d")
# Numbers that only count: `3.` before a line, `Step 3:`, `Bag 3:`.
_LABEL = re.compile(r"(?m)^[^\S\n]*\d{1,3}[.):](?!\d)|\b(?:[A-ZА-ЯЁ]\w+|step|шаг) \d{1,3}(?=[.:,)](?!\d)|\s*$)")
# After the answer, what is worked out for a check is no further result.
_CHECKS = re.compile(r"\b(?:check|verif|confirm|substitut|plug|test|prove|proof|провер)", re.IGNORECASE)
_ALWAYS = frozenset(map(Fraction, (0, 1, 2, 100)))  # nobody says where halves, doubles and per cents come from


def check_grounding(candidate: str, expert: str, question: str) -> Check:
    """Every number that an equation of `candidate` starts from must be known by then.

    Args:
        candidate: the solution to judge.
        expert: the expert's solution; its results have to be worked out anew.
        question: everything that was asked, earlier turns included.
    """
    asked = numbers(readable(question))
    if not asked:
        return Check("grounding", True, "the question gives no numbers")
    told_by_expert = _without_rivals(expert)
    known = _ALWAYS | asked | _given(told_by_expert)
    sound = known | numbers(readable(told_by_expert))
    to_work_out = sound - known
    text, read = readable(candidate), 0
    for equation in equations(candidate):
        told = text[read : equation.start]
        known |= numbers(told) - to_work_out | _reckoned(told)
        read = equation.start
        missing = set(equation.operands) - known
        if missing:
            return Check("grounding", False, f"{equation.text[:80]}: {float(min(missing)):g} comes out of nowhere")
        known |= {equation.result, *equation.operands}
        sound |= numbers(equation.text)
    stray = _in_digits(_LABEL.sub(" ", text)) - sound - _reckoned(text)
    if stray:
        return Check("grounding", False, f"{float(min(stray)):g} comes out of nowhere")
    stated = extract_answer(candidate)
    quantity = read_quantity(plain(stated.text)) if stated is not None else None
    answer = quantity.value if quantity is not None else None
    if stated is not None and (further := _reckoned_on(candidate, stated.end, answer, asked)) is not None:
        return Check("grounding", False, f"{further.text[:80]} reckons on after the answer")
    unit = wrong_unit(candidate, expert, question, answer)
    if unit is not None:
        return Check("grounding", False, unit)
    return Check("grounding", True, "every number was introduced")


def _without_rivals(expert: str) -> str:
    """The expert's text without answers that it states beside the one that counts: they introduce no number."""
    stated = extract_answer(expert)
    return expert if stated is None else f"{without_answers(expert)}\n{stated.text}"


def _reckoned_on(candidate: str, end: int, answer: Fraction | None, asked: frozenset[Fraction]) -> Equation | None:
    """The equation that `candidate` closes with after the answer, from it to something new; None where it checks it."""
    if _CHECKS.search(candidate, end):
        return None
    last = next(reversed(list(equations(candidate[end:]))), None)
    if last is None or answer not in last.operands:
        return None
    return last if last.result not in asked | numbers(readable(candidate[:end])) else None


def _reckoned(text: str) -> set[Fraction]:
    """The numbers of clauses that reckon, also where that is not understood (algebra, words between the numbers)."""
    return {n for clause in _CLAUSE_END.split(text) if _RECKONS.search(clause) for n in numbers(clause)}


def _given(expert: str) -> set[Fraction]:
    """The numbers that the expert uses before any of the expert's equations arrives at them."""
    given: set[Fraction] = set()
    results: set[Fraction] = set()
    for equation in equations(expert):
        given |= set(equation.operands) - results
        results.add(equation.result)
    return given | (numbers(readable(expert)) - results)


def numbers(text: str) -> frozenset[Fraction]:
    """The numbers in `text`, small ones in English words too; of a percentage also what is left and what is reached."""
    found = _in_digits(text)
    found |= {Fraction(_NUMBER_WORDS[word]) for word in _WORDS.findall(text.lower()) if word in _NUMBER_WORDS}
    for match in _PERCENT.finditer(text):
        percent = Fraction(match[1] or match[2])
        found |= {n / scale for n in (percent, 100 - percent, 100 + percent) for scale in (1, 100)}
    return frozenset(found)


def _in_digits(text: str) -> set[Fraction]:
    return {Fraction(m[0].replace(",", "")) for m in _NUMBER.finditer(text) if len(m[0]) <= _MAX_DIGITS}
