"""An engine whose accelerator breaks: it says so, to those who call it and to those who only look."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.engine import Completion, EngineInfo, Sampling
from agent.engine.urgency import bulk_work, is_bulk
from agent.exceptions import EngineClosedError, PromptTooLongError
from agent.models import ModelFiles
from server.adapters import AdapterStore
from server.deployments import EngineDeployment
from server.hosting import HostedEngine
from tests.scripted_engine import QuietEngine

BROKEN = RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED")


class Engine(QuietEngine):
    """Its thread lives on whatever happens.

    Attributes:
        broken: it fails on everything.
        probes: whether each score of one token after another was bulk work.
    """

    def __init__(self) -> None:
        self.info = EngineInfo("scripted", 64)
        self.broken = False
        self.go = asyncio.Event()
        self.probes: list[bool] = []

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, n: int = 1, adapter: str | None = None
    ) -> list[Completion]:
        await self.go.wait()
        return []

    async def score(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], adapter: str | None = None
    ) -> list[float]:
        if (prompt_ids, completion_ids) == ([0], [0]):
            self.probes.append(is_bulk())
            await asyncio.sleep(0)
        if self.broken:
            raise BROKEN
        if len(prompt_ids) > 64:
            raise PromptTooLongError("65 tokens")
        if prompt_ids == [13]:
            raise RuntimeError("a defect")
        return [-1.0]


@pytest.fixture
async def engine() -> Engine:
    return Engine()


@pytest.fixture
async def hosted(engine: Engine) -> HostedEngine:
    return HostedEngine(engine, ModelFiles("scripted", Path(), None), AdapterStore().path_of, 1)


async def test_a_call_on_a_broken_engine_finds_it_dead_and_so_does_every_look(
    engine: Engine, hosted: HostedEngine
) -> None:
    await hosted.score([1], [2])
    engine.broken = True
    with bulk_work(), pytest.raises(EngineClosedError, match="whatever it is asked"):
        await hosted.score([1], [2])
    for _ in range(2):
        with pytest.raises(EngineClosedError):
            await hosted.check()
    assert engine.probes == [False] * 3, "a question that waits behind bulk work tells nothing"
    engine.broken = False
    await hosted.check()


async def test_a_call_that_fails_alone_fails_as_itself(engine: Engine, hosted: HostedEngine) -> None:
    with pytest.raises(RuntimeError, match="a defect"):
        await hosted.score([13], [2])
    with pytest.raises(PromptTooLongError):
        await hosted.score([1] * 65, [2])
    assert len(engine.probes) == 1
    await hosted.check()


async def test_an_idle_engine_is_asked_and_one_at_work_is_not(engine: Engine, hosted: HostedEngine) -> None:
    await asyncio.gather(*(hosted.check() for _ in range(9)))
    await hosted.check()
    assert len(engine.probes) == 1, "those who ask together, or soon after, have the same answer"
    hosted._answered_at = 0.0
    working = asyncio.create_task(hosted.generate([1], Sampling()))
    await asyncio.sleep(0)
    await hosted.check()
    assert len(engine.probes) == 1
    engine.go.set()
    await working
    engine.broken = True
    hosted._answered_at = 0.0
    with pytest.raises(EngineClosedError):
        await hosted.check()


async def test_a_replica_ends_with_an_engine_that_fails_on_everything(
    engine: Engine, hosted: HostedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[int] = []
    monkeypatch.setattr("server.deployments.os._exit", ends.append)
    replica: Any = SimpleNamespace(_engine=hosted)
    replica._end_if_dead = partial(EngineDeployment._end_if_dead, replica)
    with pytest.raises(RuntimeError, match="a defect"):
        await EngineDeployment._answer(replica, hosted.score([13], [2]))
    assert ends == []
    engine.broken = True
    assert isinstance(await EngineDeployment._answer(replica, hosted.score([1], [2])), EngineClosedError)
    assert ends == [1]
