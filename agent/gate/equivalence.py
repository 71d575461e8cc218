r"""Whether two final answers mean the same: structure here, numbers exactly, the rest by a symbolic leaf.

Tuples, points and intervals are ordered and keep their brackets; sets and lists ("1, 2", "1 and 2",
`\pm 3`) are unordered, but bare values beside those of several variables keep the variables' order; relations
are compared side by side. What none of the rules reads is different: a false reject costs a candidate, a false
accept teaches a wrong answer. Pure functions, no sympy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from agent.gate.notation import squeezed
from agent.gate.quantities import THOUSANDS, read_quantity, same_quantity

Leaf = Callable[[str, str], bool]

MAX_CHARS = 300
_MAX_PARTS = 12
_WORDS = re.compile(r"[^\W\d_]{2,}(?:[\s'-]+[^\W\d_]+)*")
_LIST_SEPARATOR = re.compile(r",?\s(?:and|or|и|или)\s|[;,]")
_RELATION = re.compile(r"\\(?:le|ge|ne|in)(?![a-zA-Z])|[<>]=?|=")
_FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le", "=": "=", r"\ne": r"\ne"}
_SPELLED = {"<=": r"\le", ">=": r"\ge"}
_VARIABLE = re.compile(r"(?:[a-zA-Z]|\\(?:theta|alpha|beta|phi|lambda|mu))(?:'|_\w|_\{\w+\}|\([a-z]\))?")
_INDEX = re.compile(r"['_].*")
_OPENING, _CLOSING = "([{", ")]}"


@dataclass(frozen=True, slots=True)
class _Group:
    """Several answers in one: `brackets` is "" for an unordered list or set, else the pair, as in `[)`."""

    brackets: str
    parts: tuple[str, ...]


def decide_exactly(candidate: str, reference: str, *, percent_asked: bool = False) -> bool | None:
    """The verdict where spelling, words or exact numbers settle it, else None. Both as `plain` spells them."""
    if not candidate or not reference:
        return False
    a, b = read_quantity(candidate), read_quantity(reference)
    if a is not None and b is not None:
        return same_quantity(a, b, percent_asked=percent_asked)
    if squeezed(candidate) == squeezed(reference):
        return True
    words_a, words_b = _WORDS.fullmatch(candidate), _WORDS.fullmatch(reference)
    if words_a and words_b:
        return candidate.casefold() == reference.casefold()
    if (words_a and b is not None) or (words_b and a is not None):
        return False
    return None


def equivalent(candidate: str, reference: str, leaf: Leaf, *, percent_asked: bool = False) -> bool:
    """Whether two answers, as `plain` spells them, mean the same.

    Args:
        candidate: at most `MAX_CHARS` characters, as is `reference`.
        leaf: decides two expressions without separators and relations; it may raise to abandon the whole.
        percent_asked: see `quantities`.
    """

    def same(a: str, b: str) -> bool:
        return equivalent(a, b, leaf, percent_asked=percent_asked)

    candidate, reference = candidate.strip(), reference.strip()
    exact = decide_exactly(candidate, reference, percent_asked=percent_asked)
    if exact is not None:
        return exact
    groups = _group(candidate), _group(reference)
    if groups != (None, None):
        return _same_group(*groups, same)
    relations = _relation(candidate), _relation(reference)
    if relations != (None, None):
        return _same_relation(candidate, reference, *relations, same, leaf)
    return leaf(candidate, reference)


def _same_group(a: _Group | None, b: _Group | None, same: Leaf) -> bool:
    if a is None or b is None or a.brackets != b.brackets or len(a.parts) != len(b.parts) or len(a.parts) > _MAX_PARTS:
        return False
    if a.brackets or _assigned(a) != _assigned(b):
        return _all_same(a.parts, b.parts, same)
    left = list(b.parts)
    for part in a.parts:
        match = next((other for other in left if same(part, other)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _assigned(group: _Group) -> bool:
    """Whether every part gives a value to a variable of its own; of bare values, the order tells whose they are.

    Of variables that differ in their index alone, as roots do, it tells nothing.
    """
    relations = [_relation(part) for part in group.parts]
    names = {
        _INDEX.sub("", sides[0])
        for sides, signs in filter(None, relations)
        if set(signs) == {"="} and _VARIABLE.fullmatch(sides[0])
    }
    return len(names) == len(group.parts)


def _group(text: str) -> _Group | None:
    if r"\cup" in text:
        parts = _split(text, re.compile(r"\\cup(?![a-zA-Z])"))
        return _Group("", tuple(parts)) if len(parts) > 1 else None
    if text.startswith(r"\{") and text.endswith(r"\}") and _enclosed(text[1:-2] + "}"):
        return _Group("", tuple(_split(text[2:-2], _LIST_SEPARATOR)))
    parts = _split(THOUSANDS.sub("\0", text), _LIST_SEPARATOR)
    if len(parts) > 1:
        return _Group("", tuple(part.replace("\0", ",") for part in parts))
    if text[:1] in ("(", "[") and text[-1:] in (")", "]") and _enclosed(text):
        inner = _split(text[1:-1], _LIST_SEPARATOR)
        return _Group(text[0] + text[-1], tuple(inner)) if len(inner) > 1 else None
    if text.count(r"\pm") == 1:
        return _Group("", tuple(text.replace(r"\pm", sign).removeprefix("+").strip() for sign in "+-"))
    return None


def _split(text: str, separator: re.Pattern[str]) -> list[str]:
    """`text` cut at the separators outside all brackets; an empty part stays, and equals nothing."""
    depths = _depths(text)
    parts, start = [], 0
    for match in separator.finditer(text):
        if depths[match.start()] == 0:
            parts.append(text[start : match.start()].strip())
            start = match.end()
    return [*parts, text[start:].strip()]


def _depths(text: str) -> list[int]:
    """Bracket depth before each character."""
    depths, depth = [], 0
    for character in text:
        depths.append(depth)
        depth += (character in _OPENING) - (character in _CLOSING)
    return depths


def _enclosed(text: str) -> bool:
    """Whether the first and the last character of `text` enclose all of it."""
    depths = _depths(text)
    return len(text) > 2 and min(depths[1:]) > 0 and depths[-1] == 1


def _relation(text: str) -> tuple[list[str], list[str]] | None:
    """The sides and the signs of a relation or chain of them, None when there is none."""
    depths = _depths(text)
    matches = [m for m in _RELATION.finditer(text) if depths[m.start()] == 0]
    if not matches:
        return None
    edges = [0, *(edge for m in matches for edge in m.span()), len(text)]
    sides = [text[a:b].strip() for a, b in zip(edges[::2], edges[1::2], strict=True)]
    return sides, [_SPELLED.get(m[0], m[0]) for m in matches]


def _same_relation(
    a_text: str,
    b_text: str,
    a: tuple[list[str], list[str]] | None,
    b: tuple[list[str], list[str]] | None,
    same: Leaf,
    leaf: Leaf,
) -> bool:
    if a is None or b is None:
        stated, value = (a, b_text) if b is None else (b, a_text)
        return stated is not None and _states(stated, value, same)
    (a_sides, a_signs), (b_sides, b_signs) = a, b
    if r"\in" in a_signs + b_signs:
        return a_signs == b_signs and _all_same(a_sides, b_sides, same)
    if a_signs == b_signs and _all_same(a_sides, b_sides, same):
        return True
    if a_signs == [_FLIPPED[s] for s in reversed(b_signs)] and _all_same(a_sides, b_sides[::-1], same):
        return True
    if not a_signs == b_signs == ["="]:
        return False
    difference = _difference(a_sides)
    # Differences that are 0 whatever the variables are, as of 1 = 1, say nothing.
    return leaf(difference, _difference(b_sides)) and not leaf(difference, "0")


def _states(relation: tuple[list[str], list[str]], value: str, same: Leaf) -> bool:
    r"""Whether `x = … = value` or `1 + 1 = value` states `value`: every side but a leading variable equals it."""
    sides, signs = relation
    if set(signs) == {"="}:
        sides = sides[1:] if _VARIABLE.fullmatch(sides[0]) else sides
    elif signs == [r"\in"] and _VARIABLE.fullmatch(sides[0]):
        sides = sides[1:]
    else:
        return False
    return all(same(side, value) for side in sides)


def _all_same(a: Sequence[str], b: Sequence[str], same: Leaf) -> bool:
    return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))


def _difference(sides: Sequence[str]) -> str:
    ((left, right),) = pairwise(sides)
    return f"({left})-({right})"
