"""Whether results are given in the units of the expert or of the question: 126 * 5 = 630 hours where it is $630.

Only what is certain: a sum with the expert's own numbers whose result is money there and time here, or an answer in
days where laps are asked for. Things that are counted may go by several names (students, children), so one thing for
another is not judged. Not here: final answers with a unit in the box (`quantities`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction

from agent.gate.arithmetic import Equation, equations
from agent.gate.readable import CALCULATOR, MAX_CHARACTERS

# The kinds are no single words, so that no counted thing (weights, times) is one of them.
_MEASURES = {
    word: measure
    for measure, words in {
        "a price": "dollars cents euros рублей рубля",
        "a time": "seconds minutes hours days weeks months years decades centuries hrs mins nights evenings mornings"
        " weekends weekdays seasons semesters sessions shifts минут минуты часов часа дней дня недель",
        "a length": "kilometers kilometres meters metres centimeters miles inches km cm км метров метра километров",
        "a weight": "kilograms kilos grams milligrams ounces kg mg oz кг килограммов граммов",
        "a volume": "liters litres gallons milliliters ml литров литра",
    }.items()
    for word in words.split()
}
_PRICE = re.compile(r"\\?\$\s?(\d[\d,]{0,20}(?:\.\d{1,10})?)")
# Formulas: a dollar sign may only delimit them.
_TYPESET = re.compile(r"\\(?!\$|boxed)|[\w)=]\s?\$(?!\s?\.?\d)")
_COUNTED = re.compile(r"(?<=\d)[ -]([^\W\d_]{4,})")
_QUANTITY = re.compile(r"(\d[\d,]{0,20}(?:\.\d{1,10})?)[\s}-]{0,2}([^\W\d_]*)(?:\s([^\W\d_]+))?")
_ASKED = re.compile(
    r"\b(?:how many|сколько) (?:(?:more|fewer|total|additional|extra|whole|full|different) ){0,2}([^\W\d_]+)",
    re.IGNORECASE,
)
_MONEY_ASKED = re.compile(
    r"\bhow much (?:money\b|(?!time\b|longer\b)[^.?!]{1,80}\b(?:earn|pay|spend|cost|charge|owe|save)\b)", re.IGNORECASE
)
_NO_THINGS = frozenset({"times", "less", "plus", "minus", "others", "points", "this", "does", "units", "parts"})


def wrong_unit(candidate: str, expert: str, question: str, answer: Fraction | None) -> str | None:
    """What is wrong with the unit of a result, None where nothing is for certain.

    Args:
        candidate: the solution to judge.
        expert: the expert's solution of the same problem.
        question: everything that was asked.
        answer: the final answer where it is a plain number.
    """
    candidate, expert = CALCULATOR.sub("", candidate), CALCULATOR.sub("", expert)
    if _TYPESET.search(candidate) or _TYPESET.search(expert):
        return None
    things = {
        word for word in _COUNTED.findall(question.casefold()) if word.endswith("s") or not word.isascii()
    } - _NO_THINGS
    # What the expert's results are given in: by the sum, and by the result alone.
    sums: dict[tuple[Fraction, ...], set[str | None]] = {}
    results: dict[Fraction, set[str | None]] = {}
    for equation in _equations(expert):
        measure = _MEASURES.get(equation.unit)
        sums.setdefault(_sum(equation), set()).add(measure)
        results.setdefault(equation.result, set()).add(measure)
    ours, said = list(_equations(candidate)), _amounts(candidate)
    for equation in ours:
        named, expected = _kind(equation.unit, things), sums.get(_sum(equation), {None})
        if named is None or named in results.get(equation.result, ()) or len(expected) > 1:
            continue
        if (measure := next(iter(expected))) is not None and (equation.result, measure) not in said:
            return f"{float(equation.result):g} is {measure} for the expert, not {equation.unit}"
    if answer is None or (asked := _asked(question)) is None or (answer, asked) in said:
        return None
    kinds = {e.unit: kind for e in ours if e.result == answer and (kind := _kind(e.unit, things)) is not None}
    told = _amounts(expert)
    if not kinds or asked in kinds.values() or any((answer, kind) in told for kind in kinds.values()):
        return None
    # Things have several names and measures (kilograms of grapes); a time that the question does not name is none.
    named_there = _sentence(question)
    if asked in _MEASURES.values() or all(k == "a time" and unit not in named_there for unit, k in kinds.items()):
        return f"the question is for {asked}, not {' or '.join(kinds)}"
    return None


def _sum(equation: Equation) -> tuple[Fraction, ...]:
    """What tells the sum apart: its operands in any order, and its result."""
    return (*sorted(equation.operands), equation.result)


def _equations(text: str) -> Iterator[Equation]:
    """The equations of `text`, prices as dollars."""
    return equations(_PRICE.sub(r"\1 dollars", text))


def _kind(unit: str, things: set[str]) -> str | None:
    """What is measured in `unit`, or the thing that the question counts."""
    return _MEASURES.get(unit) or (unit.removesuffix("s") if unit in things else None)


def _amounts(text: str) -> set[tuple[Fraction, str]]:
    """The quantities that `text` names, each with what it may be counted in."""
    text = _PRICE.sub(r"\1 dollars", text)[:MAX_CHARACTERS].casefold()
    found = set()
    for match in _QUANTITY.finditer(text):
        value = Fraction(match[1].replace(",", ""))
        for word in filter(None, (match[2], match[3])):
            found.add((value, _MEASURES.get(word) or _MEASURES.get(f"{word}s") or word.removesuffix("s")))
    return found


def _sentence(question: str) -> str:
    return question[max(question.casefold().rfind(words) for words in ("how many", "how much", "сколько")) :].casefold()


def _asked(question: str) -> str | None:
    """The measure or the thing of which the question wants the number, None where that is not clear."""
    asked = _sentence(question)
    if len(re.findall(r"\bhow (?:many|much)\b|\bсколько\b", question, re.IGNORECASE)) != 1:
        return None
    if "$" in question and _MONEY_ASKED.match(asked):
        return "a price"
    match = _ASKED.match(asked)
    if match is None or match[1] in _NO_THINGS or not (match[1] in _MEASURES or match[1].endswith("s")):
        return None
    return _MEASURES.get(match[1]) or match[1].removesuffix("s")
