"""One spelling for the sums in a text: LaTeX, Unicode signs, currencies, number formats.

Changes no value. Not here: reading the sums (`arithmetic`), typeset final answers (`notation`).
"""

from __future__ import annotations

import math
import re

MAX_CHARACTERS = 20_000
CALCULATOR = re.compile(r"<<([^<>]*)>>")  # an annotation for a calculator, as GSM8K has them
_MAX_NESTING = 5
_SIGNS = str.maketrans(
    {
        **dict.fromkeys("×·⋅∙∗✕✖⨯", "*"),
        **dict.fromkeys("÷∕⁄", "/"),
        **dict.fromkeys("€£₽¥₹", " "),
        **dict.fromkeys("\u00a0\u2009\u202f", " "),
        "＋": "+",
        "＝": "=",
        "\ufe0f": None,  # shows the sign before it as a picture
        "²": "^2",
        "³": "^3",
    }
)
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_SPELLINGS = (
    (re.compile(r"\\(?:times|cdot)"), "*"),
    (re.compile(r"\\div"), "/"),
    (re.compile(r"\\(?:text|mathrm|boxed)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\\([$%])"), r"\1"),
    (re.compile(r"\\\\|\\newline"), "\n"),
    (re.compile(r"\\[()\[\],;! ]|[$&]"), " "),
    (re.compile(r"\^\{(\d+)\}"), r"^\1"),
    (re.compile(r"(?m)^[^\S\n]*[-*•–—]\s+"), "; "),
    (re.compile(r"\*\*|`+"), " "),
    (re.compile(r"=="), "="),
    (re.compile(r"(?<=[\w%)])[^\S\n]*\n\s*(?==)"), " "),
    # The power of a unit: 42 m^2.
    (re.compile(r"(?<=[^\W\d_])\s?\^[23]\b"), ""),
    # A rate is read as its numerator: 5 snakes/jaguar, $6/h.
    (re.compile(r"(?<=[^\W\d_]{2})/(?:[^\W\d_]{2,}|h|s)\b|(?<=\d)/(?:[^\W\d_]{2,}|h)\b"), " "),
    (re.compile(r"(?<![\d.,])(\d{1,3})((?: \d{3})+)(?![\d.,]*\d|-)"), lambda m: m[1] + m[2].replace(" ", "")),
    (re.compile(r"(?<=\d)-(?=[^\W\d_]{2})"), " "),
    (re.compile(r"\b(?:multiplied by|умножить на)\b"), "*"),
    (re.compile(r"\b(gives|makes|yields) (?:us|him|her|them|me|you)(?= {1,3}[\d(])"), r"\1"),
    (re.compile(r"\bresults in(?= {1,3}[\d(])"), "gives"),
    (re.compile(r"\bwill be(?= {1,3}[\d(])"), "is"),
    (re.compile(r"\b(?:divided by|разделить на|делить на)\b|(?<=[\d)]) : (?=[\d(])"), "/"),
    (re.compile(r"(?<=[\d)])\((?=\s*[\d(])"), "*("),
    (re.compile(r"(?<![\d.,/])(\d{1,30}) (\d{1,30})/(\d{1,30})(?![\d/])"), r"(\1+\2/\3)"),
    # The label of a part: `1)`, `(a)`, `Part (b)`. Where an operation follows, it is an operand.
    (
        re.compile(
            r"(?:^#*|(?<=[.;:!?])[^\S\n])[^\S\n]*(?:(?:part|step|case|question|problem|item)\s)?"
            r"(?:(?:\d{1,2}|[a-zа-яё]|[ivx]{1,4})\)[^\S\n]*|\((?:\d{1,2}|[a-zа-яё]|[ivx]{1,4})\)[^\S\n]+)"
            r"(?![xх]\s|(?:times|plus|minus)\b)(?=[^\s*/+=^,)−–-])",
            re.IGNORECASE | re.MULTILINE,
        ),
        "; ",
    ),
)
_CYRILLIC = re.compile(r"[а-яё]", re.IGNORECASE)
# In Russian a comma is the decimal point, and a colon divides.
_RUSSIAN = (
    (re.compile(r"(?<=\d),(?=\d)(?!\d{3}(?!\d))"), "."),
    (re.compile(r"(?<=[\d)]):(?=[\d(])"), "/"),
)
_SEPARATOR = re.compile(r"\{,\}|,\\!")
_SIZED_FACTOR = re.compile(r"(?<=[\d)}])[^\S\n]?\\left\(|(?<=\))[^\S\n]?\((?=[-√])|(?<=\d)[^\S\n]?\((?=√)")
_SIZES = re.compile(r"\\(?:left|right)(?=[()])")
_STARS = re.compile(r"(?<=\d)\*\*(?=\d)")
_SPELLED_ROOT = re.compile(r"(?<![a-zA-Z\\])sqrt\s?(?=\()")
_BARE_FRACTION = re.compile(r"\\[dtc]?frac\s?(?:(\d)|\{(\d{1,30})\})\s?(?:(\d)|\{(\d{1,30})\})")
_POWER = re.compile(r"\^\{(\d+)\}")
_ROOT = re.compile(r"\\sqrt\s?\{([^{}]*)\}")
_HIGHER_ROOT = re.compile(r"\\sqrt\s?\[([2-9])\]\s?\{(\d{1,30})\}")
_BINOMIAL = re.compile(r"\\[dt]?binom\s?\{(\d{1,2})\}\s?\{(\d{1,2})\}")
# An exclamation mark that an operation follows; `= 42!` only ends a sentence, `12! **Then` too.
_FACTORIAL = re.compile(
    r"(?<![\d.,!])(\d{1,2})!(?=[^\S\n]?(?:(?:[-+/=^]|\*(?!\*)|\\(?:times|cdot|div))[^\S\n]?[\d($\\√]|\}))"
)
_BEFORE_ROOT = re.compile(r"(?<=[\d)])(?=√)")  # with a space between, the number may be a label: `(2) √16 = 4`
_MAX_FACTORIAL = 28  # of the next, a factor has more digits than are read


def readable(text: str, *, functions: bool = False) -> str:
    """`text` without LaTeX, currency signs, list marks and the denominators of rates, cut to a length that is read.

    What a calculator's annotations say (`<<7*6=42>>`) follows at the end, a line each. With `functions`, square roots
    are spelled `√(2)`; factorials, binomial coefficients and other roots that are integers as products, 5! as `(5*24)`.
    """
    text = _SPELLED_ROOT.sub("√", text[:MAX_CHARACTERS].translate(_SIGNS))
    if functions:
        text = _with_functions(text)
    noted = CALCULATOR.findall(text)
    text = "\n".join((CALCULATOR.sub("", text), *noted))
    for _ in range(_MAX_NESTING):
        text = _FRACTION.sub(r"((\1)/(\2))", text)
    for pattern, spelling in _SPELLINGS:
        text = pattern.sub(spelling, text)
    if _CYRILLIC.search(text):
        for pattern, spelling in _RUSSIAN:
            text = pattern.sub(spelling, text)
    return text


def _with_functions(text: str) -> str:
    text = _SIZES.sub("", _SIZED_FACTOR.sub("*(", _SEPARATOR.sub(",", text)))
    text = _HIGHER_ROOT.sub(_integer_root, _STARS.sub("^", text))
    text = _BINOMIAL.sub(lambda m: f"(1*{math.comb(int(m[1]), int(m[2]))})", _FACTORIAL.sub(_product, text))
    text = _POWER.sub(r"^\1", text)
    text = _BARE_FRACTION.sub(lambda m: f"(({m[1] or m[2]})/({m[3] or m[4]}))", text)
    for _ in range(_MAX_NESTING):
        text = _FRACTION.sub(r"((\1)/(\2))", _ROOT.sub(r"√(\1)", text))
    return _SIZED_FACTOR.sub("*(", _BEFORE_ROOT.sub("*", text))


def _product(factorial: re.Match[str]) -> str:
    number = int(factorial[1])
    return f"({number}*{math.factorial(number - 1)})" if 0 < number <= _MAX_FACTORIAL else factorial[0]


def _integer_root(root: re.Match[str]) -> str:
    degree, radicand = int(root[1]), int(root[2])
    value = round(radicand ** (1 / degree))
    return f"(1*{value})" if value**degree == radicand else root[0]
