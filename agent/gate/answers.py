r"""Finding the final answer that a solution states: a box, a `####` line, or "the answer is".

The last number of a text is no stated answer and is never taken. Not here: comparing answers (`answer_checker`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from agent.gate.notation import closing
from agent.gate.quantities import SCALES, changes_value, read_quantity

AnswerSource = Literal["boxed", "hashes", "phrase"]

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_HASHES = re.compile(r"^[^\S\n]*####\s*(\S(?:.*\S)?)\s*$", re.MULTILINE)
# Atomic and possessive: where no end comes soon enough, other ways to read the same words are not tried.
_PHRASE = re.compile(
    r"""(?>(?:\b(?:final\s+)?answer\b(?P<about>\s+(?:to|of|for)\s[^.:\n]{1,80}?)?|\bответ\b)
        [*_\s]{0,6}+(?:\b(?:is|equals|равен|равна|равно)\b|[:=—]))[*_\s:]{0,6}+
        (?P<answer>[^\n]{0,300}?)(?:(?<!\s)[^\S\n]{1,20}+)?+(?=\.\s|\.[*_]*+$|\n|$)""",
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
# Before an answer phrase, in its sentence: it is supposed, denied, checked or somebody else's.
_NOT_MEANT = re.compile(
    r"\b(?:if|suppose|assum\w+|whether|check\w*|verif\w+|wrong|incorrect|false|not|isn't|never|cannot|can't"
    r"|если|пусть|предполож\w+|провер\w+|неверн\w+|неправильн\w+|не)\b[^.!?\n]*$",
    re.IGNORECASE,
)
# Right before a box: it is denied, or the answer is only supposed.
_DENIED = re.compile(
    r"(?:\b(?:not|never|cannot|wrong|incorrect|false|не|неверн\w+|неправильн\w+)|n't)\b(?:[^\w,.;:()]+\w+){0,2}[^\w,.;:()]*$"
    r"|\\neq?[\s$]*$|≠[\s$]*$"
    r"|\b(?:impossible|nobody|no one|common (?:error|mistake)|невозможно|никто)\b[^.!?\n]*$"
    r"|\b(?:if|suppose|assum\w+|whether|если|пусть)\s+(?:that\s+)?(?:the\s+|my\s+)?(?:final\s+)?(?:answer|ответ)\b[^.!?\n]*$",
    re.IGNORECASE,
)
_NO_ANSWER = re.compile(
    r"(?:also |indeed |therefore )?(?:correct|right|valid|verified|reasonable|consistent|верн\w+|правильн\w+)\b.*",
    re.IGNORECASE,
)
# Right before a box: it is a bound, or an operand of what stands there.
_BOX_LEADS_ON = re.compile(
    r"\b(?:(?:less|fewer|more|greater|smaller|larger|bigger|lower|higher) than|at (?:most|least)|about|around|roughly"
    r"|approximately|nearly|almost|twice|double|triple|half(?: of)?|minus|negative|anything but|except|up to|below"
    r"|above|меньше|больше|менее|более|около|примерно|почти|минус|вдвое)[\s$*({]*$"
    r"|[\d)}]\s*(?:[*/×·÷^+−-]|\\(?:cdot|times|div))(?:[\s$({]|\\[,;:!])*$|(?:^|[\s$({=])[−-]\$?$|\d\$?$"
    # A minus further off, where it can be no dash of the prose and no mark of a list.
    r"|(?:[=({$]|\b(?:is|equals|be))(?:[^\S\n]|\\[,;:!])*[−–-](?:[^\S\n]|[$({]|\\[,;:!])*$"
    r"|\s(?:[<>≤≥]|\\(?:le|ge|lt|gt)q?)\s*\$?$|\\(?:sqrt|[dt]?frac(?:\{[^{}]*\})?)\s*\{\s*$"
    r"|\^\s*$|[\^_]\s*\{\s*$|(?:\\pi|\\sqrt\s*\{[^{}]*\}|\\[dt]?frac\{[^{}]*\}\{[^{}]*\})[^\S\n]*$",
    re.IGNORECASE,
)
# Right after a box: it goes on as an expression or as another number.
_BOX_GOES_ON = re.compile(
    rf"\A(?:[\d^!]|[.,]\d|[\s$]*(?:[-−+/×·÷=<>^]|\*(?!\*)|\\(?:cdot|times|div))\s*[\d(]|[\s$*]*(?:{SCALES})\b)",
    re.IGNORECASE,
)
# What stands next to a box, after closing delimiters and spaces: the words of a \text, a command, or a word.
_WORD = r"[^\W\d_]++(?!\.[a-zA-Z])"  # no abbreviation: p.m.
_NEXT = re.compile(
    r"(?:[$}]|\\\))*+(?P<space>(?:[^\S\n]|[$}~]|\\[,;:!) ]|\\q?quad(?![a-zA-Z]))*+)"
    r"(?:\\(?:text(?:bf|it|rm|normal)?|math(?:rm|bf|it)|mbox)\s*\{(?P<text>[^{}]*)|\\(?P<command>[a-zA-Z]+)"
    rf"|(?P<word>{_WORD}|√))"
)
_MULTIPLIES = re.compile(
    "pi|sqrt|[dt]?frac|cdot|times|alpha|beta|gamma|delta|theta|lambda|sigma|tau|phi|omega|ln|log|sin|cos|tan"
)
_PERCENT_AFTER = re.compile(
    r"\A(?:[\s$~]|\\[,;:! ])*(?:\\(?:text|mathrm|mbox)\s*\{\s*)?(?:\\?%|percent\b|процент\w*)", re.IGNORECASE
)
# After the answer: it is taken back wherever this stands, or given a rival where this follows at once.
_TAKEN_BACK = re.compile(
    r"\b(?:wait|hold on|hmm+|oops|actually|correction|corrected|mistake|mistaken|wrong|incorrect|should be"
    r"|should have been|let me (?:re|double|check)|re-?check|reconsider|sorry|scratch"
    r"|(?:just|only) (?:kidding|joking)|(?:take|taking|took) (?:it|that|this) back"
    r"|make (?:that|it) (?:an? )?\$?\d{1,30}|on second thoughts?|misspoke|never ?mind"
    r"|подожд\w+|погод\w+|на самом деле|ошиб\w+|неверн\w+|неправильн\w+|исправ\w+|точнее|вернее)\b"
    r"|\A[^.!?\n]*\b(?:but|however|or|not|instead|rather|alternatively|no|однако|или|но|не|либо)\b"
    r"|\A[^.!?\n]*(?<![.!?$)\]}\s\\])[.!?$)\]}\s\\]+(?:but|however|or|no|однако|или|но|нет)\b"
    r"|\A[\s$)\]*]*\?|\A\W*(?:\w+\W+)?(?:(?:is|are|was|could|would|does|do|must)n['’]t|can(?:['’]t|not))\b"
    r"|\A[^.!?\n]*(?:\b(?:is|are|seems|looks|be)|[-—,:])\s+(?:\w+\s+)?(?:false|untrue|impossible|nonsense|absurd|silly"
    r"|too\s\w+)\b",
    re.IGNORECASE,
)
# After the answer: another one, without the word. A number and one word for what it counts, no longer formula.
_RIVAL = re.compile(
    r"\b(?:final|correct|right|true)\s(?:answer|result|total|value|number|amount|sum|count|solution)"
    r"\s(?:is|was|equals|must be|would be|has to be)\s(?:actually\s|really\s|in fact\s)?"
    r"\$?(?P<answer>\d(?:[\d,.]{0,40}\d)?)(?=\$?(?:\s[a-z]{1,20})?[^\S\n]{0,3}(?:[.!)](?!\d)|[,;](?!\s?\d)|\n|\Z))",
    re.IGNORECASE,
)

# Anywhere: a number is said not to be the answer.
_NOT_THE_ANSWER = re.compile(
    r"\banswer\s(?:to\s[^.!?\n]{1,40}?\s)?(?:(?:is|was)(?:\snot|n['’]t)|cannot be|can['’]t be)\s[$*_\\({]{0,3}\d"
    r"|\bответ\s(?:[—–-]\s)?не\s[$*_\\({]{0,3}\d",
    re.IGNORECASE,
)

_REASON = re.compile(r",?\s+(?:because|since|as|потому|так как)\b.*|[,:;].*", re.DOTALL | re.IGNORECASE)
_DIGIT = re.compile(r"\d")


@dataclass(frozen=True, slots=True)
class ExtractedAnswer:
    r"""A stated final answer.

    Attributes:
        text: the answer as typeset, without its box or phrase.
        source: where it was found.
        rivals: the other final answers that the same text states; the text contradicts itself unless all equal `text`.
        retracted: what follows the answer takes it back ("Wait, …"), what precedes it denies it, or a number is said
            not to be the answer.
        partial: it is an operand or a bound of what stands there: `x > \boxed{42}`, `\boxed{42} thousand`.
        end: where it ends in the text.
        goes_on: it is only said in passing: later lines reckon on. A box or a `####` line is final wherever it stands.
    """

    text: str
    source: AnswerSource
    rivals: tuple[str, ...] = ()
    retracted: bool = False
    partial: bool = False
    goes_on: bool = False
    end: int = 0


def extract_answer(text: str) -> ExtractedAnswer | None:
    r"""The final answer of `text`: its last box, else its last `####` line, else its last answer phrase.

    None when there is none, or when the last box never closes. Statements after the answer, earlier ones that call a
    plain quantity the answer, and boxes and `####` lines anywhere, are its rivals.
    """
    boxed = list(boxes(text))
    if boxed and boxed[-1][2] is None:
        return None
    text_end = len(text.rstrip())
    hashes = [(m.start(), m.end(), m[1]) for m in _HASHES.finditer(text) if _is_answer_line(m, text_end)]
    stated = [
        m
        for m in _PHRASE.finditer(text)
        if not _BOX.search(m["answer"]) and not _NO_ANSWER.match(m["answer"]) and not not_meant(text, m.start())
    ]
    phrases = [(m.start(), m.end(), m["answer"]) for m in stated]
    outright = [(m.start(), m.end(), quantity) for m in stated if (quantity := _outright(m))]
    sources: tuple[tuple[AnswerSource, list[tuple[int, int, str]]], ...] = (
        ("boxed", [(a, b, c) for a, b, c in boxed if c is not None]),
        ("hashes", hashes),
        ("phrase", phrases),
    )
    source, found = next(((name, items) for name, items in sources if items), ("phrase", []))
    if not found:
        return None
    start, end, answer = found[-1]
    others = [*sources[0][1], *hashes, *(p for p in phrases if p[0] > start), *(p for p in outright if p[0] < start)]
    others += [(m.start(), m.end(), m["answer"]) for m in _RIVAL.finditer(text, end)]
    rivals = tuple(dict.fromkeys(other.strip() for a, _, other in others if a != start and other.strip() != answer))
    partial = False
    if source == "boxed":
        before = text[max(0, start - 80) : start]
        if percent := _PERCENT_AFTER.search(text[end:]):
            answer, end = f"{answer}\\%", end + percent.end()
        partial = bool(_BOX_LEADS_ON.search(before)) or _goes_on(text[end:])
    last = max([end, *(b for _, b, _ in others)])
    return ExtractedAnswer(
        text=answer.strip(),
        source=source,
        rivals=rivals,
        retracted=_denied(text, start)
        or _NOT_THE_ANSWER.search(text) is not None
        or taken_back(text[end if source == "boxed" else last :]),
        partial=partial,
        goes_on=source == "phrase" and _later_number(text, end),
        end=end,
    )


def _goes_on(tail: str) -> bool:
    r"""Whether `tail`, which follows a box, makes another number of what is in it: `k`, `\pi`, `\text{ thousand}`."""
    if _BOX_GOES_ON.search(tail):
        return True
    following = _NEXT.match(tail)
    if following is None:
        return False
    if following["command"]:
        return _MULTIPLIES.fullmatch(following["command"]) is not None
    if following["text"] is not None:
        first = re.match(rf"\s*({_WORD})", following["text"])
        return first is not None and (_is_factor(first[1]) or (changes_value(first[1]) and first[1] != "in"))  # inches
    if following["space"]:
        return _is_factor(following["word"])
    return len(following["word"]) == 1 and read_quantity(f"1{following['word']}") is None  # glued to the box: K, x


def _is_factor(word: str) -> bool:
    """Whether a word after a number is a variable: a small letter that is neither a unit nor a word."""
    return re.fullmatch(r"[b-z√]", word) is not None and read_quantity(f"1 {word}") is None


def _later_number(text: str, end: int) -> bool:
    """Whether a line after the one in which the answer ends has a digit."""
    newline = text.find("\n", end)
    return newline >= 0 and _DIGIT.search(text, newline) is not None


def _outright(match: re.Match[str]) -> str | None:
    """The plain quantity that a phrase calls the answer, and not the answer to some part; None for anything else."""
    quantity = _REASON.sub("", match["answer"]).strip("$ .*_")
    return quantity if not match["about"] and read_quantity(quantity) is not None else None


def reference_answer(expert: str) -> str | None:
    r"""The final answer of an expert solution: box or `####`, or an answer phrase that states a plain quantity."""
    found = extract_answer(expert)
    if found is None or (found.source == "phrase" and read_quantity(found.text) is None):
        return None
    return found.text


def boxes(text: str) -> Iterator[tuple[int, int, str | None]]:
    """Start, end and content of every outermost box; content None for one that never closes."""
    position = 0
    while match := _BOX.search(text, position):
        end = closing(text, match.end() - 1)
        if end < 0:
            yield match.start(), len(text), None
            return
        yield match.start(), end + 1, text[match.end() : end]
        position = end + 1


def _is_answer_line(match: re.Match[str], text_end: int) -> bool:
    """Whether a `####` line is an answer and no markdown heading: a plain quantity, or what the text ends with."""
    return match.end() >= text_end or read_quantity(match[1].strip("$ .")) is not None


def without_answers(text: str) -> str:
    """`text` without what is stated in it as the answer in words, but for statements that reckon."""
    return _PHRASE.sub(lambda stated: stated[0] if "=" in stated["answer"] else " ", text)


def not_meant(text: str, start: int) -> bool:
    """Whether the words before the statement at `start` suppose it, deny it or give it to somebody else."""
    return bool(_NOT_MEANT.search(text, max(0, start - 80), start))


def _denied(text: str, start: int) -> bool:
    return bool(_DENIED.search(text, max(0, start - 80), start))


def taken_back(tail: str) -> bool:
    """Whether `tail`, which follows a stated answer, takes it back or offers another."""
    return bool(_TAKEN_BACK.search(tail))
