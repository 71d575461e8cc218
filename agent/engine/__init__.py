"""One way to sample and to score: the protocol that serving, training and evaluation share.

Implementations live beside this module; nothing above them knows batch sizes, devices or caches.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw completions.

    Attributes:
        temperature: 0 is greedy; log-probabilities are always reported at temperature 1.
        top_p: nucleus mass kept, in (0, 1].
        max_tokens: new tokens at most, the end-of-turn token included.
        seed: makes the draw of this request reproducible on the same machine and batch; None draws freely.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= 10.0:
            raise ValueError(f"temperature must be between 0 and 10, got {self.temperature}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")

    def part(self, number: int) -> Sampling:
        """The same with another seed that follows from this one; a draw without a seed stays free."""
        return self if self.seed is None else replace(self, seed=zlib.crc32(f"{self.seed}/{number}".encode()))


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled completion.

    Attributes:
        ids: token ids, the stop token included when `finish_reason` is `stop`.
        text: `ids` without special tokens, decoded.
        logprobs: log-probability of each id under the sampling model at temperature 1, nats; from an engine that was
            started for a trainer, the one that it was drawn with.
        finish_reason: `stop` at a stop token, `length` at `max_tokens` or the end of the context.
    """

    ids: list[int]
    text: str
    logprobs: list[float]
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What callers need to know of the engine: the model's name and its context length in tokens."""

    model: str
    max_length: int


class Engine(Protocol):
    """Samples from the base model or an adapter of it, and scores under either.

    Callers submit rows concurrently; the engine batches. Requests in flight finish on the adapter
    version they began with. Calls within `agent.engine.urgency.bulk_work` give way to the others.
    """

    @property
    def info(self) -> EngineInfo: ...

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, n: int = 1, adapter: str | None = None
    ) -> list[Completion]:
        """Draw `n` completions of one prompt; they share its prefill.

        Raises:
            PromptTooLongError: no room is left for a single new token.
            AdapterError: `adapter` is not loaded.
            EngineMemoryError: this request does not fit in memory.
            EngineCrashError: this request is what the engine dies of; where it runs in a process of its own.
            EngineClosedError: the engine has been closed.
        """
        ...

    async def score(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], adapter: str | None = None
    ) -> list[float]:
        """Log-probability of each completion token, nats: under the base model unless `adapter` is given.

        Raises:
            PromptTooLongError: the two together do not fit the context.
            AdapterError, EngineMemoryError, EngineCrashError, EngineClosedError: as in `generate`.
        """
        ...

    async def check(self) -> None:
        """Return when the engine is alive. Raises EngineClosedError when it will answer no more."""
        ...


class LocalEngine(Engine, Protocol):
    """An engine of this process: whoever opened it loads its adapters and closes it."""

    async def load_adapter(self, name: str, path: Path) -> None:
        """Make the LoRA in `path` available as `name` (`name@version`). Raises AdapterError."""
        ...

    async def unload_adapter(self, name: str) -> None:
        """Forget `name` once no request uses it. Raises AdapterError when it is not loaded."""
        ...

    async def close(self) -> None:
        """Finish what is in flight, then release the model."""
        ...
