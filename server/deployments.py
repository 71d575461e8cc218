"""The two Ray Serve deployments: the engine in processes of its own, the HTTP application in front of it.

Not here: starting and stopping Ray (`server.run`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, TypeVar

from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from agent.adapters import open_adapter
from agent.assembly import build_gate, load_adapter, open_chat, open_engine
from agent.engine import Completion, Engine, EngineInfo, Sampling
from agent.exceptions import RewrightError
from agent.models import resolve_model
from agent.settings import EngineSettings, GateSettings, ModelSettings, RewriteSettings
from server.app import create_app
from server.auth import Keys
from server.backend import AgentBackend
from server.remote import RemoteEngine
from server.settings import ServerSettings
from server.work import DurableWork

T = TypeVar("T")

_UNBOUNDED = 100_000  # the bound on work is Admission's; the engine batches whatever is waiting
_START_ATTEMPTS = 3
_CALLS_PER_ROW = 8  # candidates and scores that one demonstration may ask for at the same time


class EngineDeployment:
    """Holds one engine. Errors of the agent are returned, everything else is raised."""

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self, model: ModelSettings, settings: EngineSettings, adapter: str | None
    ) -> None:
        files = await asyncio.to_thread(resolve_model, model)
        self._engine: Engine = await open_engine(files, settings)
        if adapter is not None:
            await load_adapter(self._engine, Path(adapter), files)
        self._answers = 0
        self._answers_at_last_check = 0

    async def describe(self) -> EngineInfo | RewrightError:
        try:
            await self._engine.check()
        except RewrightError as error:
            return error
        return self._engine.info

    async def generate(
        self, prompt_ids: list[int], sampling: Sampling, n: int, adapter: str | None
    ) -> list[Completion] | RewrightError:
        return await self._answer(self._engine.generate(prompt_ids, sampling, n, adapter))

    async def score(
        self, prompt_ids: list[int], completion_ids: list[int], adapter: str | None
    ) -> list[float] | RewrightError:
        return await self._answer(self._engine.score(prompt_ids, completion_ids, adapter))

    async def _answer(self, work: Awaitable[T]) -> T | RewrightError:
        try:
            result = await work
        except RewrightError as error:
            return error
        self._answers += 1
        return result

    async def check_health(self) -> None:
        """Healthy is an engine that has answered since the last look, or does so now. Raises what it raises."""
        await self._engine.check()
        if self._answers == self._answers_at_last_check:
            await self._engine.score([0], [0])
        self._answers_at_last_check = self._answers

    async def __del__(self) -> None:
        await self._engine.close()


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
        remote = RemoteEngine(engine)
        files = resolve_model(model)
        chat = open_chat(files)
        adapter = open_adapter(Path(rewrite.adapter), files.name).name if rewrite.adapter else None
        self._backend = AgentBackend(remote, chat, build_gate(remote, chat, gate), rewrite, adapter=adapter)
        self._work = DurableWork(server)
        self._app = create_app(self._backend, server, keys, self._work)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._app

    async def drain(self) -> None:
        """Take no more work and return when what is in flight is done."""
        self._work.begin_stop()
        admission = self._app.state.admission
        admission.close()
        await admission.drained()

    async def __del__(self) -> None:
        await self._backend.aclose()


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
    engine_deployment = serve.deployment(
        name="engine",
        num_replicas=ray.engine_replicas,
        ray_actor_options={"num_cpus": ray.engine_cpus, "num_gpus": ray.engine_gpus},
        max_ongoing_requests=_UNBOUNDED,
        max_queued_requests=_CALLS_PER_ROW * server.limits.queue_rows,
        max_constructor_retry_count=_START_ATTEMPTS,
        health_check_period_s=ray.health_period_s,
        health_check_timeout_s=ray.health_timeout_s,
    )(EngineDeployment)
    api_deployment = serve.deployment(
        name="api",
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=_UNBOUNDED,
        max_constructor_retry_count=_START_ATTEMPTS,
    )(ApiDeployment)
    return api_deployment.bind(
        engine_deployment.bind(model, engine, rewrite.adapter), model, gate, rewrite, server, keys
    )
