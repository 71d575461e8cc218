r"""Plain numbers with an optional unit, compared exactly: the fast path of the answer check.

Integers, decimals, fractions, mixed numbers, thousands separators, currency, percent and unit words.
No floats: every value is a `fractions.Fraction`. Not here: anything with variables, roots or brackets.

Percent: 50% equals 0.5, and equals 50 only where the question asks for a percentage (then it no longer
equals 0.5). Units: two different units conflict; a unit on one side only is accepted, unless one of its
words changes the value ("42 thousand", "42 or so", "42 squared").
"""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")  # a comma between the thousands of a number

_MAX_DIGITS = 100
_ROOT_DECIMALS = 30
_SEPARATORS = str.maketrans("", "", ", ")
_INTEGER = r"(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?:\ \d{3})+|\d+)"
_NUMBER = rf"""
    (?: (?P<whole>\d+)\ *(?:\\frac\{{(?P<top>\d+)\}}\{{(?P<bottom>\d+)\}}|\ (?P<top2>\d+)\ ?/\ ?(?P<bottom2>\d+))
      | \\frac\{{\ ?(?P<sign2>-?)(?P<n>{_INTEGER})\ ?\}}\{{\ ?(?P<d>{_INTEGER})\ ?\}}
      | (?P<n2>{_INTEGER})\ ?/\ ?(?P<d2>{_INTEGER})
      | (?P<decimal>{_INTEGER}(?:\.\d*)?|\.\d+)
    )"""
_WORD = r"[^\W\d_]+(?:\^(?:[23]|\{[23]\}))?"
_QUANTITY = re.compile(
    rf"""(?P<sign>[-+]?)\ ?(?P<currency>\\?\$|[€£₽])?\ ?(?P<sign3>-?){_NUMBER}
         (?:\ ?(?P<percent>\\?%)|\ ?(?P<degree>\^\\circ)\ ?(?P<scale>[CFС]?)
           |(?P<gap>[\ -]?)(?P<unit>{_WORD}(?:(?:\ |/|-|\ per\ ){_WORD}){{0,4}}|\\?\$|[€₽]))?""",
    re.VERBOSE,
)
_CURRENCY = {
    "$": "dollar",
    "€": "euro",
    "£": "pound sterling",
    "₽": "рубль",
    "usd": "dollar",
    "руб": "рубль",
    "рубля": "рубль",
    "рублей": "рубль",
    "рубли": "рубль",
}
_LETTER_UNITS = frozenset("msghlLNJWVKCFtмсгчлт")
_GLUED_UNIT = re.compile(r"(?:[ckm]?m|[km]?g|ml|lbs?|oz|ft|in|mi|hrs?|min|sec|[mk]ph|см|мм|км|кг|мл|мин)(?:\^.*)?")
_PERCENT_WORD = re.compile(r"percents?|per cent|pct|процент(?:а|ов)?", re.IGNORECASE)
# Words after a number that make it another number.
SCALES = (
    r"hundreds?|thousands?|millions?|mil|mln|billions?|bn|trillions?|lakhs?|crores?|dozens?|doz|scores?|gross|grand"
    r"|half|halves|thirds?|quarters?|fourths?|fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?|hundredths?"
    r"|thousandths?|squared|cubed|doubled|tripled|halved|twice|factorial|ppm|promille"
    r"|тыс|тысяч\w*|млн|миллион\w*|млрд|миллиард\w*|сот|сотен|сотн\w+|дюжин\w*|половин\w*|трет\w+|четверт\w+|десят\w+"
    r"|промилле|вдвое|дважды"
)
# Or no statement of one.
_CHANGES_VALUE = re.compile(
    rf"(?:{SCALES}"
    r"|zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen|twenty|thirty|forty|fifty|sixty"
    r"|seventy|eighty|ninety|percentage"
    r"|plus|minus|times|over|divided|multiplied|by|mod|modulo|base|power|root|sqrt|pi"
    r"|or|and|nor|not|no|never|isn|wrong|incorrect|false|untrue|than|less|below|under|above|negative|about|approximately"
    r"|approx|roughly|almost|nearly|maybe|perhaps|probably|possibly|presumably|likely|if|except|but|most|least|to|in|"
    r"процент\w*|или|и|не|ни|нет|почти|примерно|около|приблизительно|возможно|наверное|вероятно|минус|плюс|раз\w*"
    r"|неверно|неправильно|ложно|ниже|меньше|если|но|до)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number as written (50 for "50%"), its unit in one spelling ("" for none), and whether it is a percentage."""

    value: Fraction
    unit: str = ""
    percent: bool = False


def read_quantity(text: str) -> Quantity | None:
    """The quantity that `text` (as `notation.plain` spells it) states and nothing else, or None."""
    match = _QUANTITY.fullmatch(text)
    if match is None or sum(c.isdigit() for c in text) > _MAX_DIGITS or not text.isprintable():
        return None
    value = _value(match)
    if value is None:
        return None
    if match["percent"] or _PERCENT_WORD.fullmatch(match["unit"] or ""):
        return None if match["currency"] else Quantity(value, percent=True)
    if match["degree"]:
        return Quantity(value, f"degree {match['scale']}".strip())
    unit = _unit(match)
    return None if unit is None else Quantity(value, unit)


def changes_value(word: str) -> bool:
    """Whether `word`, beside a number, makes it another number or no statement of one."""
    return _CHANGES_VALUE.fullmatch(word) is not None


def square_root(value: Fraction) -> Fraction:
    """The square root of what is not negative, exact where it is rational, else to `_ROOT_DECIMALS` decimals."""
    scaled = value.numerator * value.denominator * 100**_ROOT_DECIMALS
    return Fraction(math.isqrt(scaled), value.denominator * 10**_ROOT_DECIMALS)


def same_quantity(a: Quantity, b: Quantity, *, percent_asked: bool) -> bool:
    """Whether two quantities are equal; `percent_asked` says that the question wants a percentage."""
    if a.percent or b.percent:
        if a.unit or b.unit:
            return False
        if percent_asked:
            return a.value == b.value
        return a.value / (100 if a.percent else 1) == b.value / (100 if b.percent else 1)
    if a.value != b.value:
        return False
    return a.unit == b.unit or not (a.unit and b.unit)


def _value(match: re.Match[str]) -> Fraction | None:
    if match["whole"] is not None:
        numerator, denominator = match["top"] or match["top2"], match["bottom"] or match["bottom2"]
        value = _ratio(numerator, denominator)
        value = None if value is None else int(match["whole"]) + value
    elif match["decimal"] is not None:
        value = Fraction(match["decimal"].translate(_SEPARATORS).removesuffix("."))
    else:
        value = _ratio(match["n"] or match["n2"], match["d"] or match["d2"])
    negative = [match["sign"], match["sign2"], match["sign3"]].count("-")
    if value is None or negative > 1:
        return None
    return -value if negative else value


def _ratio(numerator: str, denominator: str) -> Fraction | None:
    top, bottom = (int(part.translate(_SEPARATORS)) for part in (numerator, denominator))
    return Fraction(top, bottom) if bottom else None


def _unit(match: re.Match[str]) -> str | None:
    """The unit in one spelling, "" for none, None where it makes the text something else than a quantity."""
    sign = (match["currency"] or "").removeprefix("\\")
    unit = (match["unit"] or "").removeprefix("\\")
    words = re.split(r"[ /-]", unit) if unit else []
    if any(map(changes_value, words)):
        return None
    if unit and unit not in _CURRENCY and not _is_unit(unit, glued=not match["gap"]):
        return None
    named = _spelling(unit)
    if sign and unit and named != _CURRENCY[sign]:
        return None
    return _CURRENCY[sign] if sign else named


def _is_unit(unit: str, *, glued: bool) -> bool:
    """Whether the word is a unit and no variable: "42m" and "42 x" are products; "42 ⅔ kg" is another number."""
    if any(unicodedata.category(character) == "No" for character in unit):
        return False
    name = unit.split("^")[0]
    return bool(_GLUED_UNIT.fullmatch(unit)) and len(name) > 1 if glued else len(name) > 1 or name in _LETTER_UNITS


def _spelling(unit: str) -> str:
    """`unit` in the singular and, from four letters on, in lower case."""
    words = []
    for word in unit.replace("{", "").replace("}", "").split(" "):
        word = word.casefold() if len(word) > 3 else word
        if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
            word = word[:-2] if word.endswith(("ches", "shes", "xes")) else word[:-1]
        words.append(_CURRENCY.get(word, word))
    return " ".join(words)
