"""The engine's loop: one thread that owns the model and turns waiting requests into forward passes.

Each round admits waiting groups into free slots (prefill), draws one token for every running sample, and
scores one pack of waiting completions. Samples leave and new ones join between any two steps.
Not here: the forward passes (`agent.engine.runner`), the asynchronous surface (`transformers_engine`).
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from agent.engine import Completion
from agent.engine.attention import CompletionPages, KeyValues, PromptPages
from agent.engine.cache import PAGE
from agent.engine.requests import (
    AdapterRequest,
    GenerationRequest,
    Group,
    Sample,
    ScoreRequest,
    split_into_groups,
)
from agent.engine.runner import ModelRunner, Prompt, Tree
from agent.engine.sampling import draw_tokens
from agent.engine.scores import ScoreQueue, Trees
from agent.exceptions import AdapterError, EngineClosedError, EngineMemoryError

Request = GenerationRequest | ScoreRequest | AdapterRequest
T = TypeVar("T")

# Samples that share a prompt's pages at most; the widest group sets the width of every prompt product.
_GROUP_WIDTH = 8
# How long an idle engine waits for company of a request, seconds.
_COMPANY_S = 0.002


class AdapterHost(Protocol):
    """Loads, drops and switches the adapters of the model that the runner runs."""

    def load(self, request: AdapterRequest) -> None: ...
    def unload(self, name: str) -> None: ...
    def activate(self, name: str | None) -> None: ...
    def __contains__(self, name: str) -> bool: ...


class Worker(threading.Thread):
    """Runs until closed; `submit` may be called from any thread.

    Args:
        runner: the forward passes.
        adapters: the model's adapters.
        stop_ids: tokens that end a completion.
        to_text: token ids to text.
        max_sequences: samples running at once at most.
        pack_tokens: tokens of one prefill or scoring pass, unless a single request has more.
    """

    def __init__(
        self,
        runner: ModelRunner,
        adapters: AdapterHost,
        stop_ids: frozenset[int],
        to_text: Callable[[Sequence[int]], str],
        *,
        max_sequences: int,
        pack_tokens: int,
    ) -> None:
        super().__init__(name="engine", daemon=True)
        self._runner, self._adapters, self._stop_ids, self._to_text = runner, adapters, stop_ids, to_text
        self._max_samples = max_sequences
        self._pack_tokens = pack_tokens
        self._inbox: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._waiting: deque[Group] = deque()
        self._scores = ScoreQueue(pack_tokens)
        self._adapter_requests: list[AdapterRequest] = []
        self._running: list[Group] = []
        # Requests of the pass that is being computed: neither waiting any more nor running yet.
        self._computing: Sequence[GenerationRequest | ScoreRequest] = ()
        self._closing = False
        self._lock = threading.Lock()

    def submit(self, request: Request) -> None:
        """Queue a request. Raises EngineClosedError after `close`."""
        with self._lock:
            if self._closing:
                raise EngineClosedError("the engine is closed; start a new one")
            self._inbox.put(request)

    def close(self) -> None:
        """Take no more requests; the thread ends when what it has is finished."""
        with self._lock:
            self._closing = True
            self._inbox.put(None)

    def run(self) -> None:
        try:
            with torch.inference_mode():
                while self._receive():
                    self._serve_adapter_requests()
                    self._admit()
                    self._step()
                    self._score()
                    self._computing = ()
        except Exception as error:
            # Whoever waits must hear of it, and nobody may queue behind a dead loop.
            self._abort(error)
            raise

    def _abort(self, reason: Exception) -> None:
        self.close()
        error = EngineClosedError(f"the engine has died of {type(reason).__name__}: {reason}; start a new one")
        while not self._inbox.empty():
            if (arrived := self._inbox.get()) is not None:
                fail(arrived.future, error)
        for group in self._groups():
            fail(group.request.future, error)
        for request in (*self._computing, *self._scores, *self._adapter_requests):
            fail(request.future, error)

    # -- requests ------------------------------------------------------------------------------

    def _receive(self) -> bool:
        """Take what has arrived, waiting for it when there is nothing else to do. False ends the loop."""
        was_idle = False
        while True:
            idle = not (self._waiting or self._running or self._scores or self._adapter_requests)
            was_idle |= idle
            if idle and self._closing and self._inbox.empty():
                return False
            try:
                # What was submitted together starts together: in one batch, and the same one every time.
                request = self._inbox.get(block=idle or was_idle, timeout=None if idle else _COMPANY_S)
            except queue.Empty:
                return True
            match request:
                case GenerationRequest():
                    self._queue_generation(request)
                case ScoreRequest():
                    self._queue_score(request)
                case AdapterRequest():
                    self._adapter_requests.append(request)

    def _queue_score(self, request: ScoreRequest) -> None:
        if self._knows(request.adapter):
            self._scores.add(request)
        else:
            fail(request.future, AdapterError(f"adapter {request.adapter!r} is not loaded"))

    def _knows(self, adapter: str | None) -> bool:
        """Whether new requests may name it: loaded and not about to leave."""
        leaving = any(r.path is None and r.name == adapter for r in self._adapter_requests)
        return adapter is None or (adapter in self._adapters and not leaving)

    def _queue_generation(self, request: GenerationRequest) -> None:
        if not self._knows(request.adapter):
            fail(request.future, AdapterError(f"adapter {request.adapter!r} is not loaded"))
            return
        groups = split_into_groups(request, _GROUP_WIDTH)
        cache = self._runner.cache
        if (needed := max(g.most_pages for g in groups)) > cache.budget_pages:
            error = EngineMemoryError(
                f"a prompt of {len(request.prompt_ids)} tokens with up to {request.sampling.max_tokens} new ones needs "
                f"{needed} pages of cache, there are {cache.budget_pages}; shorten it or lower max_tokens"
            )
            fail(request.future, error)
            return
        self._waiting.extend(groups)

    def _serve_adapter_requests(self) -> None:
        for request in list(self._adapter_requests):
            if request.path is None and request.name in self._adapters_in_use():
                continue
            self._adapter_requests.remove(request)
            try:
                if request.path is None:
                    self._adapters.unload(request.name)
                    self._runner.prefixes.forget(request.name)
                else:
                    self._adapters.load(request)
            except Exception as error:
                fail(request.future, error)
            else:
                succeed(request.future, None)

    def _groups(self) -> list[Group]:
        return [*self._waiting, *self._running]

    def _adapters_in_use(self) -> set[str | None]:
        return {g.request.adapter for g in self._groups()} | {s.adapter for s in self._scores}

    # -- generation ----------------------------------------------------------------------------

    def _admit(self) -> None:
        """Prefill waiting groups, one pack of an adapter after the other, while the cache and the batch allow."""
        while groups := self._take_pack():
            self._computing = [group.request for group in groups]
            if not self._prefill(groups):
                break

    def _take_pack(self) -> list[Group]:
        """The next groups in order of arrival that can start together."""
        pack: list[Group] = []
        tokens = 0
        samples = sum(len(g.running) for g in self._running)
        pages = sum(g.most_pages for g in self._running)
        while self._waiting:
            group = self._waiting[0]
            if group.abandoned:
                self._waiting.popleft()
                continue
            tokens += group.prompt_length
            samples += group.count
            pages += group.most_pages
            if (self._running or pack) and (samples > self._max_samples or pages > self._runner.cache.budget_pages):
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

        def compute() -> tuple[Tensor, list[KeyValues | None]]:
            self._adapters.activate(adapter)
            return self._runner.prefill(prompts, adapter)

        computed = self._guarded(compute, groups if len(prompts) == 1 else [])
        if computed is None:
            for group in groups:
                self._release(group)
            outcomes = [self._prefill(siblings) for siblings in by_request.values()] if len(prompts) > 1 else []
            return any(outcomes)
        logits, prefixes = computed
        self._running.extend(groups)
        samples, rows = [], []
        for row, siblings in enumerate(by_request.values()):
            for group in siblings:
                group.prefix = prefixes[row]
                group.start()
            for sample in (s for g in siblings for s in g.running):
                samples.append(sample)
                rows.append(row)
        self._extend(samples, logits[rows])
        return True

    def _step(self) -> None:
        """One decode step for the running samples of every adapter."""
        self._drop_abandoned()
        for adapter in {g.request.adapter for g in self._running}:
            groups = [g for g in self._running if g.request.adapter == adapter]
            # Out of memory while decoding: the group that came last gives way to the others.
            logits = self._guarded(partial(self._decode_step, groups, adapter), groups[-1:])
            if logits is not None:
                self._extend([s for g in groups for s in g.running], logits)

    def _decode_step(self, groups: list[Group], adapter: str | None) -> Tensor:
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
        self._adapters.activate(adapter)
        return self._runner.decode(tokens, prompts, completions)

    def _extend(self, samples: list[Sample], logits: Tensor) -> None:
        """Append one drawn token to each sample, and hand over those that are finished."""
        ids, logprobs = draw_tokens(logits, [s.draw for s in samples])
        for sample, token, logprob in zip(samples, ids, logprobs, strict=True):
            sample.ids.append(token)
            sample.logprobs.append(logprob)
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

    # -- scoring -------------------------------------------------------------------------------

    def _score(self) -> None:
        """Score one pack of waiting completions, all under one adapter; those of the same prompt form one tree."""
        if trees := self._scores.take():
            self._computing = [request for branch in trees.values() for request in branch]
            self._score_trees(trees)

    def _score_trees(self, trees: Trees) -> None:
        requests = [request for branch in trees.values() for request in branch]

        def compute() -> list[list[list[float]]]:
            self._adapters.activate(requests[0].adapter)
            return self._runner.score([Tree(p, [r.completion_ids for r in branch]) for p, branch in trees.items()])

        scores = self._guarded(compute, requests if len(requests) == 1 else [])
        if scores is None and len(requests) > 1:
            for request in requests:
                self._score_trees({tuple(request.prompt_ids): [request]})
        elif scores is not None:
            for branch, branch_scores in zip(trees.values(), scores, strict=True):
                for request, logprobs in zip(branch, branch_scores, strict=True):
                    succeed(request.future, logprobs)

    def _guarded(self, compute: Callable[[], T], blamed: Sequence[Group | ScoreRequest]) -> T | None:
        """Run a forward pass; when it fails, fail the blamed requests and keep the loop alive."""
        try:
            return compute()
        except (RuntimeError, MemoryError) as error:
            reason: Exception = error
            if is_out_of_memory(error):
                reason = EngineMemoryError("the engine ran out of memory on this request; shorten it or lower n")
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
            for item in blamed:
                request = item.request if isinstance(item, Group) else item
                fail(request.future, reason)
            self._drop_abandoned()
            return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python refused memory; torch's CPU allocator only says so in words."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def succeed(future: Future[Any], result: object) -> None:
    if not future.done() and (future.running() or future.set_running_or_notify_cancel()):
        future.set_result(result)


def fail(future: Future[Any], error: Exception) -> None:
    if not future.done() and (future.running() or future.set_running_or_notify_cancel()):
        future.set_exception(error)
