"""Task accuracy: questions answered by the model, and the answers compared by the gate's own check.

Strict is the check of the gate (`agent.gate.math_answer`): one final answer, stated as such, not taken back. Lenient
also accepts the last number of the text, stated or not. Answers are drawn greedily, and n of them by sampling.
"""

from __future__ import annotations

import random
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agent.chat import ChatFormat
from agent.demonstrations import Demonstration
from agent.engine import Completion, Engine, Sampling
from agent.exceptions import ChatError, GateError, PromptTooLongError
from agent.gate import expected_answer, task_of
from agent.gate.answer_checker import AnswerChecker
from agent.gate.answers import extract_answer
from agent.gate.math_answer import check_math_answer, percent_asked
from agent.intake import input_identity, read_rows
from agent.pipeline import map_in_order
from trainer.exam.results import Measure
from trainer.exam.settings import EvaluateSettings
from trainer.exam.statistics import mean
from trainer.exceptions import EvaluationError

PRIMARY = "greedy/strict"

_NUMBER = re.compile(
    r"""
    (?:(?<![\w)\]}])[-\u2212])?                       # a sign, and no difference
    \\?\$?
    (?:
        (?:\d+\s?)?\\[dt]?frac\{\d+\}\{\d+\}          # \frac{3}{4}, 1\frac{1}{2}
      | \d+[ ]\d+/\d+                                 # 1 1/2
      | (?:\d{1,3}(?:,\d{3})+|\d+|(?<!\d)\.\d)\d*(?:\.\d+)?
        (?:[eE][-+\u2212]?\d+|\^\{?[-\u2212]?\d+\}?)? # 1.5e3, 10^6
        (?:/\d+)?
    )
    (?:\s?\\?%)?
    """,
    re.VERBOSE,
)
_EXPONENT = re.compile(r"[eE]([-+\u2212]?\d+)")
_GREEDY = "greedy"


@dataclass(frozen=True, slots=True)
class Question:
    """A row with the answer that is to be reached."""

    row: Demonstration
    reference: str


@dataclass(frozen=True, slots=True)
class Questions:
    """The questions of one task.

    Attributes:
        asked: those to be asked, in the order of the file.
        left_out: how many rows cannot be asked, by reason.
        identity: what tells the file from others.
    """

    asked: list[Question]
    left_out: Counter[str]
    identity: str


@dataclass(frozen=True, slots=True)
class Grade:
    """What became of one answer.

    Attributes:
        strict, lenient: whether it counts as right.
        answer: the final answer that it states, None when it states none.
        last_number: the last number in it, None when there is none.
        detail: why strict decided as it did.
    """

    strict: bool
    lenient: bool
    answer: str | None
    last_number: str | None
    detail: str


def load_questions(name: str, path: Path, *, limit: int | None, seed: int) -> Questions:
    """The questions of `path`, at most `limit` of them, drawn by `seed`.

    Raises:
        InputFileError: the file cannot be read.
        EvaluationError: no row has a question and a reference answer.
    """
    asked: list[Question] = []
    left_out: Counter[str] = Counter()
    for row in read_rows(path):
        if not isinstance(row, Demonstration):
            left_out["cannot be read"] += 1
        elif (reference := _reference(row)) is None:
            left_out["no reference answer in mathematics"] += 1
        else:
            asked.append(Question(row, reference))
    if not asked:
        raise EvaluationError(f"task {name}: {path} has no row with a question and its answer: {dict(left_out)}")
    return Questions(
        [asked[i] for i in subset(len(asked), limit, f"{seed}/{name}")], left_out, input_identity(path, whole=True)
    )


def subset(rows: int, limit: int | None, seed: str) -> list[int]:
    """Indices of at most `limit` of `rows` rows: ascending, and the same for the same seed."""
    if limit is None or limit >= rows:
        return list(range(rows))
    return sorted(random.Random(seed).sample(range(rows), limit))


async def measure_accuracy(
    engine: Engine,
    chat: ChatFormat,
    questions: Sequence[Question],
    answers: AnswerChecker,
    settings: EvaluateSettings,
    *,
    adapter: str | None,
    on_row: Callable[[int], None],
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Ask every question, and grade what is answered.

    Returns:
        A record an answer: `row`, `draw` (`greedy`, or the sample's number), the text and its grade; and how many
        questions could not be asked, by reason.
    """
    greedy = Sampling(temperature=0, max_tokens=settings.max_tokens)

    async def ask(question: Question) -> list[dict[str, Any]] | str:
        """The records of a question, or why it cannot be asked."""
        sampled = Sampling(
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_tokens=settings.max_tokens,
            seed=zlib.crc32(f"{settings.seed}/{question.row.id}".encode()),
        )
        try:
            prompt = chat.prompt_ids(question.row.prompt)
            drawn = await engine.generate(prompt, greedy, adapter=adapter)
            if settings.samples:
                drawn += await engine.generate(prompt, sampled, settings.samples, adapter)
        except ChatError:
            return "the model's chat template refuses it"
        except PromptTooLongError:
            return "longer than the model's context"
        return [
            _record(question, _GREEDY if i == 0 else i - 1, completion, await grade(answers, question, completion.text))
            for i, completion in enumerate(drawn)
        ]

    records: list[dict[str, Any]] = []
    left_out: Counter[str] = Counter()
    async with aclosing(map_in_order(ask, questions, settings.concurrency)) as answered:
        done = 0
        async for found in answered:
            done += 1
            if isinstance(found, str):
                left_out[found] += 1
            else:
                records.extend(found)
            on_row(done)
    return records, left_out


async def grade(answers: AnswerChecker, question: Question, text: str) -> Grade:
    """Grade one answer to `question`."""
    strict = await check_math_answer(answers, question.row, question.reference, text)
    stated = extract_answer(text)
    last = last_number(text)
    lenient = strict.passed
    if last is not None and not lenient:
        stated_last = _EXPONENT.sub(r" \\cdot 10^{\1}", last)  # as the check reads it
        percent = percent_asked(question.row)
        lenient = (await answers.equal(stated_last, question.reference, percent_asked=percent)).equal
    return Grade(strict.passed, lenient, stated.text if stated else None, last, strict.detail)


def last_number(text: str) -> str | None:
    """The last number of `text` as it is written, with its sign, thousands separators, fraction and percent sign.

    A mixed number (`1 1/2`), a power (`10^6`) and an exponent (`1.5e3`) are one number; a time or a number with points
    between its thousands is several.
    """
    found = _NUMBER.findall(text)
    return found[-1].strip() if found else None


def accuracy_metrics(records: Sequence[dict[str, Any]], samples: int) -> dict[str, Measure]:
    """Means over questions; a question's sampled answers count as their mean.

    Returns:
        `greedy/…` and, with samples, `avg@n/…`: `strict`, `lenient`, `no_answer` (states no final answer), `cut_off`
        (did not end by itself), and `tokens`, the length of an answer, its end token included.
    """
    metrics = _means([[record] for record in records if record["draw"] == _GREEDY], _GREEDY)
    if samples:
        by_row: dict[str, list[dict[str, Any]]] = {}
        for record in records:
            if record["draw"] != _GREEDY:
                by_row.setdefault(record["row"], []).append(record)
        metrics |= _means(list(by_row.values()), f"avg@{samples}")
    return metrics


def _means(rows: Sequence[Sequence[dict[str, Any]]], prefix: str) -> dict[str, Measure]:
    figures: dict[str, Callable[[dict[str, Any]], float]] = {
        "strict": lambda record: float(record["strict"]),
        "lenient": lambda record: float(record["lenient"]),
        "no_answer": lambda record: float(record["answer"] is None),
        "cut_off": lambda record: float(record["finish_reason"] == "length"),
        "tokens": lambda record: float(record["tokens"]),
    }
    return {
        f"{prefix}/{name}": mean(sum(map(figure, records)) / len(records) for records in rows)
        for name, figure in figures.items()
    }


def _record(question: Question, draw: str | int, completion: Completion, found: Grade) -> dict[str, Any]:
    return {
        "row": question.row.id,
        "draw": draw,
        "question": question.row.question,
        "reference": question.reference,
        "text": completion.text,
        "tokens": len(completion.ids),
        "finish_reason": completion.finish_reason,
        **asdict(found),
    }


def _reference(row: Demonstration) -> str | None:
    try:
        return expected_answer(row) if task_of(row) == "math" else None
    except GateError:
        return None
