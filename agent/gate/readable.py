"""One spelling for the sums in a text: LaTeX, Unicode signs, currencies, number formats.

Changes no value. Not here: reading the sums (`arithmetic`), typeset final answers (`notation`).
"""

from __future__ import annotations

import re

_MAX_CHARACTERS = 20_000
_MAX_NESTING = 5
_SIGNS = str.maketrans(
    {
        **dict.fromkeys("⋅∙∗✕✖", "*"),
        **dict.fromkeys("∕⁄", "/"),
        **dict.fromkeys("€£₽", " "),
        **dict.fromkeys("\u00a0\u2009\u202f", " "),
        "＋": "+",
        "＝": "=",
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
    (re.compile(r"\*\*"), " "),
    (re.compile(r"=="), "="),
    (re.compile(r"(?<=[\w%)])[^\S\n]*\n\s*(?==)"), " "),
    # The power of a unit: 42 m^2.
    (re.compile(r"(?<=[^\W\d_])\s?\^[23]\b"), ""),
    # A rate is read as its numerator: 5 snakes/jaguar, $6/h.
    (re.compile(r"(?<=[^\W\d_]{2})/(?:[^\W\d_]{2,}|h|s)\b|(?<=\d)/(?:[^\W\d_]{2,}|h)\b"), " "),
    (re.compile(r"(?<![\d.,])(\d{1,3})((?: \d{3})+)(?![\d.,]*\d|-)"), lambda m: m[1] + m[2].replace(" ", "")),
    (re.compile(r"(?<=\d)-(?=[^\W\d_]{2})"), " "),
    (re.compile(r"\b(?:multiplied by|умножить на)\b"), "*"),
    (re.compile(r"\b(?:divided by|разделить на|делить на)\b|(?<=[\d)]) : (?=[\d(])"), "/"),
    (re.compile(r"(?<=[\d)])\((?=\s*[\d(])"), "*("),
    (re.compile(r"(?<![\d.,/])(\d{1,30}) (\d{1,30})/(\d{1,30})(?![\d/])"), r"(\1+\2/\3)"),
)
_CYRILLIC = re.compile(r"[а-яё]", re.IGNORECASE)
# In Russian a comma is the decimal point, and a colon divides.
_RUSSIAN = (
    (re.compile(r"(?<=\d),(?=\d)(?!\d{3}(?!\d))"), "."),
    (re.compile(r"(?<=[\d)]):(?=[\d(])"), "/"),
)
_CALCULATOR = re.compile(r"<<([^<>]*)>>")


def readable(text: str) -> str:
    """`text` without LaTeX, currency signs, list marks and the denominators of rates, cut to a length that is read.

    What a calculator's annotations say (`<<7*6=42>>`) follows at the end, a line each.
    """
    text = text[:_MAX_CHARACTERS].translate(_SIGNS)
    noted = _CALCULATOR.findall(text)
    text = "\n".join((_CALCULATOR.sub("", text), *noted))
    for _ in range(_MAX_NESTING):
        text = _FRACTION.sub(r"((\1)/(\2))", text)
    for pattern, spelling in _SPELLINGS:
        text = pattern.sub(spelling, text)
    if _CYRILLIC.search(text):
        for pattern, spelling in _RUSSIAN:
            text = pattern.sub(spelling, text)
    return text
