"""The engine over a handle: what happens to errors, deaths and cancellation. Real Ray is in tests/integration."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Generator
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from agent.engine import EngineInfo, Sampling
from agent.engine.urgency import bulk_work
from agent.exceptions import EngineClosedError, EngineCrashError, PromptTooLongError, RewrightError
from server.remote import RemoteEngine

INFO = EngineInfo("scripted", 128)
PATIENCE_S = 30.0


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
        if isinstance(self._outcome, Exception) and not isinstance(self._outcome, RewrightError):
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

    def remote(self, *arguments: Any) -> ScriptedCall:
        self.arguments = arguments
        return next(self._next)


def _engine(*outcomes: Any) -> RemoteEngine:
    return RemoteEngine(ScriptedHandle(*outcomes), PATIENCE_S)  # type: ignore[arg-type]


async def test_the_info_is_unknown_until_the_engine_has_answered() -> None:
    engine = _engine(INFO)
    with pytest.raises(EngineClosedError, match="starting"):
        _ = engine.info
    await engine.check()
    assert engine.info == INFO


async def test_an_engine_is_told_which_calls_are_bulk_work() -> None:
    handle = ScriptedHandle([-1.5], [], [-1.5])
    engine = RemoteEngine(handle, PATIENCE_S)  # type: ignore[arg-type]
    with bulk_work():
        await engine.score([1], [2])
        assert handle.arguments == ([1], [2], None, True)
        await engine.generate([1], Sampling(), 2, "math@1")
        assert handle.arguments == ([1], Sampling(), 2, "math@1", True)
    await engine.score([1], [2])
    assert handle.arguments == ([1], [2], None, False)


async def test_an_error_of_the_agent_is_raised_as_itself() -> None:
    engine = _engine(PromptTooLongError("600 tokens"))
    with pytest.raises(PromptTooLongError, match="600 tokens"):
        await engine.score([1], [2])


async def test_a_call_whose_engine_dies_is_made_again_when_another_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.remote._POLL_S", 0.01)
    outcomes = (ActorDiedError(), DeploymentUnavailableError("engine"), EngineClosedError("dead"), INFO, [-1.5])
    assert await _engine(*outcomes).score([1], [2]) == [-1.5]


async def test_an_engine_that_says_it_is_dead_is_as_good_as_one_that_died() -> None:
    assert await _engine(EngineClosedError("dead"), INFO, [-1.5]).score([1], [2]) == [-1.5]


async def test_a_call_that_kills_three_engines_is_not_made_a_fourth_time() -> None:
    outcomes = [ActorDiedError(), INFO, ActorDiedError(), INFO, INFO, ActorDiedError(), [-1.5]]
    with pytest.raises(EngineCrashError, match="died 3 times"):
        await _engine(*outcomes).score([1], [2])


async def test_an_engine_that_never_comes_back_is_waited_for_with_an_end() -> None:
    handle = ScriptedHandle(ActorDiedError(), None)
    with pytest.raises(EngineClosedError, match=r"none took its place in 0\.05 s"):
        await RemoteEngine(handle, 0.05).score([1], [2])  # type: ignore[arg-type]
    assert handle.calls[1].cancelled


class MortalEngine:
    """Stands in for a handle: calls of a moment are worked on together, and a poison takes them all with it."""

    def __init__(self, poisons: set[int]) -> None:
        self.deaths = 0
        self.made: Counter[int] = Counter()
        self._poisons = poisons
        self._working: list[tuple[int, asyncio.Future[list[float]]]] = []
        self.describe = SimpleNamespace(remote=self._describe)
        self.score = SimpleNamespace(remote=self._score)

    async def _describe(self) -> EngineInfo:
        return INFO

    async def _score(self, prompt: list[int], *_: object) -> list[float]:
        self.made[prompt[0]] += 1
        future: asyncio.Future[list[float]] = asyncio.get_running_loop().create_future()
        self._working.append((prompt[0], future))
        asyncio.get_running_loop().call_later(0.01, self._answer)
        return await future

    def _answer(self) -> None:
        working, self._working = self._working, []
        died = any(number in self._poisons for number, _ in working)
        self.deaths += died
        for number, future in working:
            if died:
                future.set_exception(ActorDiedError())
            else:
                future.set_result([-float(number)])


async def test_of_many_calls_only_those_that_kill_the_engine_fail() -> None:
    handle = MortalEngine(poisons={3, 17})
    engine = RemoteEngine(handle, PATIENCE_S)  # type: ignore[arg-type]
    calls = [asyncio.create_task(engine.score([number], [0])) for number in range(32)]
    late = asyncio.create_task(_later(engine, 40))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [number for number, outcome in enumerate(outcomes) if isinstance(outcome, EngineCrashError)] == [3, 17]
    assert all(outcomes[number] == [-float(number)] for number in range(32) if number not in (3, 17))
    assert await late == [-40.0]
    assert handle.deaths == 4  # twice together, and once for each of the two
    assert max(handle.made.values()) == 3


async def _later(engine: RemoteEngine, number: int) -> list[float]:
    await asyncio.sleep(0.05)
    return await engine.score([number], [0])


async def test_back_pressure_means_that_the_engine_is_unavailable() -> None:
    with pytest.raises(EngineClosedError, match="no more work"):
        await _engine(BackPressureError(9, 9)).generate([1], Sampling())


async def test_cancelling_here_cancels_over_there() -> None:
    handle = ScriptedHandle(None)
    task = asyncio.create_task(RemoteEngine(handle, PATIENCE_S).score([1], [2]))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert handle.calls[0].cancelled
