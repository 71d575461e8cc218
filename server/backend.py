"""The application's `Backend` on the agent: demonstrations in, the body of the response out.

Not here: HTTP, and limits on how much is asked for.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from agent.chat import ChatFormat
from agent.demonstrations import BadRow, Demonstration
from agent.engine import EngineInfo
from agent.exceptions import (
    AdapterError,
    ChatError,
    EngineClosedError,
    EngineCrashError,
    EngineMemoryError,
    MismatchError,
    PromptTooLongError,
    SettingsError,
)
from agent.gate import Gate
from agent.intake import read_json_rows
from agent.mismatch import surprisal
from agent.pipeline import map_in_order, rewrite_rows
from agent.records import error_row
from agent.rewriter import Rewriter
from agent.settings import RewriteSettings
from agent.strategies import Strategy, find_strategy
from agent.usage import Usage
from server.adapters import AdapterStore
from server.exceptions import ConflictError, UnknownNameError
from server.hosting import ServedEngine
from server.metrics import EngineCount, Metrics
from server.observed import ObservedRewriter, counting_bad_rows
from server.schemas import MismatchBody, PinnedOptions, RewriteOptions, RewritesBody, SamplingBody

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer


class AgentBackend:
    """Rewrites and scores with one engine.

    Args:
        engine: samples and scores.
        chat: chat format of its model.
        gate: shared by all requests.
        settings: what a request does not override.
        adapters: which adapters a request may name.
        tracer: makes spans of requests, demonstrations and calls of the engine; None for none.

    Attributes:
        metrics: what it counts.
    """

    def __init__(
        self,
        engine: ServedEngine,
        chat: ChatFormat,
        gate: Gate,
        settings: RewriteSettings,
        adapters: AdapterStore,
        tracer: Tracer | None = None,
    ) -> None:
        self._engine: ServedEngine = engine
        self._chat, self._gate = chat, gate
        self._settings, self._adapters = settings, adapters
        self._activating = asyncio.Lock()
        self.metrics, self.tracer = Metrics(), tracer
        if tracer is not None:
            from server.tracing import TracedEngine

            self._engine = TracedEngine(engine, tracer)

    async def ping(self) -> EngineInfo:
        """See `Backend.ping`."""
        await self._engine.check()
        return self._engine.info

    async def aclose(self) -> None:
        """Stop the gate's processes."""
        await self._gate.aclose()

    async def rewrite(self, body: RewritesBody) -> dict[str, Any]:
        """See `Backend.rewrite`."""
        model = await self._model()
        rewriter = await self._rewriter(body)
        rows = list(counting_bad_rows(read_json_rows(body.demonstrations), self.metrics))
        data: list[dict[str, Any]] = []
        usage = Usage()
        try:
            async for row, used in rewrite_rows(rewriter, rows, model=model, concurrency=self._settings.concurrency):
                data.append(row)
                usage += used
        except AdapterError as error:
            raise self._refused(error, "adapter") from error
        return {"data": data, "usage": asdict(usage), "model": model}

    async def check_options(self, options: RewriteOptions) -> str | None:
        """See `Backend.check_options`."""
        await self._rewriter(options)
        return await asyncio.to_thread(self._adapters.resolve, options.adapter)

    async def rewrite_row(self, row: Demonstration | BadRow, options: RewriteOptions) -> dict[str, Any]:
        """See `Backend.rewrite_row`."""
        model = await self._model()
        if isinstance(row, BadRow):
            self.metrics.count_row("error", "expert")
            return error_row(row, model)
        try:
            return (await (await self._rewriter(options)).rewrite(row)).record.as_dict()
        except AdapterError as error:
            raise self._refused(error, "adapter") from error

    async def mismatch(self, body: MismatchBody) -> dict[str, Any]:
        """See `Backend.mismatch`."""
        model = await self._model()
        rows = list(read_json_rows(body.demonstrations))
        data = [row async for row in map_in_order(self._surprisal_row, rows, self._settings.concurrency)]
        return {"data": data, "model": model}

    async def list_adapters(self) -> dict[str, Any]:
        """See `AdapterBackend.list_adapters`."""
        return await asyncio.to_thread(self._listed, await self._engine.loaded())

    async def engines(self) -> EngineCount:
        """See `MetricsBackend.engines`."""
        return await self._engine.count()

    def active_adapters(self) -> dict[str, int]:
        """See `MetricsBackend.active_adapters`."""
        store = self._adapters
        return {name: version for name in store.names() if (version := store.active(name)) is not None}

    async def activate_adapter(self, name: str, version: int) -> dict[str, Any]:
        """See `AdapterBackend.activate_adapter`: what cannot be loaded everywhere does not become active."""
        adapter = await asyncio.to_thread(self._adapters.require, name, version)
        async with self._activating:
            try:
                await self._engine.load(adapter)
            except AdapterError as error:
                raise self._refused(error, "version") from error
            previous = await asyncio.to_thread(self._adapters.active, name)
            await asyncio.to_thread(self._adapters.activate, name, version)
        return {"name": name, "active": version, "previous": previous}

    def _listed(self, loaded: frozenset[str]) -> dict[str, Any]:
        store = self._adapters
        data = []
        for name in store.names():
            versions = [asdict(v) | {"loaded": f"{name}@{v.version}" in loaded} for v in store.published(name)]
            data.append({"name": name, "active": store.active(name), "versions": versions})
        return {"data": data, "default": store.resolve(None)}

    def _refused(self, error: AdapterError, param: str) -> ConflictError:
        return ConflictError(self._adapters.without_paths(str(error)), code="adapter_refused", param=param)

    async def _model(self) -> str:
        """Name of the model; asks the engine the first time, which fails while it is starting."""
        try:
            return self._engine.info.model
        except EngineClosedError:
            return (await self.ping()).model

    async def _rewriter(self, body: RewriteOptions) -> Rewriter:
        name = body.strategy or self._settings.strategy
        try:
            strategy = find_strategy(name, self._settings)
        except SettingsError as error:
            raise UnknownNameError(str(error), code="unknown_strategy", param="strategy") from None
        adapter = body.adapter
        if not isinstance(body, PinnedOptions):
            adapter = await asyncio.to_thread(self._adapters.resolve, adapter)
        return ObservedRewriter(
            self.metrics,
            self.tracer,
            self._engine,
            self._chat,
            self._gate,
            override_steps(strategy, body.sampling),
            override_settings(self._settings, body.sampling),
            adapter,
        )

    async def _surprisal_row(self, row: Demonstration | BadRow) -> dict[str, Any]:
        if isinstance(row, BadRow):
            return _surprisal_error(row.id, row.line, row.field, row.message)
        try:
            scored = await surprisal(self._engine, self._chat, row.prompt, row.expert)
        except (ChatError, PromptTooLongError, EngineMemoryError, EngineCrashError, MismatchError) as error:
            return _surprisal_error(row.id, row.line, None, str(error))
        self.metrics.count_tokens(Usage(scored_tokens=len(scored.tokens)))
        tokens = [{"text": text, "nats": round(nats, 6)} for text, nats in zip(scored.tokens, scored.nats, strict=True)]
        return {"id": row.id, "mismatch": scored.summary().as_dict(), "tokens": tokens, "error": None}


def override_steps(strategy: Strategy, sampling: SamplingBody) -> Strategy:
    """The strategy with the request's temperature and number of samples in every step."""
    changes: dict[str, Any] = {}
    if sampling.temperature is not None:
        changes["temperatures"] = (sampling.temperature,)
    if sampling.samples is not None:
        changes["samples"] = sampling.samples
    return tuple(step.model_copy(update=changes) for step in strategy)


def override_settings(settings: RewriteSettings, sampling: SamplingBody) -> RewriteSettings:
    """The settings with what the request states."""
    stated = sampling.model_dump(include={"top_p", "max_tokens", "seed"}, exclude_none=True)
    return settings.model_copy(update=stated)


def _surprisal_error(row_id: str, line: int | None, field: str | None, message: str) -> dict[str, Any]:
    error = {"line": line, "field": field, "message": message}
    return {"id": row_id, "mismatch": None, "tokens": [], "error": error}
