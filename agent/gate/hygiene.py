"""Whether a candidate is a clean, complete answer at all, whatever its task: pure text checks, cheapest first.

Covers emptiness, the missing end of turn, length, chat-control tokens, hidden characters, leaks of the
rewriting task and repetition loops. Not here: whether the answer is right.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from agent.records import Check
from agent.settings import GateSettings

# A candidate may always be this long: an expert as terse as "48/2=24 #### 24" sets no limit to a spelled-out solution.
ROOM_CHARS = 1500

_LOOKALIKES = str.maketrans("│┃ǀ∣‹›〈〉▁", "||||<><>_")
_CONTROL = re.compile(
    r"<\s?\|\s?/?[a-zA-Z][\w.\- ]{1,40}?\s?\|\s?>|<\s?/?(?:s|bos|eos|pad|unk)>|<\s?(?:start|end)_of_turn\s?>"
    r"|\[\s?/?\s?INST\s?\]|<<\s?/?SYS\s?>>"
    # Of models that learned from code, the embedded one among them. Not just any word: tasks have HTML.
    r"|<\s?(?:file_sep|gh_stars|issue_(?:start|comment|closed)"
    r"|jupyter_(?:start|text|code|output|script)|empty_output|fim_(?:prefix|middle|suffix|pad))\s?>"
)
# Control characters, what stands for bytes that were no text, private use, bidirectional overrides, tags.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ue000-\uf8ff\ufffd\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]"
)
_SOLUTION = r"(?:solution|answer|explanation|demonstration|response|reasoning|text)"
# Each names the task the writer was given, or talks to whoever gave it. A phrase that the expert uses too is no leak.
_LEAKS = (
    re.compile(
        rf"\b(?:given|provided|expert(?:'s)?|reference|sample|original|ground[- ]truth)\s+(?!text){_SOLUTION}",
        re.IGNORECASE,
    ),
    re.compile(
        rf"\bre-?writ(?:e|es|ten|ing)\s+(?:of\s+)?(?:the\s+|this\s+|that\s+|your\s+|my\s+)?(?:\w+\s+)?(?:{_SOLUTION}|version)"
        rf"|\b(?:rephrased|paraphrased|revised)\s+(?:{_SOLUTION}|version)",
        re.IGNORECASE,
    ),
    re.compile(r"^[^\w\n]*re-?writ(?:e|ten|ing)\b(?:\W|$)", re.IGNORECASE | re.MULTILINE),
    re.compile(r"\b(?:i|i've|i have|i'll|i will|have been|has been|was)\s+re-?writ(?:e|ten)\b", re.IGNORECASE),
    re.compile(r"\bas an ai\b|\bas a (?:large )?language model\b", re.IGNORECASE),
    re.compile(r"\A\W*(?:sure|certainly|absolutely|of course|okay|ok|alright)\b[,!.:]", re.IGNORECASE),
    re.compile(
        rf"\A\W*here(?:'s| is| are)\s+(?:the|a|an|my|your|how|one)\b"
        rf"(?=[^.\n]{{0,60}}\b(?:{_SOLUTION}|version|step|breakdown|re-?writ|rephras|revis|simplif|correct))",
        re.IGNORECASE,
    ),
    re.compile(r"\bin my own words\b", re.IGNORECASE),
    re.compile(
        r"\b(?:according to|based on|as (?:stated|mentioned|said|given) in|using) (?:the|these|your|my) notes\b"
        r"|\b(?:the|these|your|my) notes (?:say|state|mention|tell|give|show)\b|<\s?/?\s?notes\s?>",
        re.IGNORECASE,
    ),
    re.compile(
        r"^[^\w\n]*(?:user|assistant|human|system|instruction|response|пользователь|ассистент)\W{0,3}:",
        re.IGNORECASE | re.MULTILINE,
    ),
)
_RUSSIAN_LEAKS = (
    re.compile(
        r"\b(?:данн\w+|исходн\w+|приведённ\w+|приведенн\w+|предоставленн\w+|эталонн\w+|экспертн\w+|образцов\w+)\s+"
        r"(?:решени\w+|ответ\w*|объяснени\w+)|\b(?:решени\w+|ответ\w*)\s+эксперта\b",
        re.IGNORECASE,
    ),
    re.compile(r"\bпереписанн\w+|\bперефразир\w+|\bперепи(?:шу|сал\w*|сать)\b", re.IGNORECASE),
    re.compile(r"\bкак\s+(?:ии|языковая модель|искусственный интеллект)\b", re.IGNORECASE),
    re.compile(r"\A\W*(?:конечно|разумеется|безусловно)\b[,!.:]", re.IGNORECASE),
    re.compile(r"\A\W*вот\s+(?:\w+\s+){0,3}(?:решение|ответ|объяснение|верси\w+)\b", re.IGNORECASE),
)

_LOOP_WORDS = 20  # a periodic stretch shorter than this may be style: "2 + 2 + 2 + 2"
_PHRASE_WORDS = 3  # unless this many different words come back in it
_MAX_PERIOD_WORDS = 80
_LOOP_LINES = 4
_SENTENCE_TIMES = 3
_NUMBERED_TIMES = 6  # an enumeration may go through a week's working days in the same words
_SENTENCE_END = re.compile(r"\n|(?<=[.!?;])\s")
_ITEM_MARK = re.compile(r"(?:[-*•]|\d{1,9}[.)])\s+")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_DENSE_WORD = re.compile(r"(\S{1,20}?)\1{19,}")


def check_hygiene(candidate: str, expert: str, settings: GateSettings, *, finished: bool = True) -> Check:
    """One check for everything that makes a text unusable whatever it says.

    Args:
        candidate: the text alone, without special tokens.
        expert: what it is to replace; sets the length and excuses phrases that it uses itself.
        settings: the length ratios.
        finished: whether the writer ended its turn, rather than running out of tokens.
    """
    seen = _fold(candidate)
    problem = (
        _empty(seen)
        or (None if finished else "cut off: no end-of-turn token")
        or _length(candidate, expert, settings)
        or _control(seen)
        or _hidden(candidate, expert)
        or _leak(seen, expert)
        or _loop(seen)
        or _said_again(seen, expert)
    )
    return Check("hygiene", problem is None, problem or "clean")


def _fold(text: str) -> str:
    """`text` with the characters that only look different, or do not show at all, made plain."""
    if text.isascii():
        return text
    folded = unicodedata.normalize("NFKC", text).translate(_LOOKALIKES).replace("’", "'")
    return "".join(c for c in folded if unicodedata.category(c) != "Cf")


def _empty(text: str) -> str | None:
    return None if any(c.isalnum() for c in text) else "empty"


def _length(candidate: str, expert: str, settings: GateSettings) -> str | None:
    """Length in characters, within the settings' ratios to the expert's, with `ROOM_CHARS` always allowed."""
    size, expert_size = len(candidate.strip()), len(expert.strip())
    longest = max(settings.max_length_ratio * expert_size, ROOM_CHARS)
    shortest = settings.min_length_ratio * expert_size
    if size > longest:
        return f"too long: {size} characters, at most {longest:.0f} for an expert of {expert_size}"
    if size < shortest:
        return f"too short: {size} characters, at least {shortest:.0f} for an expert of {expert_size}"
    return None


def _control(text: str) -> str | None:
    match = _CONTROL.search(text)
    return f"chat-control token {match[0]!r}" if match else None


def _hidden(candidate: str, expert: str) -> str | None:
    """A character that no text has, or one that hides what is read or turns it round; the expert's own are excused."""
    found = sorted(set(_HIDDEN.findall(candidate)) - set(expert))
    return f"has the character U+{ord(found[0]):04X}" if found else None


def _leak(text: str, expert: str) -> str | None:
    for pattern in _LEAKS if text.isascii() else _LEAKS + _RUSSIAN_LEAKS:
        match = pattern.search(text)
        if match and not pattern.search(_fold(expert)):
            return f"leaks the task: {' '.join(match[0].split())!r}"
    return None


def _loop(text: str) -> str | None:
    return _line_loop(text) or _word_loop(text) or _dense_loop(text)


def _line_loop(text: str) -> str | None:
    """The same line `_LOOP_LINES` times on end, or most of the lines being one line."""
    lines = [line.strip() for line in text.splitlines() if any(c.isalnum() for c in line)]
    run = 1
    for previous, line in pairwise(lines):
        run = run + 1 if line == previous else 1
        if run >= _LOOP_LINES:
            return f"repeats the line {line[:40]!r}"
    if len(lines) >= 2 * _LOOP_LINES:
        line, count = Counter(lines).most_common(1)[0]
        if 2 * count >= len(lines):
            return f"repeats the line {line[:40]!r}"
    return None


def _said_again(text: str, expert: str) -> str | None:
    """A sentence twice on end, three times in all, or six times with only its numbers changed.

    Nothing where the expert does the same: a refrain, a table.
    """
    sentence = _repeated_sentence(text)
    if sentence is None or _repeated_sentence(_fold(expert)) is not None:
        return None
    return f"says again {sentence[:40]!r}"


def _repeated_sentence(text: str) -> str | None:
    stripped = (_ITEM_MARK.sub("", part.strip(), count=1) for part in _SENTENCE_END.split(text.casefold()))
    sentences = [" ".join(part.strip(" .,:;!?*").split()) for part in stripped]
    sentences = [sentence for sentence in sentences if _counts(sentence.split())]
    for previous, sentence in pairwise(sentences):
        if sentence == previous:
            return sentence
    for counted, times in ((sentences, _SENTENCE_TIMES), (map(_without_numbers, sentences), _NUMBERED_TIMES)):
        for sentence, count in Counter(counted).most_common(1):
            if count >= times:
                return sentence
    return None


def _without_numbers(sentence: str) -> str:
    return _NUMBER.sub("#", sentence)


def _counts(words: Sequence[str]) -> bool:
    """Whether there are enough different words among `words`, numbers, signs and variables aside, for a phrase."""
    distinct = {word.strip(".,:;!?*") for word in words}
    return sum(len(word) > 1 and word.isalpha() for word in distinct) >= _PHRASE_WORDS


def _word_loop(text: str) -> str | None:
    """A phrase of p words said three times on end or more: words[i] = words[i - p] over 2p words.

    Over `_LOOP_WORDS` words at least, unless the phrase has words enough to be one.
    """
    words = text.split()
    positions: dict[str, list[int]] = {}
    runs: dict[int, tuple[int, int]] = {}  # period: where its run of equal words ended last, and how long it was
    for i, word in enumerate(words):
        seen = positions.setdefault(word, [])
        for j in reversed(seen):
            period = i - j
            if period > _MAX_PERIOD_WORDS:
                break
            end, length = runs.get(period, (-1, 0))
            length = length + 1 if end == i - 1 else 1
            runs[period] = (i, length)
            if length >= 2 * period and (length >= _LOOP_WORDS or _counts(words[j + 1 : i + 1])):
                return f"repeats {' '.join(words[j + 1 : i + 1])[:40]!r}"
        seen.append(i)
    return None


def _dense_loop(text: str) -> str | None:
    """A stretch without spaces that says one thing twenty times."""
    for word in text.split():
        if len(word) >= 40:
            match = _DENSE_WORD.search(word[:2000])
            if match and any(c.isalnum() for c in match[1]) and set(match[1]) != {"0"}:
                return f"repeats {match[1]!r}"
    return None
