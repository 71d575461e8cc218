"""Whether the sums that a solution writes down are right, and lead to its answer.

The answer check sees only the last line: a candidate that was told the answer can pass it with any nonsense above.
This check reads every equation between plain numbers (`18 * 3 = 54 cups`, `25% of 16 = 4`, `$3 / 2 = $1.50`) and
works it out exactly, and the sums in words with it (`spoken`). Not here: algebra (an equation with a variable is not
judged).
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from agent.gate.quantities import square_root
from agent.gate.readable import readable
from agent.gate.spoken import false_statement
from agent.records import Check

_MAX_DIGITS = 30
_MAX_BRACKETS = 50
_TOKEN = re.compile(
    r"(?P<number>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?P<percent>\s?%)?(?P<glued>[^\W\d_]+)?"
    r"|(?P<operator>[-+*/^−–()√])|(?P<equals>=)|(?P<word>[^\W\d_]+(?:['’][^\W\d_]+|-[^\W\d_]{2,})*)|(?P<newline>\n)|(?P<other>\S)"
)
_MEANING = {"−": "-", "–": "-"}
_SPOKEN = {"x": "*", "X": "*", "х": "*", "Х": "*", "times": "*", "plus": "+", "minus": "-", "плюс": "+", "минус": "-"}
_EQUALS = frozenset({"equals", "is", "makes", "gives", "равно", "будет"})
_FILLERS = frozenset({"a", "an", "the", "total", "of", "only", "exactly", "всего", "итого"})
_PUNCTUATION = frozenset(",.;:!?\"'“”«»„…|[]#→⇒")
_FACTOR = re.compile(r"[ $]*(?:\.?\d|[(√])")
_OPERAND = re.compile(r"[ $]*-?(?:\.?\d|[(√])")
_UNIT_LETTERS = frozenset("gmlL")  # apart from its number; glued to it, a letter is a variable
_JOINING = frozenset({"and", "or", "then", "so", "which", "because", "и", "а", "то"})
# A sentence, or the beginning of one, that takes back what was said before.
_RETRACTS = re.compile(
    r"(?:\A|[.!?;:,(\n])[^\S\n]*(?:(?:oh|so|but|then|now|please|just|let's|actually|well),?\s){0,2}"
    r"(?:(?:forget|scratch|strike)\s(?:about\s)?(?:that|this|it)|never\s?mind(?:\s(?:that|this|it))?"
    r"|(?:forget|ignore|disregard|scratch|strike|never\s?mind)\s(?:what (?:i|we) (?:just )?(?:said|wrote|did)"
    r"|(?:the|that|this|my)\s(?:very )?(?:last|previous|preceding|above|former|earlier)"
    r"(?:\s(?:sentence|line|step|equation|calculation|computation|sum|statement|remark|bit|part|one))?"
    r"|(?:that|this|the)\s(?:sentence|line|step|equation|calculation|computation|statement|remark)))\s?(?:[.!;,)\n]|\Z)",
    re.IGNORECASE,
)
_UNIT_WORDS = 5
_SIGNS = "+-*/^()√"
_MAX_POWER_DIGITS = 200
_MAX_SIDE_DIGITS = 300  # any such number is a float, too
_MAX_PRODUCT_DIGITS = 3000
_ROOT_TOLERANCE = Fraction(1, 10**20)  # of sides with irrational roots, relative


@dataclass(frozen=True, slots=True)
class Equation:
    """One equality between two numeric expressions.

    Attributes:
        text: both sides as read, without units.
        holds: whether they are equal, the right side taken as rounded to its written decimals.
        result: value of the right side.
        operands: the numbers that are computed with, at the beginning of the chain of equalities that this is part of.
        start: where that chain begins in `readable(text)`.
        unit: the word after the chain, "" for none and for what is not its last equation.
    """

    text: str
    holds: bool
    result: Fraction
    operands: tuple[Fraction, ...]
    start: int
    unit: str = ""


def check_arithmetic(candidate: str, expert: str, answer: Fraction | None) -> Check:
    """Every equation must hold and stand; where the expert computes the answer, the candidate must compute it too.

    Args:
        candidate: the solution to judge.
        expert: the expert's solution of the same problem.
        answer: the reference answer when it is a plain number, else None.
    """
    found = list(equations(candidate))
    wrong = next((e for e in itertools.chain(found, equations(candidate, functions=True)) if not e.holds), None)
    if wrong is not None:
        return Check("arithmetic", False, f"{wrong.text[:80]} does not hold")
    if (told := false_statement(readable(candidate))) is not None:
        return Check("arithmetic", False, f"{told[:80]!r} is false")
    if (retracted := _RETRACTS.search(candidate)) is not None:
        return Check("arithmetic", False, f"takes back what it says: {retracted[0].strip(' .,;:!?()')!r}")
    if answer is not None and _computes(equations(expert), answer) and not _computes(found, answer):
        return Check("arithmetic", False, "no equation arrives at the answer, as one of the expert's does")
    return Check("arithmetic", True, f"{len(found)} equations hold")


def equations(text: str, *, functions: bool = False) -> Iterator[Equation]:
    """The equations between plain numbers in `text`, in order; what is not understood is passed over.

    With `functions`, also those with square roots, factorials and binomial coefficients.
    """
    for start, chain, unit in _chains(readable(text, functions=functions)):
        if not functions and any("√" in side for side in chain):
            continue
        operands = tuple(_number(token) for token in chain[0] if token not in _SIGNS and len(token) <= _MAX_DIGITS)
        for index, (left, right) in enumerate(itertools.pairwise(chain)):
            computed = any(_operands(side) > 1 for side in chain[: index + 1])
            if computed and (compared := _compare(left, right)) is not None:
                yield Equation(*compared, operands, start, unit if index == len(chain) - 2 else "")


def _computes(found: Iterable[Equation], answer: Fraction) -> bool:
    return any(equation.result == answer for equation in found)


class _Chains:
    """Collects runs of expressions joined by `=`; an expression is numbers and operators, unit words left out.

    Where something is not understood (a variable, a rate such as `5 snakes/jaguar`, two numbers side by side) the
    run is spoilt and nothing is read until the next mark of punctuation or line.
    """

    def __init__(self) -> None:
        self.found: list[tuple[int, list[list[str]], str]] = []  # where each begins, its sides, the word after it
        self.position = 0
        self._start = 0
        self._sides: list[list[str]] = [[]]
        self._words = 0
        self._unit = ""
        self._spoilt = False

    @property
    def after_operand(self) -> bool:
        return bool(self._sides[-1]) and self._sides[-1][-1] not in "+-*/^(√"

    def end(self, *, spoilt: bool = False) -> None:
        """Close the run. A spoilt one is dropped, and what follows it too, up to the next clean end."""
        if not (spoilt or self._spoilt) and len(self._sides) > 1 and self.after_operand:
            _drop_outer_brackets(self._sides)
            self.found.append((self._start, self._sides, self._unit if self._words else ""))
        self._sides, self._words, self._spoilt = [[]], 0, spoilt

    def operand(self, value: str) -> None:
        if self.after_operand:  # `32 pieces because 32 x 4` begins anew, `1 1/2` is a mixed number
            self.end(spoilt=self._words == 0)
        self._append(value)

    def operator(self, symbol: str, *, opens_operand: bool) -> None:
        if symbol == "(" and self.after_operand:  # `5 apples (3 + 2 = 5)`
            self.end()
        if (self.after_operand and symbol != "√") or (opens_operand and symbol in "(-√"):
            self._append(symbol)
        else:
            self.end(spoilt=True)

    def equals(self) -> None:
        if self.after_operand:
            self._sides.append([])
            self._words = 0
        else:
            self.end(spoilt=self._sides != [[]])

    def _append(self, token: str) -> None:
        if self._sides == [[]]:
            self._start = self.position
        self._sides[-1].append(token)
        self._words = 0

    def word(self, word: str, *, opens_operand: bool, glued: bool = False) -> None:
        side = self._sides[-1]
        if not self.after_operand:
            if side or len(self._sides) == 1 or word not in _FILLERS:  # `= a total of 43`
                self.end(spoilt=self._spoilt or bool(side) or len(self._sides) > 1)
        elif word in _SPOKEN and opens_operand:
            self._append(_SPOKEN[word])
        elif word in _EQUALS and opens_operand and len(self._sides) == 1 and not _is_fraction(side):
            self.equals()
        elif word == "of" and side[-1].endswith("%"):
            side.append("*")
        elif word in _JOINING or self._words == _UNIT_WORDS:
            self.end()
        elif len(word) == 1 and word not in "aA" and (glued or word not in _UNIT_LETTERS):
            self.end(spoilt=True)
        else:
            if self._words == 0:
                self._unit = word
            self._words += 1


def _is_fraction(side: list[str]) -> bool:
    """Whether a side is a share of something: `2/3 of the tank is 16 gallons` equates no numbers."""
    if len(side) != 3 or side[1] != "/" or max(map(len, side)) > _MAX_DIGITS:
        return False
    return _number(side[0]) < _number(side[2])


def _chains(text: str) -> list[tuple[int, list[list[str]], str]]:
    """The runs of expressions joined by `=` in `text`: the index where each begins, its sides, the word after it."""
    chains = _Chains()
    for token in _TOKEN.finditer(text):
        chains.position = token.start()
        opens_operand = (_OPERAND if token["operator"] else _FACTOR).match(text, token.end()) is not None
        if token["number"]:
            chains.operand(token["number"].replace(",", "") + ("%" if token["percent"] else ""))
            if token["glued"]:
                chains.word(token["glued"], opens_operand=opens_operand, glued=True)
        elif token["operator"]:
            chains.operator(_MEANING.get(token["operator"], token["operator"]), opens_operand=opens_operand)
        elif token["equals"]:
            chains.equals()
        elif token["word"]:
            chains.word(token["word"], opens_operand=opens_operand)
        else:
            chains.end(spoilt=token["other"] is not None and token["other"] not in _PUNCTUATION)
    chains.end()
    return chains.found


def _drop_outer_brackets(sides: list[list[str]]) -> None:
    """`(7 * 6 = 42 rolls)`: brackets around a whole chain of equalities."""
    first, last = sides[0], sides[-1]
    while first[0] == "(" and first.count("(") > first.count(")"):
        del first[0]
    while last[-1] == ")" and last.count(")") > last.count("("):
        del last[-1]


def _compare(left: list[str], right: list[str]) -> tuple[str, bool, Fraction] | None:
    """Text, truth and result of the equation of two sides, None when one of them is incomplete or enormous."""
    try:
        a, b = _evaluate(left), _evaluate(right)
    except (_Unreadable, ZeroDivisionError):
        return None
    if max(_digits(a), _digits(b)) > _MAX_SIDE_DIGITS:
        return None
    text = f"{' '.join(left)} = {' '.join(right)}"
    tolerance = Fraction(0)
    if len(right) == 1 and "." in right[0]:
        decimals = len(right[0].rstrip("%").split(".")[1])
        tolerance = Fraction(1, 2 * 10**decimals)
    if "√" in left or "√" in right:
        tolerance = max(tolerance, _ROOT_TOLERANCE * max(Fraction(1), abs(a)))
    values = {b, b * 100} if right[-1].endswith("%") else {b}
    if left[-1].endswith("%") and len(left) == 1:
        values.add(b / 100)
    return text, any(abs(a - v) <= tolerance for v in values), b


def _operands(side: list[str]) -> int:
    """Numbers and roots of a side: of two, or from one root, something is worked out."""
    return sum(token not in _SIGNS or token == "√" for token in side)


def _number(token: str) -> Fraction:
    return Fraction(token[:-1]) / 100 if token.endswith("%") else Fraction(token)


class _Unreadable(Exception):
    """The tokens are no complete expression."""


def _evaluate(tokens: list[str]) -> Fraction:
    """Value of an expression by recursive descent: sums of products of signed operands."""
    if tokens.count("(") > _MAX_BRACKETS:
        raise _Unreadable
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
    value = _signed(rest)
    while rest and rest[-1] in "*/":
        value = value * _signed(rest) if rest.pop() == "*" else value / _signed(rest)
        if _digits(value) > _MAX_PRODUCT_DIGITS:  # of thousands of roots, seconds each
            raise _Unreadable
    return value


def _signed(rest: list[str]) -> Fraction:
    if rest and rest[-1] == "-":
        rest.pop()
        return -_signed(rest)
    value = _operand(rest)
    if rest and rest[-1] == "^":
        rest.pop()
        exponent = rest.pop() if rest else ""
        if not exponent.isdecimal() or len(exponent) > _MAX_DIGITS or rest[-1:] == ["^"]:
            raise _Unreadable
        if _digits(value) * int(exponent) > _MAX_POWER_DIGITS:
            raise _Unreadable
        value **= int(exponent)
    return value


def _digits(value: Fraction) -> int:
    """Digits of numerator and denominator together; not by `str`, which refuses more than 4300."""
    return sum(1 + int(math.log10(abs(part) or 1)) for part in (value.numerator, value.denominator))


def _operand(rest: list[str]) -> Fraction:
    if not rest:
        raise _Unreadable
    token = rest.pop()
    if token == "(":
        value = _sum(rest)
        if not rest or rest.pop() != ")":
            raise _Unreadable
        return value
    if token == "√":
        return _root(_operand(rest))
    if token in "+-*/^)" or len(token) > _MAX_DIGITS:
        raise _Unreadable
    return _number(token)


def _root(value: Fraction) -> Fraction:
    if value < 0 or _digits(value) > _MAX_POWER_DIGITS:
        raise _Unreadable
    return square_root(value)
