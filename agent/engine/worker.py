"""The engine's loop: one thread that owns the model and turns waiting requests into forward passes.

Each round admits waiting groups into free slots (prefill), draws one token for every running sample, and
scores one pack of waiting completions. Samples leave and new ones join between any two steps. While somebody waits
for an answer, bulk work (`agent.engine.urgency`) has only some of the rounds; its samples keep their place meanwhile.
Not here: what a round computes (`agent.engine.generation`, `agent.engine.scoring`), the asynchronous surface
(`transformers_engine`).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from agent.engine.generation import Generation
from agent.engine.passes import fail, succeed
from agent.engine.requests import AdapterRequest, GenerationRequest, ScoreRequest
from agent.engine.runner import ModelRunner
from agent.engine.scoring import Scoring
from agent.exceptions import AdapterError, EngineClosedError

Request = GenerationRequest | ScoreRequest | AdapterRequest

# How long an idle engine waits for company of a request, seconds.
_COMPANY_S = 0.002
# Of the rounds while there is urgent work, one in so many is of bulk work too, so that it goes on.
_BULK_ROUNDS = 8


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
        max_sequences: samples running at once at most, of bulk work and of other work each.
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
        self._runner, self._adapters = runner, adapters
        self._generation = Generation(
            runner, adapters.activate, stop_ids, to_text, max_samples=max_sequences, pack_tokens=pack_tokens
        )
        self._scoring = Scoring(runner, adapters.activate, pack_tokens=pack_tokens)
        self._inbox: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._adapter_requests: list[AdapterRequest] = []
        self._closing = False
        self._lock = threading.Lock()
        self._rounds = 0

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
                    self._round()
        except Exception as error:
            # Whoever waits must hear of it, and nobody may queue behind a dead loop.
            self._abort(error)
            raise

    def _round(self) -> None:
        self._rounds += 1
        urgent = self._generation.urgent or self._scoring.urgent
        bulk = not urgent or self._rounds % _BULK_ROUNDS == 0
        self._generation.admit(bulk=bulk)
        self._generation.step(bulk=bulk)
        self._scoring.step(bulk=bulk)

    def _abort(self, reason: Exception) -> None:
        self.close()
        error = EngineClosedError(f"the engine has died of {type(reason).__name__}: {reason}; start a new one")
        while not self._inbox.empty():
            if (arrived := self._inbox.get()) is not None:
                fail(arrived.future, error)
        requests: list[Request] = [*self._generation.requests(), *self._scoring.requests(), *self._adapter_requests]
        for request in requests:
            fail(request.future, error)

    # -- requests ------------------------------------------------------------------------------

    def _receive(self) -> bool:
        """Take what has arrived, waiting for it when there is nothing else to do. False ends the loop."""
        was_idle = False
        while True:
            idle = not (self._generation or self._scoring or self._adapter_requests)
            was_idle |= idle
            if idle and self._closing and self._inbox.empty():
                return False
            try:
                # What was submitted together starts together: in one batch, and the same one every time.
                request = self._inbox.get(block=idle or was_idle, timeout=None if idle else _COMPANY_S)
            except queue.Empty:
                return True
            match request:
                case None:
                    pass  # of `close`, to wake this loop
                case AdapterRequest():
                    self._adapter_requests.append(request)
                case _ if not self._knows(request.adapter):
                    fail(request.future, AdapterError(f"adapter {request.adapter!r} is not loaded"))
                case GenerationRequest():
                    self._generation.add(request)
                case ScoreRequest():
                    self._scoring.add(request)

    def _knows(self, adapter: str | None) -> bool:
        """Whether new requests may name it: loaded and not about to leave."""
        leaving = any(r.path is None and r.name == adapter for r in self._adapter_requests)
        return adapter is None or (adapter in self._adapters and not leaving)

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

    def _adapters_in_use(self) -> set[str | None]:
        return {r.adapter for r in self._generation.requests()} | {r.adapter for r in self._scoring.requests()}
