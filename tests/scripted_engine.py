"""Engines that answer at once what they are told to, for tests of what stands above the engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agent.chat import ChatFormat
from agent.engine import Completion, EngineInfo, Sampling
from agent.exceptions import PromptTooLongError
from server.metrics import EngineCount


class QuietEngine:
    """What an engine does besides drawing and scoring, of one that is always alive and takes every adapter.

    Attributes:
        closed: whether it was.
    """

    closed = False

    async def load_adapter(self, name: str, path: Path) -> None: ...
    async def unload_adapter(self, name: str) -> None: ...
    async def check(self) -> None: ...

    async def close(self) -> None:
        self.closed = True


class ScriptedEngine(QuietEngine):
    """Completes every prompt with `reply`; scores it at 1 nat a token, and everything else at 2.

    Attributes:
        sampled: the sampling and number of samples of each call.
    """

    def __init__(self, chat: ChatFormat, reply: str, max_length: int = 4096) -> None:
        self._reply_ids = chat.completion_ids(reply)
        self._reply = reply
        self.info = EngineInfo("scripted", max_length)
        self._adapters: set[str] = set()
        self.sampled: list[tuple[Sampling, int, str | None]] = []

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, n: int = 1, adapter: str | None = None
    ) -> list[Completion]:
        self._check_length(len(prompt_ids) + 1)
        self.sampled.append((sampling, n, adapter))
        ids = self._reply_ids[: sampling.max_tokens]
        whole = len(ids) == len(self._reply_ids)
        return [Completion(ids, self._reply, [-1.0] * len(ids), "stop" if whole else "length") for _ in range(n)]

    async def score(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], adapter: str | None = None
    ) -> list[float]:
        self._check_length(len(prompt_ids) + len(completion_ids))
        nats = 1.0 if list(completion_ids) == self._reply_ids else 2.0
        return [-nats] * len(completion_ids)

    async def load_adapter(self, name: str, path: Path) -> None:
        self._adapters.add(name)

    async def unload_adapter(self, name: str) -> None:
        self._adapters.remove(name)

    async def load(self, adapter: str) -> None:
        self._adapters.add(adapter)

    async def loaded(self) -> frozenset[str]:
        return frozenset(self._adapters)

    async def count(self) -> EngineCount:
        return EngineCount(answering=1, started=1)

    def _check_length(self, tokens: int) -> None:
        if tokens > self.info.max_length:
            raise PromptTooLongError(f"{tokens} tokens, and there is room for {self.info.max_length}")
