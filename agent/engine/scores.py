"""Completions that wait for their scores, handed out in packs that compute a prompt once where that can be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agent.engine.requests import ScoreRequest

Trees = dict[tuple[int, ...], list[ScoreRequest]]

# Attention copies a prompt's keys for each completion that is scored after it: so many for a token of a pack at most.
_KEYS_PER_TOKEN = 8


class ScoreQueue:
    """Requests by prompt, prompts in order of arrival.

    Args:
        pack_tokens: tokens of one pack, unless a single completion with its prompt has more.
    """

    def __init__(self, pack_tokens: int) -> None:
        self._pack_tokens = pack_tokens
        self._waiting: Trees = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __iter__(self) -> Iterator[ScoreRequest]:
        return (request for waiting in self._waiting.values() for request in waiting)

    def add(self, request: ScoreRequest) -> None:
        self._waiting.setdefault(tuple(request.prompt_ids), []).append(request)

    def take(self) -> Trees:
        """The next pack, by prompt. What waits for one prompt is torn apart only where it exceeds a pack."""
        pack: Trees = {}
        tokens = 0
        for prompt in list(self._waiting):
            waiting = [request for request in self._waiting[prompt] if not request.future.done()]
            tokens += len(prompt) + sum(len(request.completion_ids) for request in waiting)
            if pack and tokens > self._pack_tokens:
                break
            taken = self._fitting(prompt, waiting)
            if taken:
                pack[prompt] = waiting[:taken]
            if taken < len(waiting):
                self._waiting[prompt] = waiting[taken:]
                break
            del self._waiting[prompt]
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
