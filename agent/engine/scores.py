"""Completions that wait for their scores, handed out in packs that compute a prompt once where that can be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agent.engine.requests import ScoreRequest

Trees = dict[tuple[int, ...], list[ScoreRequest]]

# Attention copies a prompt's keys for each completion that is scored after it: so many for a token of a pack at most.
_KEYS_PER_TOKEN = 8


class ScoreQueue:
    """Requests by adapter and prompt, in order of arrival of the first.

    Args:
        pack_tokens: tokens of one pack, unless a single completion with its prompt has more.
    """

    def __init__(self, pack_tokens: int) -> None:
        self._pack_tokens = pack_tokens
        self._waiting: dict[tuple[str | None, tuple[int, ...]], list[ScoreRequest]] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __iter__(self) -> Iterator[ScoreRequest]:
        return (request for waiting in self._waiting.values() for request in waiting)

    def add(self, request: ScoreRequest) -> None:
        self._waiting.setdefault((request.adapter, tuple(request.prompt_ids)), []).append(request)

    @property
    def urgent(self) -> bool:
        """Whether there are any that are no bulk work."""
        return any(not request.bulk for request in self)

    def take(self, *, bulk: bool = True) -> Trees:
        """The next pack, by prompt, all under one adapter; what waits for one prompt is torn apart only over a pack.

        Without `bulk`, only of prompts for which more than bulk work waits.
        """
        pack: Trees = {}
        tokens = 0
        first: str | None = None
        for adapter, prompt in list(self._waiting):
            key = adapter, prompt
            waiting = [request for request in self._waiting[key] if not request.future.done()]
            if waiting and not bulk and all(request.bulk for request in waiting):
                continue
            tokens += len(prompt) + sum(len(request.completion_ids) for request in waiting)
            if pack and (adapter != first or tokens > self._pack_tokens):
                break
            first = adapter
            taken = self._fitting(prompt, waiting)
            if taken:
                pack[prompt] = waiting[:taken]
            if taken < len(waiting):
                self._waiting[key] = waiting[taken:]
                break
            del self._waiting[key]
        return pack

    def _fitting(self, prompt: Sequence[int], waiting: Sequence[ScoreRequest]) -> int:
        """How many of the completions of one prompt go into a pack of their own, one at least."""
        most = max(1, _KEYS_PER_TOKEN * self._pack_tokens // len(prompt))
        tokens = 0
        for count, request in enumerate(waiting[:most]):
            if tokens >= self._pack_tokens:
                return count
            tokens += len(request.completion_ids)
        return min(most, len(waiting))
