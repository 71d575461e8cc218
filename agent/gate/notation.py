r"""One spelling for the many ways a final answer is typeset.

Covers delimiters, spacing, synonyms and brackets of LaTeX and Unicode. Changes no value: it does not
evaluate, round, drop units or reorder. Not here: what an answer means (`quantities`, `equivalence`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

_SYMBOLS = str.maketrans(
    {
        "−": "-",
        "×": r"\times ",
        "·": r"\cdot ",
        "⋅": r"\cdot ",
        "÷": r"\div ",
        "π": r"\pi ",
        "∞": r"\infty ",
        "≤": r"\le ",
        "≥": r"\ge ",
        "≠": r"\ne ",
        "∪": r"\cup ",
        "±": r"\pm ",
        "°": r"^\circ ",
        "²": "^{2}",
        "³": "^{3}",
        "½": r"\frac{1}{2}",
        "⅓": r"\frac{1}{3}",
        "¼": r"\frac{1}{4}",
        "¾": r"\frac{3}{4}",
        "％": "%",
        "\u2019": "'",
    }
)
_SYNONYMS = (
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\leq(?:slant)?(?![a-zA-Z])"), r"\\le"),
    (re.compile(r"\\geq(?:slant)?(?![a-zA-Z])"), r"\\ge"),
    (re.compile(r"\\neq(?![a-zA-Z])"), r"\\ne"),
    (re.compile(r"\\lt(?![a-zA-Z])"), "<"),
    (re.compile(r"\\gt(?![a-zA-Z])"), ">"),
    (re.compile(r"\\lbrace(?![a-zA-Z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![a-zA-Z])"), r"\\}"),
    (re.compile(r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ(?![a-zA-Z])|\\degree(?![a-zA-Z])"), r"^\\circ "),
    (re.compile(r"\\(?:left|right|displaystyle|big|Big|bigl|bigr)(?![a-zA-Z])"), ""),
    (re.compile(r"\{,\}|,\\!"), ","),
    (re.compile(r"\\!"), ""),
    (re.compile(r"(?<!\\)\\(?:[,;:\s]|quad(?![a-zA-Z])|qquad(?![a-zA-Z]))|(?<=.)~"), " "),  # a leading ~ says "about"
)
_TEXT = re.compile(r"\\(?:text(?:bf|it|rm|normal)?|math(?:rm|bf|it)|mbox)\s*\{([^{}]*)\}")
_SPACED_POWER = re.compile(r"(?<!\s)\s+\^(?!\\circ)")  # from where the spaces begin: no run is read twice
_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_BARE_NUMERATOR = re.compile(r"\\frac\s*([0-9])")
_BARE_DENOMINATOR = re.compile(r"(\\frac\{[^{}]*\})\s*([0-9])")
_BARE_ROOT = re.compile(r"\\sqrt\s*([0-9a-z])")
_LOOSE_SPACE = re.compile(r"(?<![^\W_])\s+|\s+(?![^\W_])")


def plain(text: str) -> str:
    r"""`text` in the one spelling the comparison works on.

    Math delimiters, `\left`, spacing commands and markdown emphasis go; `\text{cm}` becomes ` cm `,
    `\dfrac12` becomes `\frac{1}{2}`, Unicode signs become LaTeX. `$` is left where it is money.
    """
    text = "".join(" " if unicodedata.category(c) == "Zs" else c for c in text.translate(_SYMBOLS))
    text = _unwrap_math(_strip_edges(text))
    for pattern, replacement in _SYNONYMS:
        text = pattern.sub(replacement, text)
    text = _SPACED_POWER.sub("^", _TEXT.sub(r" \1 ", text))
    text = _BARE_NUMERATOR.sub(r"\\frac{\1}", text)
    text = _BARE_DENOMINATOR.sub(r"\1{\2}", text)
    text = _BARE_ROOT.sub(r"\\sqrt{\1}", text)
    return " ".join(_without_outer_braces(_strip_edges(text)).split())


def squeezed(text: str) -> str:
    """`text` without the spaces that separate neither words nor numbers."""
    return _LOOSE_SPACE.sub("", text)


def closing(text: str, opening: int) -> int:
    r"""Index of the `}` that closes the `{` at `opening`, or -1. `\{` and `\}` do not count."""
    depth = 0
    for index, character in _unescaped(text, opening):
        if character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return index
    return -1


def _without_outer_braces(text: str) -> str:
    """`text` without the pairs of braces that enclose all of it; each character is read once, however many they are."""
    if text[:1] != "{":
        return text
    closed_at: dict[int, int] = {}
    opened: list[int] = []
    for index, character in _unescaped(text, 0):
        if character == "{":
            opened.append(index)
        elif character == "}" and opened:
            closed_at[opened.pop()] = index
    start, end = 0, len(text)
    while closed_at.get(start) == end - 1:
        start, end = start + 1, end - 1
        while start < end and text[start].isspace():
            start += 1
        while start < end and text[end - 1].isspace():
            end -= 1
    return text[start:end]


def _unescaped(text: str, start: int) -> Iterator[tuple[int, str]]:
    """Characters from `start` on with their index, without backslashes and what follows one."""
    index = start
    while index < len(text):
        if text[index] == "\\":
            index += 2
            continue
        yield index, text[index]
        index += 1


def _strip_edges(text: str) -> str:
    """`text` without surrounding spaces, markdown emphasis and closing full stops."""
    text = text.strip().strip("*`_ \n\t")
    return text.rstrip(".,;: \n\t") if not text.endswith("\\,") else text


def _unwrap_math(text: str) -> str:
    for opening, close in _DELIMITERS:
        if len(text) > len(opening) + len(close) and text.startswith(opening) and text.endswith(close):
            inner = text[len(opening) : -len(close)]
            if opening == "$" and not inner.endswith("\\"):
                return _strip_edges(inner.replace("$", "")) if inner.count("$") % 2 == 0 else text
            if opening not in inner:
                return _strip_edges(inner)
    return text
