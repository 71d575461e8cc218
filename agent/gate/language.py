"""Whether a candidate is written in the language of the expert, as far as script and function words tell.

Script: the letters' Unicode script, by share. Language: function words that only one of a few languages has, for the
languages that share a script. Formulas, code and web addresses are left out, and single Latin or Greek letters, which
are variables. Texts too short to judge pass. Not here: languages without a word list (two of them in one script are
not told apart), an expert too terse for function words, and a closing phrase in another language under a faithful text.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from agent.records import Check

_MAX_CHARACTERS = 20_000
# What opens is looked for to its end only so far: a text of openings alone would be read once for each.
_NO_PROSE = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.*?\$\$|\$(?![\d\s])[^$\n]*\$|\\\((?:(?!\\\().)*?\\\)|\\\[(?:(?!\\\[).)*?\\\]"
    r"|\\begin\{(\w{1,20}\*?)\}.{0,2000}?\\end\{\1\}|\\[a-zA-Z]+|<[/a-zA-Z][^<>\n]*>|https?://\S+"
    r"|(?<![\w.+-])[\w.+-]++@[\w-]+\.\w+|\b\w+\.\w+\b",
    re.DOTALL,
)
_WORD = re.compile(r"[^\W\d_]+")

_ENOUGH_LETTERS = 4  # an expert with fewer is formulas and unit signs: its question tells the language
_FOREIGN_LETTERS = 10  # "The answer is" has eleven
_FOREIGN_SHARE = 0.3
_MIXED_WORDS = 2  # one may be a blend, as "smsка"
_KANA_SHARE = 0.05  # Chinese characters among this much kana are Japanese

# Function words in one list are in no other, and are no common words or names in the languages of the others:
# left out are English "die" and "war", Dutch "van" and "met", Spanish "son" and "hay", and their like.
_FUNCTION_WORDS = {
    "English": "the and are with this that what how many she he they his from each for have has it does by were been",
    "German": "der und ist nicht sie ein eine einen einer für auf sind dann wenn viele jeder jede zu dem wir durch aus"
    " wird wurde insgesamt",
    "Dutch": "het een niet zijn hoeveel voor wij zij elke ook maar naar wordt heeft hebben deze dus bij aan uit",
    "French": "les est et une dans avec combien chaque sont elle nous cette donc pas ont aux leur ils alors",
    "Spanish": "el los las cuántos cuántas muy pero entonces tiene más fue también sus ella ellos hasta desde cuando",
    "Italian": "di che gli della delle dei nel nella sono quanti quante ogni anche più questo questa quindi alla",
    "Portuguese": "não uma são então ele ela quantos quantas também ao pelo pela seu sua isso tem foi muito",
    "Russian": "и что это как его он она они был если чтобы или из сколько каждый ещё",
    "Ukrainian": "і що це як його вона вони був якщо щоб або із від скільки кожен ще",
}
_LANGUAGE_OF = {word: language for language, words in _FUNCTION_WORDS.items() for word in words.split()}
_LEAST_HITS, _LEAST_DISTINCT = 4, 3
_LEAST_HITS_EXPERT = 2  # a terse expert has few function words; the candidate's own evidence carries the verdict
_LEAD = 4


def check_language(candidate: str, expert: str, question: str) -> Check:
    """The candidate's scripts and function words against the expert's, or the question's where the expert is formulas.

    Args:
        candidate: the text to judge.
        expert: the completion it is to replace.
        question: the last user turn; its words in a second script (names, brands) are never held against a candidate.
    """
    asked, theirs = _words(question), _words(expert)
    if sum(map(len, theirs)) < _ENOUGH_LETTERS:
        theirs = asked
    ours = _words(candidate)
    if sum(map(len, theirs)) < _ENOUGH_LETTERS:
        return Check("language", True, "too little prose to judge by")
    problem = _lookalikes(ours, theirs) or _other_script(ours, theirs, _names(asked)) or _other_language(ours, theirs)
    return Check("language", problem is None, problem or "as the expert's")


def _words(text: str) -> list[str]:
    """The words of the prose in `text`, in lower case; variables of one letter are none."""
    prose = _NO_PROSE.sub(" ", unicodedata.normalize("NFKC", text[:_MAX_CHARACTERS]))
    words = _WORD.findall(prose.casefold())
    return [word for word in words if len(word) > 1 or _script(word) not in {"LATIN", "GREEK"}]


@lru_cache(maxsize=8192)
def _script(letter: str) -> str:
    """The first word of the letter's Unicode name, which names its script."""
    return re.split(r"[ -]", unicodedata.name(letter, "UNKNOWN"), maxsplit=1)[0]


def _scripts(words: Sequence[str]) -> Counter[str]:
    """Letters by script; Japanese counts as one, whatever it mixes."""
    letters: Counter[str] = Counter()
    for word in words:
        if word.isascii():
            letters["LATIN"] += len(word)
        else:
            letters.update(map(_script, word))
    kana = letters["HIRAGANA"] + letters["KATAKANA"]
    if kana and kana >= _KANA_SHARE * (kana + letters["CJK"]):
        letters["JAPANESE"] = kana + letters.pop("CJK", 0)
        del letters["HIRAGANA"], letters["KATAKANA"]
    return +letters


def _names(words: Sequence[str]) -> frozenset[str]:
    """Words in another script than most of `words`."""
    scripts = _scripts(words)
    if len(scripts) < 2:
        return frozenset()
    main = scripts.most_common(1)[0][0]
    return frozenset(word for word in words if main not in _scripts([word]))


def _other_script(ours: Sequence[str], theirs: Sequence[str], names: frozenset[str]) -> str | None:
    """Letters beyond the shares that the scripts have in `theirs`: many, and a large part of `ours`."""
    found, model = _scripts([word for word in ours if word not in names]), _scripts(theirs)
    total, total_model = found.total(), model.total()
    beyond = {script: count - total * model[script] / total_model for script, count in found.items()}
    excess = sum(count for count in beyond.values() if count > 0)
    if excess < _FOREIGN_LETTERS or excess <= _FOREIGN_SHARE * total:
        return None
    most = max(beyond, key=lambda script: beyond[script])
    expected = model.most_common(1)[0][0]
    return f"{found[most] / total:.0%} of the letters are {most}; the expert writes {expected}"


def _lookalikes(ours: Sequence[str], theirs: Sequence[str]) -> str | None:
    """Words that mix Latin and Cyrillic letters pass for others under the eye and slip by every pattern."""
    mixed = sorted(_mixed(ours))
    if len(mixed) >= _MIXED_WORDS > len(_mixed(theirs)):
        return f"letters of two scripts in one word: {mixed[0]!r}"
    return None


def _mixed(words: Sequence[str]) -> set[str]:
    return {word for word in words if not word.isascii() and {"LATIN", "CYRILLIC"} <= _scripts([word]).keys()}


def _other_language(ours: Sequence[str], theirs: Sequence[str]) -> str | None:
    expected, found = _language(theirs, _LEAST_HITS_EXPERT), _language(ours, _LEAST_HITS)
    if expected is None or found is None or found == expected:
        return None
    return f"written in {found}; the expert writes {expected}"


def _language(words: Sequence[str], least_hits: int) -> str | None:
    """The language whose function words stand alone in `words`, None where the evidence is thin or mixed."""
    hits = Counter(_LANGUAGE_OF[word] for word in words if word in _LANGUAGE_OF)
    if not hits:
        return None
    (language, count), *others = hits.most_common(2)
    distinct = len({word for word in words if _LANGUAGE_OF.get(word) == language})
    if count < least_hits or distinct < min(_LEAST_DISTINCT, least_hits):
        return None
    return language if count >= _LEAD * sum(n for _, n in others) else None
