"""What waits for the engine and what runs in it: requests, groups of samples, sequences."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from agent.engine import Completion, FinishReason, Sampling
from agent.engine.attention import KeyValues
from agent.engine.cache import pages_for
from agent.engine.sampling import Draw
from agent.engine.urgency import due_time, is_bulk


@dataclass(slots=True)
class GenerationRequest:
    """`n` samples of one prompt; `future` gets the completions when the last one is finished."""

    prompt_ids: Sequence[int]
    sampling: Sampling
    n: int
    adapter: str | None
    future: Future[list[Completion]]
    bulk: bool = field(default_factory=is_bulk)
    due: float = field(default_factory=due_time)
    finished: dict[int, Completion] = field(default_factory=dict)


@dataclass(slots=True)
class ScoreRequest:
    """One completion to score after its prompt."""

    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    adapter: str | None
    future: Future[list[float]]
    bulk: bool = field(default_factory=is_bulk)


@dataclass(slots=True)
class AdapterRequest:
    """Load (`path` given) or unload (None) an adapter, between two steps."""

    name: str
    path: Path | None
    future: Future[None]


@dataclass(slots=True)
class Sample:
    """One sample being drawn.

    Attributes:
        settled: numbers of its source that went into the tokens it has.
    """

    group: Group
    index: int
    draw: Draw
    pages: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    settled: int = 0

    def extend(self, token: int, logprob: float) -> None:
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.settled = self.draw.used

    def rewind(self) -> None:
        """Give back the numbers of a draw whose token was lost, so that the next draw is the same."""
        if self.draw.used != self.settled:
            self.draw = _draw_of(self.draw.sampling, self.index)
            while self.draw.used < self.settled:
                self.draw.uniform()

    def completion(self, reason: FinishReason, text: str) -> Completion:
        return Completion(self.ids, text, self.logprobs, reason)


@dataclass(slots=True)
class Group:
    """Samples `first` to `first + count` of one request: they share their prompt's opening and its pages."""

    request: GenerationRequest
    first: int
    count: int
    prefix: KeyValues | None = None
    pages: list[int] = field(default_factory=list)
    running: list[Sample] = field(default_factory=list)

    @property
    def prompt_length(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for the result any more (cancelled, or failed in a sibling group)."""
        return self.request.future.done()

    @property
    def most_pages(self) -> int:
        """Pages that the group may come to hold: every sample that is not finished runs to its limit."""
        samples = len(self.running) or self.count
        return pages_for(self.prompt_length) + samples * pages_for(self.request.sampling.max_tokens)

    def start(self) -> None:
        """Create the samples anew, each with its own reproducible stream of randomness."""
        sampling = self.request.sampling
        places = range(self.first, self.first + self.count)
        self.running = [Sample(self, index, _draw_of(sampling, index)) for index in places]


def _draw_of(sampling: Sampling, index: int) -> Draw:
    return Draw(sampling, random.Random() if sampling.seed is None else random.Random(f"{sampling.seed}/{index}"))


def split_into_groups(request: GenerationRequest, width: int) -> list[Group]:
    """Groups of at most `width` samples that together make up the request."""
    return [Group(request, first, min(width, request.n - first)) for first in range(0, request.n, width)]
