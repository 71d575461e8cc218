"""Multiple choice: the one letter that a solution states.

Not here: whether the reasoning fits the letter.
"""

from __future__ import annotations

import re

from agent.gate.answers import boxes, not_meant, taken_back
from agent.gate.equivalence import MAX_CHARS
from agent.gate.notation import plain
from agent.records import Check

# Prompts come from anywhere, so repetitions here are possessive or bounded: none may take the event loop for seconds.
_LINE_OPTION = re.compile(r"^[^\S\n]*+(?:[-*][^\S\n]*+)?\(?([A-JА-Д])\s?[).:]\s*+\S", re.MULTILINE)
_INLINE_OPTION = re.compile(r"(?:^|\s)\(([A-JА-Д])\)\s*\S|(?:^|\s)([A-JА-Д])\)\s*\S", re.MULTILINE)
_LETTER = r"[A-JА-Д]"
_ALONE = re.compile(rf"\W*({_LETTER})\W*")
_LETTER_FIRST = re.compile(rf"\(?({_LETTER})(?:[).:]\s*\S.*|\)?)", re.DOTALL)
_STATED = re.compile(
    rf"""\b(?i:answer|option|choice|ответ|вариант)\b
         (?i:\s+(?:is|to\s[^.\n]{{1,80}}?\sis|letter|option|choice|номер|под\s+буквой)){{0,3}}
         [*_\s]{{0,4}}(?:равен\b|[:=—-])?[*_\s:$]*
         (?:\(({_LETTER})\)|\\text\{{\(?({_LETTER})\)?\}}
           |({_LETTER})(?=[*_$]*(?:[.,:;)!]|\s*$|\s+because\b|\s+is\s+correct)))""",
    re.VERBOSE | re.MULTILINE,
)


def options(prompt: str) -> frozenset[str]:
    """The letters of the options that a prompt lists; empty when it lists fewer than two."""
    lines = set(_LINE_OPTION.findall(prompt))
    inline = {a or b for a, b in _INLINE_OPTION.findall(prompt)}
    found = max(lines, inline, key=len)
    return frozenset(found) if len(found) >= 2 else frozenset()


def option_letter(text: str) -> str | None:
    """The letter when `text` is one and nothing else, as a reference answer is: `B`, `(B)`, `B.`."""
    match = _ALONE.fullmatch(plain(text)) if len(text) <= MAX_CHARS else None
    return match[1] if match else None


def stated_letters(text: str) -> list[tuple[int, str]]:
    """Every option letter that a solution states as its answer, in order, each after the index where it ends.

    A box that holds something else than a letter, or a letter and its option's text, counts as the letter "?".
    """
    if alone := option_letter(text):
        return [(len(text), alone)]
    found = []
    for _, end, content in boxes(text):
        match = _LETTER_FIRST.fullmatch(plain(content or ""))
        found.append((end, match[1] if match else "?"))
    found += [(m.end(), m[1] or m[2] or m[3]) for m in _STATED.finditer(text) if not not_meant(text, m.start())]
    if not found and (first := re.match(rf"\s*\(?({_LETTER})[).]\s+\S", text)):
        found.append((first.end(1), first[1]))
    return sorted(found)


def check_choice(candidate: str, reference: str, allowed: frozenset[str]) -> Check:
    """Whether the candidate states the reference letter, one of `allowed` (any when empty), and no other."""
    found = stated_letters(candidate)
    letters = list(dict.fromkeys(letter for _, letter in found))
    if not letters:
        return Check("choice", False, "states no option letter")
    if len(letters) > 1:
        return Check("choice", False, f"contradicts itself: {', '.join(letters)}")
    if allowed and letters[0] not in allowed:
        return Check("choice", False, f"{letters[0]} is none of the options {', '.join(sorted(allowed))}")
    if taken_back(candidate[found[-1][0] :]):
        return Check("choice", False, f"takes {letters[0]} back")
    same = letters[0] == reference
    return Check("choice", same, f"{letters[0]} {'=' if same else '≠'} {reference}")
