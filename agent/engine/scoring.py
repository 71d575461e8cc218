"""Scoring of waiting completions, one pack a round; those of the same prompt form one tree."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agent.engine.passes import guarded, succeed
from agent.engine.requests import ScoreRequest
from agent.engine.runner import ModelRunner, Tree
from agent.engine.scores import ScoreQueue, Trees


class Scoring:
    """The completions that wait for their scores. True while there are any.

    Args:
        runner: the forward passes.
        activate: switches the model to an adapter, or to none.
        pack_tokens: tokens of one pass, unless a single completion with its prompt has more.
    """

    def __init__(self, runner: ModelRunner, activate: Callable[[str | None], None], *, pack_tokens: int) -> None:
        self._runner, self._activate = runner, activate
        self._queue = ScoreQueue(pack_tokens)
        self._computing: Sequence[ScoreRequest] = ()

    def __bool__(self) -> bool:
        return bool(self._queue)

    @property
    def urgent(self) -> bool:
        """Whether there are any that are no bulk work."""
        return self._queue.urgent

    def requests(self) -> list[ScoreRequest]:
        """All that wait or are being computed."""
        return [*self._queue, *self._computing]

    def add(self, request: ScoreRequest) -> None:
        """Let a request wait for its turn."""
        self._queue.add(request)

    def step(self, *, bulk: bool = True) -> None:
        """Score one pack, all under one adapter; without `bulk`, one that is not of bulk work alone."""
        if trees := self._queue.take(bulk=bulk):
            self._computing = [request for branch in trees.values() for request in branch]
            self._score(trees)
            self._computing = ()

    def _score(self, trees: Trees) -> None:
        requests = [request for branch in trees.values() for request in branch]

        def compute() -> list[list[list[float]]]:
            self._activate(requests[0].adapter)
            return self._runner.score([Tree(p, [r.completion_ids for r in branch]) for p, branch in trees.items()])

        scores = guarded(compute, requests if len(requests) == 1 else [])
        if scores is None and len(requests) > 1:
            for request in requests:
                self._score({tuple(request.prompt_ids): [request]})
        elif scores is not None:
            for branch, branch_scores in zip(trees.values(), scores, strict=True):
                for request, logprobs in zip(branch, branch_scores, strict=True):
                    succeed(request.future, logprobs)
