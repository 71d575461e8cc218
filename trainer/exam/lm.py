"""The engine as a model of lm-eval: its requests become scores and completions of `agent.engine`.

lm-eval decides how text is cut into tokens (`TemplateLM`), the engine how requests are batched: choices of the same
context are submitted side by side, so that it is computed once, and no logits are kept. lm-eval is synchronous, so the
runner of the exam's event loop is driven from here.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from agent.chat import ChatFormat
from agent.demonstrations import Message
from agent.engine import Engine, Sampling
from agent.pipeline import map_in_order
from trainer.exam.settings import EvaluateSettings
from trainer.exceptions import EvaluationError

T = TypeVar("T")
R = TypeVar("R")

_Encoded = tuple[tuple[str, str], list[int], list[int]]


class EngineLM(TemplateLM):  # type: ignore[misc]  # lm-eval is not typed
    """One model, with or without an adapter.

    Args:
        runner: of the loop that the engine belongs to; idle whenever lm-eval calls.
        engine: samples and scores.
        chat: the chat format of the engine's model.
        adapter: name of a loaded adapter.
        settings: window of rolling log-likelihoods, concurrency.
        needs_greedy: whether `is_greedy` is to be found out; it costs a generation where it is not obvious, and only
            LAMBADA asks for it. False answers it with False.
        on_rows: called with rows done and all of them, those of a request under way not counted.

    Attributes:
        cut: the rows of which a context was cut from the left, so that it fits with its continuation.
    """

    def __init__(
        self,
        runner: asyncio.Runner,
        engine: Engine,
        chat: ChatFormat,
        adapter: str | None,
        settings: EvaluateSettings,
        *,
        needs_greedy: bool,
        on_rows: Callable[[int, int], None],
    ) -> None:
        super().__init__()
        self.tokenizer = chat.tokenizer
        self._runner, self._engine, self._chat, self._adapter = runner, engine, chat, adapter
        self._settings, self._needs_greedy, self._on_rows = settings, needs_greedy, on_rows
        self._max_length = engine.info.max_length
        self._rows = 0
        self._asked: list[str] = []
        self.cut: set[str] = set()

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context: the token that begins a text, else the one that ends it."""
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    @property
    def tokenizer_name(self) -> str:
        return self._engine.info.model

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Text of a benchmark as token ids; control tokens in it are broken, as everywhere in data."""
        special = True if add_special_tokens is None else add_special_tokens
        ids: list[int] = self.tokenizer.encode(  # not verbose: a text longer than the context is cut into windows
            self._chat.neutralise(string), add_special_tokens=special, verbose=False
        )
        return ids

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The turns in the model's chat format, for `generate_until`."""
        if not add_generation_prompt:
            raise NotImplementedError("no task of ours begins the assistant's answer")
        return self._chat.prompt_text([Message(turn["role"], turn["content"]) for turn in chat_history])

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation after its context, nats, and whether greedy decoding gives it."""
        self._rows, self._asked = _count_rows(requests), list(map(_row_of, requests))
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return answers

    def _loglikelihood_tokens(self, requests: list[_Encoded], **_options: Any) -> list[tuple[float, bool]]:
        for row, (_, context, continuation) in zip(self._asked, requests, strict=True):
            if len(continuation) >= self._max_length:
                raise self._too_long(row, "a continuation", len(continuation))
            if len(context) + len(continuation) > self._max_length:
                self.cut.add(row)

        async def score(item: tuple[str, _Encoded]) -> tuple[float, bool]:
            row, (_, context, continuation) = item
            context = context[-max(1, self._max_length - len(continuation)) :]
            logprobs = await self._engine.score(context, continuation, self._adapter)
            nats = _finite(logprobs, row)
            greedy = self._needs_greedy and await self._is_greedy(context, continuation, logprobs)
            return nats, greedy

        return self._map(score, list(zip(self._asked, requests, strict=True)))

    async def _is_greedy(self, context: list[int], continuation: list[int], logprobs: Sequence[float]) -> bool:
        """Whether greedy decoding writes `continuation`."""
        if all(logprob > -math.log(2) for logprob in logprobs):  # no other token can be more likely than one half
            return True
        sampling = Sampling(temperature=0, max_tokens=len(continuation))
        (greedy,) = await self._engine.generate(context, sampling, adapter=self._adapter)
        return greedy.ids == continuation

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Log-likelihood of whole texts, nats, in windows that do not overlap; each token is predicted once."""
        self._rows = _count_rows(requests)
        window = min(self._settings.window, self._max_length - 1)
        windows: list[tuple[int, list[int], list[int]]] = []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            pairs = get_rolling_token_windows(ids, self.prefix_token_id, window, context_len=1)
            windows.extend((number, *make_disjoint_window(pair)) for pair in pairs)

        async def score(item: tuple[int, list[int], list[int]]) -> float:
            number, context, continuation = item
            return _finite(await self._engine.score(context, continuation, self._adapter), _row_of(requests[number]))

        scores = self._map(score, windows)
        totals = [0.0] * len(requests)
        for (number, *_), value in zip(windows, scores, strict=True):
            totals[number] += value
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Completions of prompts that are in the chat format already, cut off before the first stop text."""
        self._rows = _count_rows(requests)

        async def generate(request: Instance) -> str:
            prompt, options = request.args
            ids = self.tokenizer.encode(prompt, add_special_tokens=False)
            room = self._max_length - len(ids)
            if room < 1:
                raise self._too_long(_row_of(request), "a prompt", len(ids))
            sampling = Sampling(
                temperature=float(options.get("temperature", 0.0)) if options.get("do_sample") else 0.0,
                max_tokens=min(int(options["max_gen_toks"]), room),
            )
            (completion,) = await self._engine.generate(ids, sampling, adapter=self._adapter)
            ends = [at for stop in options.get("until", ()) if stop and (at := completion.text.find(stop)) >= 0]
            return completion.text[: min(ends)] if ends else completion.text

        return self._map(generate, requests)

    def _too_long(self, row: str, what: str, tokens: int) -> EvaluationError:
        return EvaluationError(
            f"{row}: {what} of {tokens} tokens does not fit the context of {self._max_length}: leave the row out, or "
            "examine with a larger engine.max_length"
        )

    def _map(self, function: Callable[[T], Awaitable[R]], items: Sequence[T]) -> list[R]:
        async def run() -> list[R]:
            found: list[R] = []
            self._on_rows(0, self._rows)
            async with aclosing(map_in_order(function, items, self._settings.concurrency)) as results:
                async for result in results:
                    found.append(result)
                    self._on_rows(len(found) * self._rows // len(items), self._rows)
            return found

        return self._runner.run(run())


def _count_rows(requests: Sequence[Instance]) -> int:
    """Rows that the requests belong to."""
    return len({request.doc_id for request in requests})


def _finite(logprobs: Sequence[float], row: str) -> float:
    """Their sum. Raises EvaluationError where it is no finite number: of NaN every choice is as good as the first."""
    nats = math.fsum(logprobs) if all(map(math.isfinite, logprobs)) else math.nan
    if not math.isfinite(nats):
        raise EvaluationError(f"{row}: the model gives no finite log-probabilities")
    return nats


def _row_of(request: Instance) -> str:
    """Which row of which benchmark a request belongs to, for a person."""
    return f"benchmark {request.task_name}: row {request.doc.get('row', request.doc_id)}"
