r"""The process that compares answers symbolically: JSON lines in on stdin, JSON lines out on stdout.

Expressions are read by math-verify's parser and compared by its grader, behind two guards against its
lenient sides: text it would misread or read in part is refused, and no decimal reaches it (its rounding
takes 3.14159265 for pi), and what it calls equal must also agree to 30 digits. Runs alone, so that it can be
killed: see `answer_process`.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import resource
import signal
import sys
from typing import Any

import sympy  # type: ignore[import-untyped]
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, _Latex2Sympy  # type: ignore[import-untyped]
from math_verify import verify  # type: ignore[import-untyped]

from agent.gate.equivalence import equivalent
from agent.gate.quantities import THOUSANDS

_MEMORY_BYTES = 4 << 30
_DIGITS = 40
_TOLERANCE = sympy.Float("1e-30", _DIGITS)
# Values for the variables of two expressions that must agree: fractions, so that they are exact.
_POINTS = ((3, 7), (17, 11), (29, 13), (-5, 3))
_FOREIGN_COMMAND = re.compile(
    r"\\(?!(?:frac|sqrt|binom|pi|infty|cdot|times|div|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|ln|log|exp"
    r"|alpha|beta|gamma|delta|epsilon|theta|lambda|mu|phi|omega|sigma|rho|tau)(?![a-zA-Z]))[a-zA-Z]+"
)
_CHARACTERS = re.compile(r"[a-zA-Z0-9.+\-*/^_(){}\[\]|!&\s,\\]*")
# Ambiguous, or misread by the parser.
_MISREAD = re.compile(
    r"""\d\s+\d                                                   # 1 1/2
      | /\s*(?:\d++|[a-zA-Z]|\\pi)\s*[a-zA-Z0-9(\\]              # 1/2x
      | (?<![\\a-zA-Z])[a-zA-Z]{4,}                              # words, read as products of letters
      | \d\s*_                                                  # 101_2, the base is dropped
      | \^\s*(?:\{[^{}]*\}|\w+)\s*[\^!]                          # 2^3^2, 3^2!
      | \.\s*\. | !\s*!""",
    re.VERBOSE,
)
_MATRIX = re.compile(r"\\(?:begin|end)\{[pb]matrix\}")
_MIXED = re.compile(r"(?<![\d.}])(\d+)\s*\\frac\{(\d+)\}\{(\d+)\}")
_DECIMAL = re.compile(r"(\d*)\.(\d+)")
_CONFIG = ConversionConfig(lowercase_symbols=False)


class _Parser(_Latex2Sympy):  # type: ignore[misc]  # untyped
    """math-verify's parser, but two factors side by side are a product: it takes 2(3) for the mixed number 5."""

    def convert_postfix_list(self, arr: list[Any], i: int = 0) -> Any:
        factors = [self.convert_postfix(factor) for factor in arr[i:]]
        if not all(isinstance(factor, sympy.Expr) for factor in factors):
            return super().convert_postfix_list(arr, i)
        return functools.reduce(self.mul_flat, factors)


def main() -> None:
    """Answer requests `{"candidate", "reference", "percent_asked", "limit_s"}` with `{"equal"}` until stdin ends."""
    logging.disable(logging.WARNING)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not be taken for an answer
    symbolically_equal("x", "x+1")  # the first comparison pays for imports: before the clock runs
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        # Should the parent die, nobody else ends an endless comparison.
        signal.setitimer(signal.ITIMER_REAL, 2 * request["limit_s"] + 1)
        print(json.dumps({"equal": _answer(request)}), file=answers, flush=True)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _answer(request: dict[str, Any]) -> bool:
    try:
        return equivalent(
            request["candidate"],
            request["reference"],
            symbolically_equal,
            percent_asked=request["percent_asked"],
        )
    except (Exception, RecursionError, MemoryError):
        return False  # whatever sympy trips over is no proof of equality


def symbolically_equal(a: str, b: str) -> bool:
    """Whether two expressions are equal for all values of their variables. May raise whatever sympy raises."""
    left, right = _parse(a), _parse(b)
    if left is None or right is None:
        return False
    if isinstance(left, sympy.MatrixBase) and isinstance(right, sympy.MatrixBase):
        pairs = zip(left.flat(), right.flat(), strict=True) if left.shape == right.shape else None
        return pairs is not None and all(_same_expression(x, y) for x, y in pairs)
    return isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr) and _same_expression(left, right)


def _parse(text: str) -> sympy.Basic | None:
    """The expression, None where the parser would not read all of it and nothing else."""
    text = _DECIMAL.sub(_as_fraction, _MIXED.sub(r"(\1+\\frac{\2}{\3})", THOUSANDS.sub("", text)))
    without_matrix = _MATRIX.sub("", text)
    if "," in text or not _CHARACTERS.fullmatch(text):
        return None
    if _MISREAD.search(without_matrix) or _FOREIGN_COMMAND.search(without_matrix):
        return None
    return _Parser(is_real=True, config=_CONFIG).parse(text)


def _as_fraction(match: re.Match[str]) -> str:
    digits = (match[1] + match[2]).lstrip("0") or "0"
    return rf"\frac{{{digits}}}{{1{'0' * len(match[2])}}}"


def _same_expression(a: sympy.Expr, b: sympy.Expr) -> bool:
    if a.has(sympy.nan, sympy.zoo) or b.has(sympy.nan, sympy.zoo):
        return False
    if a == b:
        return True
    return bool(verify(b, a, timeout_seconds=None)) and _agree_numerically(a, b)


def _agree_numerically(a: sympy.Expr, b: sympy.Expr) -> bool:
    """Whether a and b agree to 30 digits at every point where they have finite values, and at one at least."""
    symbols = sorted(a.free_symbols | b.free_symbols, key=str)
    seen = 0
    for point in range(len(_POINTS) if symbols else 1):
        values = {s: sympy.Rational(*_POINTS[(point + i) % len(_POINTS)]) + i for i, s in enumerate(symbols)}
        x, y = (sympy.N(e.subs(values).doit(), _DIGITS) for e in (a, b))
        if not (x.is_number and y.is_number and x.is_finite and y.is_finite):
            continue
        if abs(x - y) > _TOLERANCE * max(1, abs(x)):
            return False
        seen += 1
    return seen > 0


if __name__ == "__main__":
    main()
