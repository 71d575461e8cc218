"""How far a model moved on the task's prompts: the forward KL divergence from the base model, by sampling.

KL(pi0 || pi) = E over y ~ pi0 of sum over tokens of log pi0 - log pi. Completions are drawn from pi0 at temperature 1
without a nucleus, as the expectation asks for, and scored under both: after the same tokens, the question included.
"""

from __future__ import annotations

import asyncio
import math
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from agent.chat import ChatFormat
from agent.engine import Engine, Sampling
from agent.exceptions import ChatError, PromptTooLongError
from agent.pipeline import map_in_order
from trainer.exam.accuracy import Question
from trainer.exam.results import Measure
from trainer.exam.settings import EvaluateSettings
from trainer.exam.statistics import mean, ratio
from trainer.exceptions import EvaluationError

PRIMARY = "kl_per_token"


@dataclass(frozen=True, slots=True)
class BaseDraw:
    """A completion that the base model drew.

    Attributes:
        row: id of the question.
        prompt: the question in the chat format, as text.
        prompt_ids: the same as token ids.
        text: the completion.
        ids: the same as token ids, its end token included.
        logprobs: of `ids` under the base model, nats.
    """

    row: str
    prompt: str
    prompt_ids: list[int]
    text: str
    ids: list[int]
    logprobs: list[float]


@dataclass(frozen=True, slots=True)
class Drawn:
    """What the base model drew for one task.

    Attributes:
        draws: in the order of the questions.
        left_out: how many questions have none, by reason.
    """

    draws: list[BaseDraw]
    left_out: Counter[str]


async def draw_from_base(
    engine: Engine, chat: ChatFormat, questions: Sequence[Question], settings: EvaluateSettings
) -> Drawn:
    """Completions of the first `settings.kl_rows` questions; `engine` and `chat` are the base model's."""

    async def draw(question: Question) -> list[BaseDraw] | str:
        """The completions of a question, or why there are none."""
        sampling = Sampling(
            max_tokens=settings.kl_max_tokens, seed=zlib.crc32(f"kl/{settings.seed}/{question.row.id}".encode())
        )
        try:
            prompt = chat.prompt_ids(question.row.prompt)
            completions = await engine.generate(prompt, sampling, settings.kl_samples)
        except ChatError:
            return "the base model's chat template refuses it"
        except PromptTooLongError:
            return "longer than the base model's context"
        scores = await asyncio.gather(*(engine.score(prompt, completion.ids) for completion in completions))
        return [
            BaseDraw(question.row.id, chat.prompt_text(question.row.prompt), prompt, drawn.text, drawn.ids, score)
            for drawn, score in zip(completions, scores, strict=True)
        ]

    drawn = Drawn([], Counter())
    async with aclosing(map_in_order(draw, questions[: settings.kl_rows], settings.concurrency)) as found:
        async for of_question in found:
            if isinstance(of_question, str):
                drawn.left_out[of_question] += 1
            else:
                drawn.draws.extend(of_question)
    return drawn


def that_fit(drawn: Drawn, max_length: int) -> Drawn:
    """Without the questions of which a completion does not fit the context of the examined model, `max_length`."""
    long = {draw.row for draw in drawn.draws if len(draw.prompt_ids) + len(draw.ids) > max_length}
    left_out = drawn.left_out + Counter({"longer than the model's context": len(long)})
    return Drawn([draw for draw in drawn.draws if draw.row not in long], left_out)


def check_same_tokens(chat: ChatFormat, base: ChatFormat, questions: Sequence[Question]) -> None:
    """Raises EvaluationError when model and base do not read the questions as the same tokens."""
    if chat.tokenizer.get_vocab() != base.tokenizer.get_vocab():
        raise EvaluationError("--base has another vocabulary than the model; there is no divergence between the two")
    for question in questions:
        if _ids(chat, question) != _ids(base, question):
            raise EvaluationError("--base has another chat template than the model; use the template of the base model")


def _ids(chat: ChatFormat, question: Question) -> list[int] | None:
    """The question as token ids, None where the chat template refuses it."""
    try:
        return chat.prompt_ids(question.row.prompt)
    except ChatError:
        return None


async def measure_divergence(
    engine: Engine,
    draws: Sequence[BaseDraw],
    settings: EvaluateSettings,
    *,
    adapter: str | None,
    on_row: Callable[[int], None],
) -> list[dict[str, Any]]:
    """Score what the base model drew; one record a completion, `kl` its sum over tokens in nats.

    Raises:
        EvaluationError: the model gives no finite log-probabilities; names the question.
    """

    async def score(draw: BaseDraw) -> dict[str, Any]:
        tuned = await engine.score(draw.prompt_ids, draw.ids, adapter)
        nats = [base - now for base, now in zip(draw.logprobs, tuned, strict=True)]
        if not all(map(math.isfinite, nats)):
            raise EvaluationError(f"question {draw.row}: the model gives no finite log-probabilities")
        return {
            "row": draw.row,
            "prompt": draw.prompt,
            "text": draw.text,
            "tokens": len(draw.ids),
            "kl": math.fsum(nats),
            "ids": draw.ids,
            "nats": [round(value, 5) for value in nats],
        }

    records: list[dict[str, Any]] = []
    async with aclosing(map_in_order(score, draws, settings.concurrency)) as scored:
        async for record in scored:
            records.append(record)
            on_row(len(records))
    return records


def divergence_metrics(records: Sequence[dict[str, Any]]) -> dict[str, Measure]:
    """`kl_per_token`: nats over tokens; `kl_per_completion`: nats; `tokens`: of a completion. Errors over questions."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        rows.setdefault(record["row"], []).append(record)
    sums = [(math.fsum(r["kl"] for r in row), float(sum(r["tokens"] for r in row)), len(row)) for row in rows.values()]
    return {
        "kl_per_token": ratio([(nats, tokens) for nats, tokens, _ in sums]),
        "kl_per_completion": mean(nats / count for nats, _, count in sums),
        "tokens": mean(tokens / count for _, tokens, count in sums),
    }
