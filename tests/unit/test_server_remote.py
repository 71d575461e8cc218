"""The engine over a handle: what happens to errors, deaths and cancellation. Real Ray is in tests/integration."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError

from agent.engine import EngineInfo, Sampling
from agent.exceptions import EngineClosedError, PromptTooLongError
from server.remote import RemoteEngine

INFO = EngineInfo("scripted", 128)


class ScriptedCall:
    """What a handle returns: awaited, it gives or raises its outcome; None never comes."""

    def __init__(self, outcome: Any) -> None:
        self._outcome = outcome
        self.cancelled = False

    def __await__(self) -> Generator[Any, None, Any]:
        return self._wait().__await__()

    async def _wait(self) -> Any:
        if self._outcome is None:
            await asyncio.Event().wait()
        if isinstance(self._outcome, Exception) and not isinstance(self._outcome, PromptTooLongError):
            raise self._outcome
        return self._outcome

    def cancel(self) -> None:
        self.cancelled = True


class ScriptedHandle:
    """Stands in for a Serve handle: one outcome a call, whatever is called."""

    def __init__(self, *outcomes: Any) -> None:
        self.calls = [ScriptedCall(outcome) for outcome in outcomes]
        self._next = iter(self.calls)

    def __getattr__(self, _: str) -> ScriptedHandle:
        return self

    def remote(self, *_: Any) -> ScriptedCall:
        return next(self._next)


def _engine(*outcomes: Any) -> RemoteEngine:
    return RemoteEngine(ScriptedHandle(*outcomes))  # type: ignore[arg-type]


async def test_the_info_is_unknown_until_the_engine_has_answered() -> None:
    engine = _engine(INFO)
    with pytest.raises(EngineClosedError, match="starting"):
        _ = engine.info
    await engine.check()
    assert engine.info == INFO


async def test_an_error_of_the_agent_is_raised_as_itself() -> None:
    engine = _engine(PromptTooLongError("600 tokens"))
    with pytest.raises(PromptTooLongError, match="600 tokens"):
        await engine.score([1], [2])


async def test_a_call_whose_engine_dies_is_made_again() -> None:
    assert await _engine(ActorDiedError(), [-1.5]).score([1], [2]) == [-1.5]


async def test_a_call_that_kills_two_engines_is_not_made_a_third_time() -> None:
    with pytest.raises(EngineClosedError, match="died twice"):
        await _engine(ActorDiedError(), ActorDiedError(), [-1.5]).score([1], [2])


async def test_back_pressure_means_that_the_engine_is_unavailable() -> None:
    with pytest.raises(EngineClosedError, match="no more work"):
        await _engine(BackPressureError(9, 9)).generate([1], Sampling())


async def test_cancelling_here_cancels_over_there() -> None:
    handle = ScriptedHandle(None)
    task = asyncio.create_task(RemoteEngine(handle).score([1], [2]))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert handle.calls[0].cancelled
