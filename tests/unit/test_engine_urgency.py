"""Bulk work beside work that somebody waits for: who goes first, and that neither waits for ever. A tiny real model."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.engine import Sampling, urgency
from agent.engine.transformers_engine import TransformersEngine
from agent.engine.urgency import bulk_work, is_bulk
from agent.settings import EngineSettings
from tests.tiny_chat import tiny_tokenizer, write_tiny_model

PROMPT = [4, 5, 6]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
async def engine(folder: Path) -> AsyncIterator[TransformersEngine]:
    settings = EngineSettings(dtype="float32", device="cpu", threads=1, max_sequences=4)
    opened = TransformersEngine("tiny", folder, tiny_tokenizer(), frozenset(), settings)
    yield opened
    await opened.close()


async def draw(engine: TransformersEngine, ended: list[str], name: str, tokens: int, n: int = 1) -> None:
    """Draw so many tokens, as bulk work where the name says so, and note the end; no token stops a completion."""
    with bulk_work(name.startswith("bulk")):
        drawn = await engine.generate(PROMPT, Sampling(max_tokens=tokens, seed=1), n)
    assert [len(completion.ids) for completion in drawn] == [tokens] * n
    ended.append(name)


async def test_running_bulk_work_pauses_for_a_call_that_is_longer(engine: TransformersEngine) -> None:
    ended: list[str] = []
    await asyncio.gather(draw(engine, ended, "bulk", 30), draw(engine, ended, "urgent", 50))
    assert ended == ["urgent", "bulk"]


async def test_calls_of_one_kind_are_served_as_they_came(engine: TransformersEngine) -> None:
    for kind in ("bulk", "urgent"):
        ended: list[str] = []
        names = [f"{kind} {number}" for number in range(3)]
        await asyncio.gather(*(draw(engine, ended, name, 10, n=4) for name in names))
        assert ended == names


async def test_an_urgent_call_goes_before_bulk_work_that_waits(engine: TransformersEngine) -> None:
    ended: list[str] = []
    names = ("bulk 1", "bulk 2", "urgent")
    await asyncio.gather(*(draw(engine, ended, name, 10, n=4) for name in names))
    assert ended == ["urgent", "bulk 1", "bulk 2"]


@pytest.mark.parametrize("n", [1, 8])
async def test_bulk_work_that_has_all_places_keeps_no_urgent_call_waiting(engine: TransformersEngine, n: int) -> None:
    ended: list[str] = []
    bulk = asyncio.create_task(draw(engine, ended, "bulk", 60, n=4))
    while not engine._worker._generation._running:
        await asyncio.sleep(0)
    await asyncio.gather(bulk, draw(engine, ended, "urgent", 10, n=n))
    assert ended == ["urgent", "bulk"]


async def test_bulk_work_that_has_waited_long_starts_first(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(urgency, "_PATIENCE_S", 0.0)
    ended: list[str] = []
    names = ("bulk 1", "bulk 2", "urgent")
    await asyncio.gather(*(draw(engine, ended, name, 10, n=4) for name in names))
    # The urgent call starts last; the second bulk call has just started and pauses for it.
    assert ended == ["bulk 1", "urgent", "bulk 2"]


@pytest.mark.parametrize(("kind", "packs"), [("bulk", 1), ("urgent", 3)])
async def test_an_urgent_call_waits_for_one_pack_of_bulk_prompts_at_most(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch, kind: str, packs: int
) -> None:
    runner, passes = engine._runner, []
    for name in ("prefill", "decode"):
        run = getattr(runner, name)
        monkeypatch.setattr(runner, name, lambda *given, name=name, run=run: passes.append(name) or run(*given))
    monkeypatch.setattr("agent.engine.worker._COMPANY_S", 0.5)  # all calls come before the first is begun
    sampling = Sampling(max_tokens=4)
    monkeypatch.setattr(engine._worker._generation, "_max_samples", 64)
    with bulk_work(kind == "bulk"):
        await asyncio.gather(*(engine.generate([4 + n % 20] * 50, sampling) for n in range(60)))
    in_a_row = [len(list(group)) for name, group in itertools.groupby(passes) if name == "prefill"]
    assert max(in_a_row) == packs
    assert sum(in_a_row) == 3


async def test_bulk_work_goes_on_while_there_are_always_urgent_calls(engine: TransformersEngine) -> None:
    ended: list[str] = []
    with bulk_work():
        scoring = asyncio.create_task(engine.score(PROMPT, [7, 8]))
    bulk = asyncio.create_task(draw(engine, ended, "bulk", 20))

    async def ask(number: int) -> None:
        while not (bulk.done() and scoring.done()):
            await draw(engine, ended, f"urgent {number}", 12 + 5 * number)

    async with asyncio.timeout(300):
        await asyncio.gather(*(ask(number) for number in range(3)))
    assert "bulk" in ended
    assert len(scoring.result()) == 2
    assert len(ended) > 8


async def test_pausing_changes_no_draw(engine: TransformersEngine) -> None:
    sampling = Sampling(temperature=0, max_tokens=20)
    alone = await engine.generate(PROMPT, sampling)
    with bulk_work():
        beside = asyncio.create_task(engine.generate(PROMPT, sampling))
    await engine.generate([7, 8], Sampling(max_tokens=40))
    assert (await beside)[0].ids == alone[0].ids


async def test_what_is_bulk_work_is_said_once_for_all_tasks_begun_within() -> None:
    async def ask() -> bool:
        return is_bulk()

    with bulk_work():
        within = asyncio.create_task(ask())
        with bulk_work(False):
            assert not is_bulk()
        assert is_bulk()
    assert await within
    assert not is_bulk()
