"""JSON of unknown origin: parsed with bounds, and checked to be plain data that any reader can take back.

Refused are nesting beyond 64 levels, NaN and infinities, integers beyond 64 bits and half characters (lone
surrogates). Of a key that is given twice the last value counts, as in every common parser.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

MAX_DEPTH = 64

_MAX_DIGITS = 20  # digits and sign of any 64-bit integer
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)


class JsonValueError(ValueError):
    """The text is not JSON, or the value is not plain data.

    Attributes:
        field: first-level key of the object that holds the offending value, None outside of an object.
        unfinished: the text is right as far as it goes, but ends before the value does.
    """

    def __init__(self, message: str, field: str | None = None, *, unfinished: bool = False) -> None:
        super().__init__(message)
        self.field, self.unfinished = field, unfinished


def parse_json(text: str) -> Any:
    """Parse one JSON value; `check_json_value` then says whether it is plain data.

    Raises:
        JsonValueError: says what is wrong, and the column for a syntax error.
    """
    if _deeper_than_allowed(text):
        raise JsonValueError(f"nested deeper than {MAX_DEPTH} levels")
    try:
        return json.loads(text, parse_int=_integer)
    except json.JSONDecodeError as error:
        where = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno} of it, column {error.colno}"
        message = f"not valid JSON: {error.msg.removesuffix(' at')} at {where}"
        raise JsonValueError(message, unfinished=error.pos == len(text)) from None


def check_json_value(root: object) -> None:
    """Check that an already parsed value is plain, finite, bounded data.

    Raises:
        JsonValueError: names the first-level field at fault.
    """
    if isinstance(root, dict):
        for key, value in root.items():
            if not isinstance(key, str):
                raise JsonValueError(f"a key is of type {type(key).__name__}: keys must be strings")
            _check_below(key, None)
            _check_below(value, key)
    else:
        _check_below(root, None)


def _check_below(root: object, field: str | None) -> None:
    waiting = [(root, 1 if field is None else 2)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, dict | list) and depth > MAX_DEPTH:
            raise JsonValueError(f"nested deeper than {MAX_DEPTH} levels", field)
        if isinstance(value, dict):
            waiting.extend((item, depth + 1) for item in value.values())
            waiting.extend((key, depth + 1) for key in value)
        elif isinstance(value, list):
            waiting.extend((item, depth + 1) for item in value)
        else:
            _check_scalar(value, field)


def _check_scalar(value: object, field: str | None) -> None:
    if isinstance(value, str):
        _refuse_lone_surrogate(value, field)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise JsonValueError("NaN and infinities are not JSON: use null", field)
    elif isinstance(value, int):  # bool included
        if not -(2**63) <= value < 2**63:
            raise JsonValueError("an integer does not fit 64 bits: write it as a string", field)
    elif value is not None:
        raise JsonValueError(f"a value is of type {type(value).__name__}, which JSON does not know", field)


def _refuse_lone_surrogate(text: str, field: str | None) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        message = f"half a character, the lone surrogate {half}: the text was cut or mis-encoded"
        raise JsonValueError(message, field) from None


def _integer(digits: str) -> int:
    """Of a longer one the first digits: they are too many as well, and `check_json_value` knows whose they are."""
    return int(digits[: _MAX_DIGITS + 1])


def _deeper_than_allowed(text: str) -> bool:
    """Whether brackets outside of strings nest too deep; found before parsing, which recurses."""
    if text.count("{") + text.count("[") <= MAX_DEPTH:
        return False
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        if match[0] in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                return True
        elif match[0] in "]}":
            depth -= 1
    return False
