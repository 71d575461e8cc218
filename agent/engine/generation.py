"""Groups of samples from waiting to finished: prompts computed when there is room, then one token a step for each.

Not here: which requests may come (`agent.engine.worker`), the forward passes (`agent.engine.runner`).
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import NamedTuple, TypeVar

from agent.engine import Completion
from agent.engine.attention import CompletionPages, PromptPages
from agent.engine.cache import PAGE
from agent.engine.passes import fail, guarded, succeed
from agent.engine.requests import GenerationRequest, Group, Sample, split_into_groups
from agent.engine.runner import ModelRunner, Prompt
from agent.engine.sampling import draw_tokens
from agent.exceptions import EngineMemoryError

T = TypeVar("T")

# Samples that share a prompt's pages at most; the widest group sets the width of every prompt product.
_GROUP_WIDTH = 8


class _Drawn(NamedTuple):
    """One drawn token of each sample."""

    samples: list[Sample]
    ids: list[int]
    logprobs: list[float]


class Generation:
    """The groups that wait and those that run. True while there are any.

    Args:
        runner: the forward passes.
        activate: switches the model to an adapter, or to none.
        stop_ids: tokens that end a completion.
        to_text: token ids to text.
        max_samples: samples running at once at most, of bulk work and of other work each.
        pack_tokens: tokens of one prefill pass, unless a single prompt has more.
    """

    def __init__(
        self,
        runner: ModelRunner,
        activate: Callable[[str | None], None],
        stop_ids: frozenset[int],
        to_text: Callable[[Sequence[int]], str],
        *,
        max_samples: int,
        pack_tokens: int,
    ) -> None:
        self._runner, self._activate, self._stop_ids, self._to_text = runner, activate, stop_ids, to_text
        self._max_samples, self._pack_tokens = max_samples, pack_tokens
        self._waiting: deque[Group] = deque()
        self._running: list[Group] = []
        # Requests whose prompts are being computed: neither waiting any more nor running yet.
        self._computing: Sequence[GenerationRequest] = ()

    def __bool__(self) -> bool:
        return bool(self._waiting or self._running)

    @property
    def urgent(self) -> bool:
        """Whether there are any that are no bulk work."""
        return any(not group.request.bulk for groups in (self._running, self._waiting) for group in groups)

    def requests(self) -> list[GenerationRequest]:
        """All that wait, run or are being computed; one may come more than once."""
        return [*(group.request for group in (*self._waiting, *self._running)), *self._computing]

    def add(self, request: GenerationRequest) -> None:
        """Let a request wait for its turn; one that the cache could never hold fails at once."""
        groups = split_into_groups(request, _GROUP_WIDTH)
        cache = self._runner.cache
        if (needed := max(g.most_pages for g in groups)) > cache.budget_pages:
            error = EngineMemoryError(
                f"a prompt of {len(request.prompt_ids)} tokens with up to {request.sampling.max_tokens} new ones needs "
                f"{needed} pages of cache, there are {cache.budget_pages}; shorten it or lower max_tokens"
            )
            fail(request.future, error)
            return
        for group in groups:
            insort(self._waiting, group, key=attrgetter("request.due"))

    def admit(self, *, bulk: bool = True) -> None:
        """Prefill waiting groups, one pack of an adapter after the other, while the cache and the batch allow.

        Without `bulk`, up to the first that is bulk work. A pack of bulk work is the last, whatever else waits: an
        urgent call may have come while it was computed.
        """
        while groups := self._take_pack(bulk):
            self._computing = [group.request for group in groups]
            if not self._prefill(groups) or any(group.request.bulk for group in groups):
                break
        self._computing = ()

    def _take_pack(self, bulk: bool) -> list[Group]:
        """The next groups in their order that can start together.

        Bulk work that pauses takes no place from other work, only memory. A group of more samples than there are
        places starts once it has all of them; more memory than there is has none, `add` sees to that.
        """
        pack: list[Group] = []
        tokens = 0
        beside = [g for g in self._running if bulk or not g.request.bulk]
        samples = sum(len(g.running) for g in beside)
        pages = sum(g.most_pages for g in self._running)
        while self._waiting:
            group = self._waiting[0]
            if group.abandoned:
                self._waiting.popleft()
                continue
            if group.request.bulk and not bulk:
                break
            tokens += group.prompt_length
            samples += group.count
            pages += group.most_pages
            if pages > self._runner.cache.budget_pages or (samples > self._max_samples and (beside or pack)):
                break
            if pack and (group.request.adapter != pack[0].request.adapter or tokens > self._pack_tokens):
                break
            pack.append(self._waiting.popleft())
        return pack

    def _prefill(self, groups: list[Group]) -> bool:
        """Compute the prompts of new groups and draw their first tokens. False when memory ran out."""
        by_request: dict[int, list[Group]] = {}
        for group in groups:
            by_request.setdefault(id(group.request), []).append(group)
        prompts = [
            Prompt(siblings[0].request.prompt_ids, tuple(g.pages for g in siblings)) for siblings in by_request.values()
        ]
        adapter = groups[0].request.adapter

        def compute() -> _Drawn:
            self._activate(adapter)
            logits, prefixes = self._runner.prefill(prompts, adapter)
            samples: list[Sample] = []
            rows: list[int] = []
            for row, siblings in enumerate(by_request.values()):
                for group in siblings:
                    group.prefix = prefixes[row]
                    group.start()
                    samples += group.running
                    rows += [row] * len(group.running)
            return _Drawn(samples, *draw_tokens(logits[rows], [s.draw for s in samples]))

        drawn = self._guarded(compute, groups if len(prompts) == 1 else [])
        if drawn is None:
            for group in groups:
                self._release(group)
            outcomes = [self._prefill(siblings) for siblings in by_request.values()] if len(prompts) > 1 else []
            return any(outcomes)
        self._running.extend(groups)
        self._extend(drawn)
        return True

    def step(self, *, bulk: bool = True) -> None:
        """One decode step for the running samples of every adapter; without `bulk`, those of bulk work pause."""
        self._drop_abandoned()
        for adapter in {g.request.adapter for g in self._running}:
            # Found anew each time: a pass that fails drops groups of other adapters that nobody waits for any more.
            groups = [g for g in self._running if g.request.adapter == adapter and (bulk or not g.request.bulk)]
            if not groups:
                continue
            # Out of memory while decoding: the group that came last gives way to the others.
            drawn = self._guarded(partial(self._decode_step, groups, adapter), groups[-1:])
            if drawn is not None:
                self._extend(drawn)
                continue
            for sample in (s for g in groups for s in g.running):
                sample.rewind()

    def _decode_step(self, groups: list[Group], adapter: str | None) -> _Drawn:
        tokens: list[int] = []
        prompts, completions = [], []
        for group in groups:
            first = len(tokens)
            for sample in group.running:
                if len(sample.ids) > len(sample.pages) * PAGE:
                    self._runner.cache.completions.append(sample.pages)
                tokens.append(sample.ids[-1])
                completions.append(CompletionPages(sample.pages, len(sample.ids)))
            rows = list(range(first, len(tokens)))
            prompts.append(PromptPages(group.prefix, group.pages, group.prompt_length, rows))
        self._activate(adapter)
        logits = self._runner.decode(tokens, prompts, completions)
        samples = [s for g in groups for s in g.running]
        return _Drawn(samples, *draw_tokens(logits, [s.draw for s in samples]))

    def _extend(self, drawn: _Drawn) -> None:
        """Append its drawn token to each sample, and hand over those that are finished."""
        for sample, token, logprob in zip(drawn.samples, drawn.ids, drawn.logprobs, strict=True):
            sample.extend(token, logprob)
            if token in self._stop_ids:
                self._finish(sample, sample.completion("stop", self._to_text(sample.ids)))
            elif len(sample.ids) >= sample.draw.sampling.max_tokens:
                self._finish(sample, sample.completion("length", self._to_text(sample.ids)))

    def _finish(self, sample: Sample, completion: Completion) -> None:
        group, request = sample.group, sample.group.request
        group.running.remove(sample)
        self._runner.cache.completions.free(sample.pages)
        if not group.running:
            self._running.remove(group)
            self._release(group)
        request.finished[sample.index] = completion
        if len(request.finished) == request.n:
            succeed(request.future, [request.finished[i] for i in range(request.n)])

    def _drop_abandoned(self) -> None:
        for group in [g for g in self._running if g.abandoned]:
            self._running.remove(group)
            self._release(group)

    def _release(self, group: Group) -> None:
        self._runner.cache.prompts.free(group.pages)
        for sample in group.running:
            self._runner.cache.completions.free(sample.pages)

    def _guarded(self, compute: Callable[[], T], blamed: Sequence[Group]) -> T | None:
        result = guarded(compute, [group.request for group in blamed])
        if result is None:
            self._drop_abandoned()
        return result
