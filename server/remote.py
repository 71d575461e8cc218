"""The agent's `Engine` over a Ray Serve handle: how the ingress talks to the copies of the engine.

The agent's errors cross as values, not as exceptions: a row that is too long is no failure of the deployment, and Ray
would log and wrap it as one.

An engine that dies takes every call with it that it was working on. They are made again once another engine answers,
as before, beside each other. Where that one dies too, one of them may be the reason: each is made a last time with
nothing beside it, and the one that then ends a third engine is to blame. The others never hear of it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from agent.engine import Completion, EngineInfo, Sampling
from agent.engine.urgency import is_bulk
from agent.exceptions import EngineClosedError, EngineCrashError, RewrightError
from server.metrics import EngineCount
from server.turns import Turns

_TRIES_TOGETHER = 2
_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """What one copy of the engine says of itself.

    Attributes:
        node: Ray's id of the machine that it runs on.
        actor: Ray's id of the copy itself; one that takes its place has another.
        answers: calls that it has answered.
        adapters: those that it has loaded.
    """

    node: str
    actor: str
    answers: int
    adapters: frozenset[str]


class RemoteEngine:
    """Engines in other processes; see `ServedEngine`. `check` must have succeeded once before `info` is known.

    Args:
        handle: of `server.deployments.EngineDeployment`.
        patience_s: how long a call waits for an engine after the one that it was made on has died, seconds.
    """

    def __init__(self, handle: DeploymentHandle[Any], patience_s: float) -> None:
        self._handle, self._patience_s = handle, patience_s
        self._info: EngineInfo | None = None
        self._turns = Turns()
        self._heard_of: set[str] = set()

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise EngineClosedError("the engine is starting: try again in a moment")
        return self._info

    async def check(self) -> None:
        """Ask an engine who it is; proves that one answers. Raises EngineClosedError."""
        self._info = await self._ask("describe")

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, n: int = 1, adapter: str | None = None
    ) -> list[Completion]:
        """See `Engine.generate`. Raises EngineCrashError when this very call kills engines."""
        arguments = list(prompt_ids), sampling, n, adapter, is_bulk()
        return cast(list[Completion], await self._call("generate", *arguments))

    async def score(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], adapter: str | None = None
    ) -> list[float]:
        """See `Engine.score`. Raises EngineCrashError when this very call kills engines."""
        arguments = list(prompt_ids), list(completion_ids), adapter, is_bulk()
        return cast(list[float], await self._call("score", *arguments))

    async def load(self, adapter: str) -> None:
        """Have it loaded on every engine that runs now; a later one loads it when it is asked for."""
        await self._ask_all("load", adapter)

    async def loaded(self) -> frozenset[str]:
        """See `ServedEngine.loaded`."""
        return frozenset.intersection(*(report.adapters for report in await self.reports()))

    async def reports(self) -> list[ReplicaReport]:
        """What every engine that runs now says of itself, at least one. Raises EngineClosedError."""
        return cast(list[ReplicaReport], await self._ask_all("report"))

    async def count(self) -> EngineCount:
        """See `ServedEngine.count`."""
        actors = {report.actor for report in await self.reports()}
        self._heard_of |= actors
        return EngineCount(answering=len(actors), started=len(self._heard_of))

    async def _call(self, method: str, *arguments: Any) -> Any:
        """One call, made again when its engine dies under it.

        Raises:
            RewrightError: whatever the engine raised.
            EngineClosedError: no engine takes its place, or takes more work.
            EngineCrashError: this call is what engines die of.
        """
        for _ in range(_TRIES_TOGETHER):
            async with self._turns.together():
                with contextlib.suppress(_DiedError):
                    return await self._ask(method, *arguments)
            await self._replaced()
        async with self._turns.alone():
            await self._replaced()
            try:
                return await self._ask(method, *arguments)
            except _DiedError as error:
                raise EngineCrashError(
                    f"the engine died {_TRIES_TOGETHER + 1} times on this row, the last time with nothing else to do"
                ) from error

    async def _ask(self, method: str, *arguments: Any) -> Any:
        """One call to one engine. Raises whatever the engine raised, and EngineClosedError."""
        try:
            answer = await _await(getattr(self._handle, method).remote(*arguments))
        except RayActorError as error:
            if error.actor_id is not None:
                self._heard_of.add(error.actor_id)
            raise _DiedError("the engine has died; it is being replaced") from error
        except (BackPressureError, DeploymentUnavailableError) as error:
            raise EngineClosedError(f"the engine takes no more work now: {error}") from error
        if isinstance(answer, EngineClosedError):
            raise _DiedError(str(answer)) from answer
        if isinstance(answer, RewrightError):
            raise answer
        return answer

    async def _ask_all(self, method: str, *arguments: Any) -> list[Any]:
        """One call to each engine; one that dies meanwhile is left out. Raises as `_ask`."""
        try:
            response = self._handle.broadcast(method, *arguments)
            answers = await response.results_async(timeout_s=self._patience_s, return_exceptions=True)
        except (DeploymentUnavailableError, TimeoutError) as error:
            raise EngineClosedError("an engine does not answer, or none is running; it is being replaced") from error
        for answer in answers:
            if isinstance(answer, Exception) and not isinstance(answer, RayActorError | EngineClosedError):
                raise answer
        alive = [answer for answer in answers if not isinstance(answer, Exception)]
        if not alive:
            raise EngineClosedError("the engine has died; it is being replaced")
        return alive

    async def _replaced(self) -> None:
        """Return when an engine answers. Raises EngineClosedError when none does in time."""
        try:
            async with asyncio.timeout(self._patience_s):
                while True:
                    with contextlib.suppress(EngineClosedError):
                        return await self.check()
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise EngineClosedError(f"the engine died, and none took its place in {self._patience_s:g} s") from None


class _DiedError(EngineClosedError):
    """The engine died while it had this call."""


async def _await(response: Any) -> Any:
    """The answer of a call that is cancelled over there when nobody waits for it here."""
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise
