"""The two Ray Serve deployments: the engine in processes of its own, the HTTP application in front of it.

Not here: starting and stopping Ray (`server.run`).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable
from typing import Any, TypeVar

from ray import serve
from ray.runtime_context import get_runtime_context
from ray.serve import Application
from ray.serve.config import AutoscalingConfig
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from agent.assembly import build_gate, open_chat
from agent.engine import Completion, EngineInfo, Sampling
from agent.engine.urgency import bulk_work
from agent.exceptions import EngineClosedError, RewrightError
from agent.models import resolve_model
from agent.settings import EngineSettings, GateSettings, ModelSettings, RewriteSettings
from server.adapters import AdapterStore
from server.app import create_app
from server.auth import Keys
from server.backend import AgentBackend
from server.cluster_jobs import Served
from server.hosting import host_engine
from server.logs import set_up_logging
from server.observed import open_tracing
from server.remote import RemoteEngine, ReplicaReport
from server.settings import ServerSettings
from server.work import DurableWork

T = TypeVar("T")

_log = logging.getLogger("rewright.server")
_UNBOUNDED = 100_000  # the bound on work is Admission's; the engine batches whatever is waiting
_START_ATTEMPTS = 3
_CALLS_PER_ROW = 8  # candidates and scores that one demonstration may ask for at the same time


class EngineDeployment:
    """Holds one engine. Errors of the agent are returned, everything else is raised."""

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self, model: ModelSettings, settings: EngineSettings, default_adapter: str | None, server: ServerSettings
    ) -> None:
        set_up_logging(server)
        files = await asyncio.to_thread(resolve_model, model)
        store = AdapterStore(server.adapters, default_adapter, files.name)
        self._engine = await host_engine(files, settings, store, server.loaded_adapters)
        self._answers = 0
        self._answers_at_last_check = 0

    async def describe(self) -> EngineInfo | RewrightError:
        return await self._answer(self._check_and_describe())

    async def generate(
        self, prompt_ids: list[int], sampling: Sampling, n: int, adapter: str | None, bulk: bool
    ) -> list[Completion] | RewrightError:
        with bulk_work(bulk):
            return await self._work(self._engine.generate(prompt_ids, sampling, n, adapter))

    async def score(
        self, prompt_ids: list[int], completion_ids: list[int], adapter: str | None, bulk: bool
    ) -> list[float] | RewrightError:
        with bulk_work(bulk):
            return await self._work(self._engine.score(prompt_ids, completion_ids, adapter))

    async def load(self, adapter: str) -> RewrightError | None:
        return await self._answer(self._engine.load(adapter))

    async def report(self) -> ReplicaReport:
        here = get_runtime_context()
        return ReplicaReport(here.get_node_id(), here.get_actor_id() or "", self._answers, await self._engine.loaded())

    async def _check_and_describe(self) -> EngineInfo:
        await self._engine.check()
        return self._engine.info

    async def _work(self, work: Awaitable[T]) -> T | RewrightError:
        answer = await self._answer(work)
        if not isinstance(answer, RewrightError):
            self._answers += 1
        return answer

    async def _answer(self, work: Awaitable[T]) -> T | RewrightError:
        try:
            return await work
        except RewrightError as error:
            if isinstance(error, EngineClosedError):
                await self._end_if_dead()
            return error

    async def _end_if_dead(self) -> None:
        """A dead engine takes its process with it: that is seen at once, and no further call is sent here.

        By its health alone the replica would be given work until it has failed several checks in a row.
        """
        try:
            await self._engine.check()
        except EngineClosedError as error:
            _log.error("this replica ends: %s", error)
            os._exit(1)

    async def check_health(self) -> None:
        """Healthy is an engine that has answered since the last look, or does so now. Raises what it raises."""
        if self._answers == self._answers_at_last_check:
            await self._engine.score([0], [0])  # first: an engine that has just answered is not asked once more
        await self._engine.check()
        self._answers_at_last_check = self._answers

    async def __del__(self) -> None:
        if engine := getattr(self, "_engine", None):  # Ray ends a replica whose start has failed too
            await engine.close()


@serve.ingress()
class ApiDeployment:
    """The HTTP application, with rewriter and gate in its own process."""

    def __init__(
        self,
        engine: DeploymentHandle[Any],
        model: ModelSettings,
        gate: GateSettings,
        rewrite: RewriteSettings,
        server: ServerSettings,
        keys: Keys,
    ) -> None:
        set_up_logging(server)
        remote = RemoteEngine(engine, server.ray.engine_start_timeout_s)
        files = resolve_model(model)
        chat = open_chat(files)
        store = AdapterStore(server.adapters, rewrite.adapter, files.name)
        self._tracing = open_tracing(server)
        tracer = self._tracing.tracer if self._tracing else None
        self._backend = AgentBackend(remote, chat, build_gate(remote, chat, gate), rewrite, store, tracer)
        self._work = DurableWork(server, Served(model, gate, rewrite))
        self._app = create_app(self._backend, server, keys, self._work, proxied=True)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._app

    async def drain(self) -> None:
        """Take no more work and return when what is in flight is done."""
        self._work.begin_stop()
        admission = self._app.state.admission
        admission.close()
        await admission.drained()

    async def __del__(self) -> None:
        if backend := getattr(self, "_backend", None):
            await backend.aclose()
        if tracing := getattr(self, "_tracing", None):
            await asyncio.to_thread(tracing.close)


def build_application(
    model: ModelSettings,
    engine: EngineSettings,
    gate: GateSettings,
    rewrite: RewriteSettings,
    server: ServerSettings,
    keys: Keys,
) -> Application:
    """Both deployments, wired."""
    ray = server.ray
    here = {name: path.absolute() for name in ("adapters", "log_file") if (path := getattr(server, name)) is not None}
    # Ray's processes have working folders of their own, and on a cluster that runs already another $REWRIGHT_HOME.
    data = server.cluster.benchmark_data
    folders = {"models": server.models_folder, "benchmark_data": data and data.absolute()}
    cluster = server.cluster.model_copy(update=folders)
    server = server.model_copy(update={**here, "state": str(server.state_folder), "cluster": cluster})
    scaling = None
    if ray.engine_max_replicas is not None:
        scaling = AutoscalingConfig(
            min_replicas=ray.engine_replicas,
            max_replicas=ray.engine_max_replicas,
            target_ongoing_requests=ray.engine_target_calls,
        )
    engine_deployment = serve.deployment(
        name="engine",
        num_replicas=ray.engine_replicas if scaling is None else None,
        autoscaling_config=scaling,
        ray_actor_options={"num_cpus": ray.engine_cpus, "num_gpus": ray.engine_gpus},
        max_ongoing_requests=_UNBOUNDED,
        max_queued_requests=_CALLS_PER_ROW * server.limits.queue_rows,
        max_constructor_retry_count=_START_ATTEMPTS,
        health_check_period_s=ray.health_period_s,
        health_check_timeout_s=ray.health_timeout_s,
        graceful_shutdown_timeout_s=server.drain_timeout_s,  # what a copy works on when the load no longer needs it
    )(EngineDeployment)
    api_deployment = serve.deployment(
        name="api",
        # Files, jobs and keys lie in a folder of the head node, whose resource Ray names so.
        ray_actor_options={"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}},
        max_ongoing_requests=_UNBOUNDED,
        max_constructor_retry_count=_START_ATTEMPTS,
        graceful_shutdown_timeout_s=server.drain_timeout_s,
    )(ApiDeployment)
    return api_deployment.bind(
        engine_deployment.bind(model, engine, rewrite.adapter, server), model, gate, rewrite, server, keys
    )
