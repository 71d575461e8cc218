"""Whether the sums that a solution writes down are right, and lead to its answer.

The answer check sees only the last line: a candidate that was told the answer can pass it with any nonsense above.
This check reads every equation between plain numbers (`18 * 3 = 54 cups`, `25% of 16 = 4`, `$3 / 2 = $1.50`) and
works it out exactly. Not here: algebra (an equation with a variable is not judged), prose without equations.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from agent.records import Check

_MAX_CHARACTERS = 20_000
_MAX_DIGITS = 30
_LATEX = (
    (re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r"((\1)/(\2))"),
    (re.compile(r"\\(?:times|cdot)"), "*"),
    (re.compile(r"\\div"), "/"),
    (re.compile(r"\\(?:text|mathrm|boxed)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\\([$%])"), r"\1"),
    (re.compile(r"\\[()\[\],;! ]|\$"), " "),
    (re.compile(r"<<[^<>]*>>"), ""),
    (re.compile(r"(?m)^\s*[-*•]\s+"), "; "),
    (re.compile(r"\*\*"), " "),
)
_TOKEN = re.compile(
    r"(?P<number>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?P<percent>\s?%)?(?P<glued>[^\W\d_]+)?"
    r"|(?P<operator>[-+*/×÷·−–()])|(?P<equals>=)|(?P<word>[^\W\d_]+(?:['’][^\W\d_]+)?)|(?P<newline>\n)|(?P<other>\S)"
)
_MEANING = {"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-"}
_FACTOR = re.compile(r"[ $]*(?:\.?\d|\()")
_OPERAND = re.compile(r"[ $]*-?(?:\.?\d|\()")
_JOINING = frozenset({"and", "or", "then", "so", "which", "и", "а", "то"})
_UNIT_WORDS = 3


@dataclass(frozen=True, slots=True)
class Equation:
    """One equality between two numeric expressions.

    Attributes:
        text: both sides as read, without units.
        holds: whether they are equal, the right side taken as rounded to its written decimals.
        result: value of the right side.
    """

    text: str
    holds: bool
    result: Fraction


def check_arithmetic(candidate: str, expert: str, answer: Fraction | None) -> Check:
    """Every equation must hold; and where the expert computes the answer, the candidate must compute it too.

    Args:
        candidate: the solution to judge.
        expert: the expert's solution of the same problem.
        answer: the reference answer when it is a plain number, else None.
    """
    found = list(equations(candidate))
    wrong = next((e for e in found if not e.holds), None)
    if wrong is not None:
        return Check("arithmetic", False, f"{wrong.text[:80]} does not hold")
    if answer is not None and _computes(equations(expert), answer) and not _computes(found, answer):
        return Check("arithmetic", False, "no equation arrives at the answer, as one of the expert's does")
    return Check("arithmetic", True, f"{len(found)} equations hold")


def equations(text: str) -> Iterator[Equation]:
    """The equations between plain numbers in `text`, in order; what is not understood is passed over."""
    text = text[:_MAX_CHARACTERS]
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    for chain in _chains(text):
        for index, (left, right) in enumerate(itertools.pairwise(chain)):
            computed = any(_operands(side) > 1 for side in chain[: index + 1])
            if computed and (equation := _compare(left, right)) is not None:
                yield equation


def _computes(found: Iterable[Equation], answer: Fraction) -> bool:
    return any(equation.result == answer for equation in found)


class _Chains:
    """Collects runs of expressions joined by `=`; an expression is numbers and operators, unit words left out.

    Where something is not understood (a variable, a rate such as `5 snakes/jaguar`, two numbers side by side) the
    run is spoilt and nothing is read until the next mark of punctuation or line.
    """

    def __init__(self) -> None:
        self.found: list[list[list[str]]] = []
        self._sides: list[list[str]] = [[]]
        self._words = 0
        self._spoilt = False

    @property
    def after_operand(self) -> bool:
        return bool(self._sides[-1]) and self._sides[-1][-1] not in "+-*/("

    def end(self, *, spoilt: bool = False) -> None:
        """Close the run. A spoilt one is dropped, and what follows it too, up to the next clean end."""
        if not (spoilt or self._spoilt) and len(self._sides) > 1 and self.after_operand:
            self.found.append(self._sides)
        self._sides, self._words, self._spoilt = [[]], 0, spoilt

    def operand(self, value: str) -> None:
        if self.after_operand:  # `32 pieces because 32 x 4` begins anew, `1 1/2` is a mixed number
            self.end(spoilt=self._words == 0)
        self._sides[-1].append(value)
        self._words = 0

    def operator(self, symbol: str, *, opens_operand: bool) -> None:
        if self.after_operand or (opens_operand and symbol in "(-"):
            self._sides[-1].append(symbol)
            self._words = 0
        else:
            self.end(spoilt=True)

    def equals(self) -> None:
        if self.after_operand:
            self._sides.append([])
            self._words = 0
        else:
            self.end(spoilt=self._sides != [[]])

    def word(self, word: str, *, opens_operand: bool) -> None:
        side = self._sides[-1]
        if not self.after_operand:
            self.end(spoilt=self._spoilt or bool(side) or len(self._sides) > 1)
        elif (word in {"x", "X"} and opens_operand) or (word == "of" and side[-1].endswith("%")):
            side.append("*")
        elif word in _JOINING or self._words == _UNIT_WORDS:
            self.end()
        elif len(word) == 1 and word not in "aA":
            self.end(spoilt=True)
        else:
            self._words += 1


def _chains(text: str) -> list[list[list[str]]]:
    """The runs of expressions joined by `=` in `text`."""
    chains = _Chains()
    for token in _TOKEN.finditer(text):
        opens_operand = (_OPERAND if token["operator"] else _FACTOR).match(text, token.end()) is not None
        if token["number"]:
            chains.operand(token["number"].replace(",", "") + ("%" if token["percent"] else ""))
            if token["glued"]:
                chains.word(token["glued"], opens_operand=opens_operand)
        elif token["operator"]:
            chains.operator(_MEANING.get(token["operator"], token["operator"]), opens_operand=opens_operand)
        elif token["equals"]:
            chains.equals()
        elif token["word"]:
            chains.word(token["word"], opens_operand=opens_operand)
        else:
            chains.end(spoilt=token["other"] is not None and token["other"] not in ",.;:!?\"'")
    chains.end()
    return chains.found


def _compare(left: list[str], right: list[str]) -> Equation | None:
    """The equation of two sides, None when one of them is no complete expression."""
    try:
        a, b = _evaluate(left), _evaluate(right)
    except (_Unreadable, ZeroDivisionError):
        return None
    text = f"{' '.join(left)} = {' '.join(right)}"
    tolerance = Fraction(0)
    if len(right) == 1 and "." in right[0]:
        decimals = len(right[0].rstrip("%").split(".")[1])
        tolerance = Fraction(1, 2 * 10**decimals)
    values = {b, b * 100} if right[-1].endswith("%") else {b}
    if left[-1].endswith("%") and len(left) == 1:
        values.add(b / 100)
    return Equation(text, any(abs(a - v) <= tolerance for v in values), b)


def _operands(side: list[str]) -> int:
    return sum(token not in "+-*/()" for token in side)


class _Unreadable(Exception):
    """The tokens are no complete expression."""


def _evaluate(tokens: list[str]) -> Fraction:
    """Value of an expression by recursive descent: sums of products of signed operands."""
    rest = list(reversed(tokens))
    value = _sum(rest)
    if rest:
        raise _Unreadable
    return value


def _sum(rest: list[str]) -> Fraction:
    value = _product(rest)
    while rest and rest[-1] in "+-":
        value = value + _product(rest) if rest.pop() == "+" else value - _product(rest)
    return value


def _product(rest: list[str]) -> Fraction:
    value = _operand(rest)
    while rest and rest[-1] in "*/":
        value = value * _operand(rest) if rest.pop() == "*" else value / _operand(rest)
    return value


def _operand(rest: list[str]) -> Fraction:
    if not rest:
        raise _Unreadable
    token = rest.pop()
    if token == "-":
        return -_operand(rest)
    if token == "(":
        value = _sum(rest)
        if not rest or rest.pop() != ")":
            raise _Unreadable
        return value
    if token in "+*/)" or len(token) > _MAX_DIGITS:
        raise _Unreadable
    return Fraction(token[:-1]) / 100 if token.endswith("%") else Fraction(token)
