"""The `math_answer` check: the stated final answer of a solution equals the reference.

The same check decides in the gate and in evaluation. Not here: finding the stated answer (`answers`), comparing
(`answer_checker`).
"""

from __future__ import annotations

import re

from agent.demonstrations import Demonstration
from agent.gate.answer_checker import AnswerChecker
from agent.gate.answers import extract_answer
from agent.records import Check

_NAME = "math_answer"
# "20% of" and "ten percent of" in the question ask for no percentage.
_PERCENT = re.compile(
    r"(?P<number>\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w{1,20}teen"
    r"|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|half"
    r"|од(?:ин|на|но|ного|ной)|дв(?:а|е|ух)|тр(?:и|[её]х)|четыр(?:е|[её]х)|вос(?:емь|ьми|емнадцат\w|емьдесят|ьмидесяти)"
    r"|(?:пят|шест|сем|девят|десят)(?:ь|и|надцат\w|[ьи]десят\w?)|(?:дв[ае]|три|четыр)(?:надцат|дцат)\w|сорока?|ст[оа])"
    r"[\s-])?(?<!\d)(?<!\d[\s\\])(?:\bpercent(?:age)?\b|%|\bпроцент\w*)",
    re.IGNORECASE,
)


def percent_asked(demonstration: Demonstration) -> bool:
    """Whether the question wants a percentage, so that 50% means 50 and not 0.5: its last sentence names one."""
    question = demonstration.question.rstrip()
    end = len(question) - 1
    begin = max(question.rfind(mark, 0, max(end, 0)) for mark in ".?!") + 1
    return question.endswith("?") and any(not m["number"] for m in _PERCENT.finditer(question, begin, end))


async def check_math_answer(
    answers: AnswerChecker, demonstration: Demonstration, reference: str, candidate: str
) -> Check:
    """Whether `candidate` states an answer, one only, stands by it, and it equals `reference`."""
    stated = extract_answer(candidate)
    if stated is None:
        return Check(_NAME, False, r"states no final answer: no \boxed{}, no ####, no \"the answer is\"")
    if stated.retracted:
        return Check(_NAME, False, f"takes its answer {stated.text[:60]!r} back")
    if stated.partial:
        return Check(_NAME, False, f"boxes {stated.text[:60]!r}, which is not all of what it says there")
    if stated.goes_on:
        return Check(_NAME, False, f"reckons on after its answer {stated.text[:60]!r}")
    percent = percent_asked(demonstration)
    compared = await answers.equal(stated.text, reference, percent_asked=percent)
    if not compared.equal:
        return Check(_NAME, False, compared.detail)
    for rival in stated.rivals:
        if not (await answers.equal(rival, stated.text, percent_asked=percent)).equal:
            return Check(_NAME, False, f"contradicts itself: {stated.text[:60]!r} and {rival[:60]!r}")
    return Check(_NAME, True, compared.detail)
