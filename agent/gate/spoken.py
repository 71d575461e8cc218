"""Sums told in words: "half of 84 is 42", "three times four equals twelve", "20 percent of 50 is 10".

Read only where a whole clause is such a statement, so that nothing beside it changes its meaning ("5 more than twice
20 is 45"); what is not understood is passed over. English. Not here: sums in signs (`arithmetic`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction

from agent.gate.quantities import THOUSANDS, changes_value, square_root

_MAX_CLAUSE = 160
_UNITS = "one two three four five six seven eight nine"
_TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_WORTH = {word: n for n, word in enumerate(f"{_UNITS} {_TEENS}".split(), start=1)} | {
    word: 10 * n for n, word in enumerate(_TENS.split(), start=2)
}


def _either(words: Iterable[str]) -> str:
    return "|".join(map(re.escape, words))


_ONE = _either(_UNITS.split())
_BELOW_100 = rf"(?:{_either(_TENS.split())})(?:[ -](?:{_ONE}))?|{_either(_TEENS.split())}|{_ONE}"
_NUMBER_WORDS = re.compile(
    rf"\b(?:(?P<hundreds>{_ONE}|a) hundred(?: (?:and )?(?P<rest>{_BELOW_100}))?|(?P<small>{_BELOW_100}))\b"
)
_HYPHEN = re.compile(r"(?<=[a-z])-(?=[a-z])")
_WHICH_IS = re.compile(r",? which (?:is|equals|makes|gives) (?=\d)")
_SIGN = re.compile(r"(?<=\d)\s?([*+/=])\s?(?=\d)")
_BLANKS = re.compile(r"[^\S\n]+")
# What ends a clause is kept: a question claims nothing.
_CLAUSE_END = re.compile(
    r"([.:,](?!\d)|[;!?()\n]| (?=(?:so|because|since|but|while|which|then|thus|hence|therefore) ))"
)
_LEADS = re.compile(
    r"(?:(?:(?:that|this|which|it) (?:makes|gives|means)|we (?:know|get|have|see|find)|the total is"
    r"|and|so|because|since|but|while|then|thus|hence|therefore|now|first|next|finally|also|that|means) )+"
)
# Before a sum with an equals sign, somebody may do something: "Natalia sold half of 48 = 24 clips".
_DOES = re.compile(
    r"[a-z' ]*\b(?:is|was|are|has|have|had|sold|sells|ate|eats|bought|buys|got|gets|made|makes|gave|gives|earned|earns"
    r"|paid|pays|spent|spends|needs|needed|took|takes|used|uses|that's|it's) "
)
# A clause that ends so goes on in the next one.
_GOES_ON = re.compile(r"\b(?:and|or|plus|minus|times|of|than|to|from|by|adds?|adding|with|if|not)\Z")
# After a comma it says what the sum has left out: "half of 15 is 7, with 1 left over".
_ROUNDED = re.compile(r"(?:with|remainder|rounding|rounded|leaving|and \d+ (?:left|remains?))\b")
_EQUALS = re.compile(
    r" (?:(?:is|are) equal to|is|are|equals?|makes?|gives?|yields?|totals?|leaves|=|(?:comes?|amounts?|adds? up) to) "
)
_FILLERS = re.compile(r"(?:exactly|just|only|simply|a total of) ")
_THEN = re.compile(r" and (?:he|she|it|they|we|you|i|the|his|her|this|that)\b[^\d]*\Z")
# Beside a quantity, besides the words that change an answer: it is another's share, or a difference.
_COMPARES = re.compile(
    "percent|per|cent|more|fewer|extra|additional|left|remaining|remainder|rounded|whole|full|short|away|off|too|each"
    "|every|apiece|ago|binary|octal|hexadecimal"
    "|(?:bigg|great|high|larg|long|old|tall|young|heavi|cheap|small|low|short)er"
)
# Units that may change for others: half of 1 hour is 30 minutes.
_CONVERTED = re.compile(
    r"(?:second|minute|hour|day|week|month|year|decade|centur(?:y|ie)|cent|penn(?:y|ie)|pence|nickel|dime|quarter|inch"
    r"|inche|foot|feet|yard|mile|ounce|pound|ton|pint|quart|gallon|cup|(?:kilo|centi|milli)?(?:meter|metre|gram|liter|litre)"
    r"|sec|min|hr|mm|cm|m|km|kg|g|mg|ml|l|oz|lb|ft|in|yd)s?"
)

_NUMBER = r"\d{1,15}(?:\.\d{1,15})?"
_THE = r"(?:(?:all )?(?:the|those|these|his|her|their|its|our|my) )?"
_A = rf"{_THE}(?P<a>{_NUMBER})(?P<of_a>(?: [a-z]+){{0,3}})"
_B = rf"{_THE}(?P<b>{_NUMBER})(?P<of_b>(?: [a-z]+){{0,3}})"
_VALUE = re.compile(rf"(?P<a>{_NUMBER})(?P<of_a>(?: [a-z]+){{0,5}})")
_PARTS = {"half": 2, "halve": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7} | {
    "eighth": 8, "ninth": 9, "tenth": 10, "hundredth": 100
}  # fmt: skip
_FACTORS = {"twice": 2, "double": 2, "doubling": 2, "thrice": 3, "triple": 3, "tripling": 3, "quadruple": 4}
_Operation = Callable[[Fraction, Fraction], Fraction]
_OPERATIONS: dict[str, _Operation] = {
    **dict.fromkeys(("plus", "added to", "more than", "+"), lambda a, b: a + b),
    **dict.fromkeys(("minus", "-"), lambda a, b: a - b),
    **dict.fromkeys(("less than", "fewer than", "subtracted from"), lambda a, b: b - a),
    **dict.fromkeys(("times", "multiplied by", "*"), lambda a, b: a * b),
    **dict.fromkeys(("divided by", "/"), lambda a, b: a / b),
    "sum": lambda a, b: a + b,
    "product": lambda a, b: a * b,
    "difference": lambda a, b: abs(a - b),
}
_ONE_OPERAND: dict[str, Callable[[Fraction], Fraction]] = {
    "square root": square_root,
    **dict.fromkeys(("square", "squared"), lambda a: a * a),
    **dict.fromkeys(("cube", "cubed"), lambda a: a**3),
    "doubled": lambda a: 2 * a,
    "tripled": lambda a: 3 * a,
    "halved": lambda a: a / 2,
}
_FORMS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str], Fraction, Fraction], Fraction]], ...] = tuple(
    (re.compile(pattern), value)
    for pattern, value in (
        (rf"(?:(?:(?:a|1) )?half|halving)(?: of)? {_A}", lambda m, a, b: a / 2),
        (
            rf"(?:a|(?P<n>{_NUMBER})) (?P<part>{_either(_PARTS)})s? of {_A}",
            lambda m, a, b: Fraction(m["n"] or 1) * a / _PARTS[m["part"]],
        ),
        (rf"(?P<n>{_NUMBER}) ?/ ?(?P<d>{_NUMBER}) of {_A}", lambda m, a, b: Fraction(m["n"]) * a / Fraction(m["d"])),
        (rf"(?P<n>{_NUMBER}) ?(?:%|percent|per cent) of {_A}", lambda m, a, b: Fraction(m["n"]) * a / 100),
        (rf"(?P<factor>{_either(_FACTORS)}) {_A}", lambda m, a, b: _FACTORS[m["factor"]] * a),
        (rf"(?:the )?(?P<name>square root|square|cube) of {_A}", lambda m, a, b: _ONE_OPERAND[m["name"]](a)),
        (rf"(?P<a>{_NUMBER})(?P<of_a>) (?P<name>\w+ed)", lambda m, a, b: _ONE_OPERAND[m["name"]](a)),
        (rf"(?:the )?(?P<name>sum|product|difference) (?:of|between) {_A} and {_B}",
         lambda m, a, b: _OPERATIONS[m["name"]](a, b)),
        (rf"{_A} (?P<name>{_either(_OPERATIONS)}) {_B}", lambda m, a, b: _OPERATIONS[m["name"]](a, b)),
    )
)  # fmt: skip


def false_statement(text: str) -> str | None:
    """The first sum in words of `text` (as `readable` spells it) that is wrong, None where there is none."""
    return next((clause for clause in _clauses(text) if _is_false(clause)), None)


def _clauses(text: str) -> Iterator[str]:
    """The clauses of `text` that stand alone, in lower case, with their numbers in digits."""
    text = _BLANKS.sub(" ", _HYPHEN.sub(" ", text.casefold()))
    text = THOUSANDS.sub("", _NUMBER_WORDS.sub(_in_digits, text))
    pieces = _CLAUSE_END.split(_WHICH_IS.sub(" = ", _SIGN.sub(r" \1 ", text)))
    clauses = [piece.strip() for piece in pieces[::2]]
    before, mark = "", "\n"
    for clause, end, after in zip(clauses, [*pieces[1::2], "\n"], [*clauses[1:], ""], strict=True):
        # `(1/2) 278 + 11 = 150`, or: the sum of 5, 6 and half of 20.
        goes_on = mark == ")" or (mark == "," and any(map(str.isdigit, before))) or _GOES_ON.search(before)
        rounded = end == "," and _ROUNDED.match(after)
        if end != "?" and len(clause) <= _MAX_CLAUSE and not goes_on and not rounded:
            yield clause
        before, mark = clause, end


def _in_digits(match: re.Match[str]) -> str:
    hundreds, rest = match["hundreds"], match["rest"] or match["small"] or ""
    value = 100 * _WORTH.get(hundreds, 1) if hundreds else 0
    return str(value + sum(_WORTH[word] for word in re.split("[ -]", rest) if word))


def _is_false(clause: str) -> bool:
    if (lead := _LEADS.match(clause)) is not None:
        clause = clause[lead.end() :]
    equals = _EQUALS.search(clause)
    if equals is None:
        return False
    left, right = clause[: equals.start()], clause[equals.end() :]
    if equals[0] == " leaves " and " minus " not in left:  # a third of 30 leaves 20
        return False
    if equals[0] == " = " and (does := _DOES.match(left)) is not None:
        left = left[does.end() :]
    right = _THEN.sub("", right[filler.end() :] if (filler := _FILLERS.match(right)) else right)
    for told, stated in ((left, right), (right, left)):
        worked_out, value = _work_out(told), _VALUE.fullmatch(stated)
        if worked_out is not None and value is not None and _work_out(stated) is None:
            nouns = [*worked_out[1], value["of_a"].strip()]
            return _comparable(nouns) and not _rounds_to(worked_out[0], value["a"])
    return False


def _work_out(told: str) -> tuple[Fraction, list[str]] | None:
    """The value of a sum in words, and the nouns of its operands ("" for none)."""
    for pattern, value in _FORMS:
        if (match := pattern.fullmatch(told)) is None:
            continue
        operands = match.groupdict()
        a, b = Fraction(match["a"]), Fraction(operands.get("b") or 0)
        if operands.get("name") == "/" and a < b:  # a share of something: 2/5 is 13 hectares
            return None
        try:
            result = value(match, a, b)
        except (ZeroDivisionError, KeyError):
            return None
        return result, [operands[name].strip() for name in ("of_a", "of_b") if name in operands]
    return None


def _comparable(nouns: list[str]) -> bool:
    """Whether quantities of these nouns may be compared as numbers: all of one kind, and nothing else said of them."""
    words = {word for noun in nouns for word in noun.split()} - {"in"}
    if any(len(word) == 1 or _COMPARES.fullmatch(word) or changes_value(word) for word in words):
        return False
    named = {noun.split()[0].removesuffix("s") for noun in nouns if noun}
    convertible = any(_CONVERTED.fullmatch(word) for word in words)
    return len(named) <= 1 and not (convertible and "" in nouns)


def _rounds_to(value: Fraction, stated: str) -> bool:
    decimals = len(stated.partition(".")[2])
    tolerance = Fraction(1, 2 * 10**decimals) if decimals else 0
    return abs(value - Fraction(stated)) <= tolerance
