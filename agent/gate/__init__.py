"""The gate: whether a candidate may stand in for the expert's completion of a demonstration.

A verdict is a conjunction of checks, cheapest first, and stops at the first that fails:
`hygiene` and `language`, then the checks of the task (`math_answer`, `arithmetic`,
`grounding` and `steps`; `choice`; or `text`), then `reasoning` when a judge is given.
Each check lives in a module of its own.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from fractions import Fraction

from agent.demonstrations import Demonstration
from agent.exceptions import GateError
from agent.gate.answer_checker import AnswerChecker
from agent.gate.answers import extract_answer, reference_answer
from agent.gate.arithmetic import check_arithmetic
from agent.gate.choice import check_choice, option_letter, options, stated_letters
from agent.gate.grounding import check_grounding
from agent.gate.hygiene import check_hygiene
from agent.gate.language import check_language
from agent.gate.math_answer import check_math_answer
from agent.gate.reasoning import ReasoningJudge
from agent.gate.similarity import TextCheck
from agent.gate.steps import check_steps
from agent.records import Check, Verdict
from agent.settings import GateSettings

_NUMBER = re.compile(r"-?\d{1,30}(?:\.\d{1,30})?")

TASKS = ("math", "choice", "text")


class Gate:
    """Checks candidates; safe to share between concurrent tasks and event loops. Close it when done."""

    def __init__(self, settings: GateSettings, *, judge: ReasoningJudge | None = None) -> None:
        self._settings = settings
        self._judge = judge
        self._answers = AnswerChecker(settings.math_timeout_s, settings.math_workers)
        self._text = TextCheck(settings.text_model, settings.text_threshold)

    async def check(self, demonstration: Demonstration, candidate: str, *, finished: bool = True) -> Verdict:
        """The verdict on one candidate.

        Args:
            demonstration: what the candidate is to replace the completion of.
            candidate: text without special tokens.
            finished: whether the candidate ended its turn by itself.

        Raises:
            GateError: see `task_of`.
            ModelError: the embedding model of a `text` task cannot be loaded.
        """
        task = task_of(demonstration)
        checks: list[Check] = []
        async for check in self._checks(task, demonstration, candidate, finished=finished):
            checks.append(check)
            if not check.passed:
                break
        return Verdict(all(c.passed for c in checks), tuple(checks))

    def may_pass(self, demonstration: Demonstration, beginning: str) -> bool:
        """Whether the sums and the numbers of a beginning stand as they are; of other tasks, always.

        No continuation mends a false sum or an operand out of nowhere. One that works out a number which the prose
        told before would mend that; such a beginning is refused all the same.

        Args:
            demonstration: as in `check`.
            beginning: whole sentences.

        Raises:
            GateError: see `task_of`.
        """
        if task_of(demonstration) != "math" or not self._settings.arithmetic:
            return True
        return (
            check_arithmetic(beginning, demonstration.expert, None).passed
            and check_grounding(beginning, demonstration.expert, _prompt(demonstration)).passed
        )

    async def aclose(self) -> None:
        """End the worker processes and threads, after what is under way."""
        await asyncio.to_thread(self._answers.close)
        await asyncio.to_thread(self._text.close)

    async def _checks(
        self, task: str, demonstration: Demonstration, candidate: str, *, finished: bool
    ) -> AsyncIterator[Check]:
        yield check_hygiene(candidate, demonstration.expert, self._settings, finished=finished)
        if self._settings.language:
            yield check_language(candidate, demonstration.expert, demonstration.question)
        if task == "text":
            yield await self._text(candidate, demonstration.expert)
        elif task == "choice":
            letter = _letter(expected_answer(demonstration)) or ""
            yield check_choice(candidate, letter, options(_prompt(demonstration)))
        else:
            reference = expected_answer(demonstration) or ""
            yield await check_math_answer(self._answers, demonstration, reference, candidate)
            if self._settings.arithmetic:
                yield check_arithmetic(candidate, demonstration.expert, _plain_number(reference))
                yield check_grounding(candidate, demonstration.expert, _prompt(demonstration))
            if self._settings.steps:
                yield check_steps(candidate, demonstration.expert)
        if self._judge is not None:
            yield await self._judge(demonstration, candidate)


def task_of(demonstration: Demonstration) -> str:
    """Which task's check applies: the row's own `task`, else what the row's shape says.

    `choice` where the prompt lists lettered options and the reference is one of the letters, `math` where there
    is another reference answer, given or in the expert's text, and `text` for the rest.

    Raises:
        GateError: the row's `task` is unknown, or the row lacks the reference answer it needs.
    """
    task, reference = demonstration.task, expected_answer(demonstration)
    if task is None:
        if reference is None:
            return "text"
        return "choice" if _letter(reference) in options(_prompt(demonstration)) else "math"
    if task not in TASKS:
        raise GateError(f"unknown task {task!r}: use one of {', '.join(TASKS)}, or leave it out")
    if task == "math" and reference is None:
        raise GateError(
            "task 'math' needs a reference answer: add `reference_answer`, or end the expert solution "
            r"with \boxed{...} or a line `#### ...`"
        )
    if task == "choice" and _letter(reference) is None:
        raise GateError("task 'choice' needs the letter of the right option in `reference_answer`")
    return task


def _prompt(demonstration: Demonstration) -> str:
    return "\n".join(message.content for message in demonstration.prompt)


def expected_answer(demonstration: Demonstration) -> str | None:
    """The answer a candidate must reach: given by the row, else stated by the expert."""
    if demonstration.reference_answer is not None and demonstration.reference_answer.strip():
        given = demonstration.reference_answer
        stated = extract_answer(given)
        return stated.text if stated else given
    if demonstration.task == "choice":
        return _stated_letter(demonstration.expert)
    return reference_answer(demonstration.expert) or (
        _stated_letter(demonstration.expert) if options(_prompt(demonstration)) else None
    )


def _plain_number(reference: str) -> Fraction | None:
    digits = reference.strip().lstrip("$").replace(",", "")
    return Fraction(digits) if _NUMBER.fullmatch(digits) else None


def _letter(reference: str | None) -> str | None:
    return None if reference is None else option_letter(reference)


def _stated_letter(text: str) -> str | None:
    letters = {letter for _, letter in stated_letters(text)}
    return letters.pop() if len(letters) == 1 else None
