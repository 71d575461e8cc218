"""The agent's `Engine` over a Ray Serve handle: how the ingress talks to the engine's deployment.

The agent's errors cross as values, not as exceptions: a row that is too long is no failure of the
deployment, and Ray would log and wrap it as one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from agent.engine import Completion, EngineInfo, Sampling
from agent.exceptions import AdapterError, EngineClosedError, RewrightError

T = TypeVar("T")


class RemoteEngine:
    """An engine in another process. `check` must have succeeded once before `info` is known.

    Args:
        handle: of `server.deployments.EngineDeployment`.
    """

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle
        self._info: EngineInfo | None = None

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise EngineClosedError("the engine is starting: try again in a moment")
        return self._info

    async def check(self) -> None:
        """Ask an engine who it is; proves that one answers. Raises EngineClosedError."""
        self._info = await self._call("describe")

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, n: int = 1, adapter: str | None = None
    ) -> list[Completion]:
        return cast(list[Completion], await self._call("generate", list(prompt_ids), sampling, n, adapter))

    async def score(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], adapter: str | None = None
    ) -> list[float]:
        return cast(list[float], await self._call("score", list(prompt_ids), list(completion_ids), adapter))

    async def load_adapter(self, name: str, path: Path) -> None:
        raise AdapterError(f"adapter {name!r} cannot be loaded into a running service")

    async def unload_adapter(self, name: str) -> None:
        raise AdapterError(f"adapter {name!r} cannot be unloaded from a running service")

    async def close(self) -> None:
        """Nothing to do: the deployment owns the engine."""

    async def _call(self, method: str, *arguments: Any) -> Any:
        """One call, made again on another replica when the first one dies under it.

        Raises:
            RewrightError: whatever the engine raised.
            EngineClosedError: there is no engine to ask, or it died twice.
        """
        for last_try in (False, True):
            try:
                answer = await _await(getattr(self._handle, method).remote(*arguments))
            except RayActorError as error:
                if last_try:
                    raise EngineClosedError("the engine died twice on this request; it is being replaced") from error
            except (BackPressureError, DeploymentUnavailableError) as error:
                raise EngineClosedError(f"the engine takes no more work now: {error}") from error
            else:
                if isinstance(answer, RewrightError):
                    raise answer
                return answer
        raise AssertionError("unreachable")


async def _await(response: Any) -> Any:
    """The answer of a call that is cancelled over there when nobody waits for it here."""
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise
