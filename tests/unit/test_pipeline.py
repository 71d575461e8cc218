"""Many items at once, results in order."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from agent.chat import ChatFormat
from agent.demonstrations import Demonstration, Message
from agent.early import EarlyRows
from agent.gate import Gate
from agent.pipeline import map_in_order, rewrite_rows
from agent.records import Verdict
from agent.rewriter import Rewriter
from agent.settings import GateSettings, RewriteSettings
from agent.strategies import find_strategy
from tests.scripted_engine import ScriptedEngine
from tests.tiny_chat import NO_SYSTEM, tiny_tokenizer

PLAIN = (Message("user", "What is 1 + 2 ?"),)


async def test_results_come_in_the_order_of_the_items_whoever_is_first() -> None:
    async def later_items_are_faster(item: int) -> int:
        for _ in range(20 - item):
            await asyncio.sleep(0)
        return item * item

    assert [r async for r in map_in_order(later_items_are_faster, range(20), 20)] == [i * i for i in range(20)]


async def test_no_more_than_the_concurrency_run_at_the_same_time() -> None:
    running = most = 0

    async def count(item: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    async for _ in map_in_order(count, range(50), 3):
        pass
    assert most == 3


async def test_a_slow_item_does_not_stop_the_later_ones() -> None:
    others_are_done = asyncio.Event()
    finished: list[int] = []

    async def first_is_slow(item: int) -> int:
        if item == 0:
            await others_are_done.wait()
        finished.append(item)
        if len(finished) == 6:
            others_are_done.set()
        return item

    assert [r async for r in map_in_order(first_is_slow, range(7), 2)] == list(range(7))
    assert finished == [1, 2, 3, 4, 5, 6, 0]


async def test_items_are_read_ahead_only_so_far() -> None:
    read: list[int] = []

    def endless() -> Iterator[int]:
        number = 0
        while True:
            read.append(number)
            yield number
            number += 1

    async def same(item: int) -> int:
        return item

    async with aclosing(map_in_order(same, endless(), 2)) as results:
        assert [await anext(results) for _ in range(3)] == [0, 1, 2]
    assert 3 <= len(read) <= 11


async def test_an_item_is_worked_on_before_the_next_one_is_there() -> None:
    first_is_out = threading.Event()

    def producer_that_waits_for_output() -> Iterator[int]:
        yield 1
        assert first_is_out.wait(timeout=30), "nothing came out of the first item"
        yield 2

    async def same(item: int) -> int:
        return item

    results = map_in_order(same, producer_that_waits_for_output(), 2)
    assert await anext(results) == 1
    first_is_out.set()
    assert [r async for r in results] == [2]


async def test_nobody_waits_for_an_item_that_never_comes() -> None:
    asked, end = threading.Event(), threading.Event()

    def stuck() -> Iterator[int]:
        yield 1
        asked.set()
        end.wait()

    async def same(item: int) -> int:
        return item

    async with aclosing(map_in_order(same, stuck(), 2)) as results:
        assert await anext(results) == 1
        await asyncio.to_thread(asked.wait)
    end.set()


async def test_an_input_that_breaks_off_has_the_results_of_what_was_read() -> None:
    def broken() -> Iterator[int]:
        yield from (1, 2)
        raise OSError("the pipe broke")

    async def same(item: int) -> int:
        await asyncio.sleep(0.001)
        return item

    results = map_in_order(same, broken(), 2)
    assert [await anext(results), await anext(results)] == [1, 2]
    with pytest.raises(OSError, match="the pipe broke"):
        await anext(results)


async def test_no_items_give_no_results() -> None:
    async def fail(item: int) -> int:
        raise AssertionError(item)

    assert [r async for r in map_in_order(fail, [], 4)] == []


async def test_a_failure_ends_everything_that_is_under_way() -> None:
    cancelled: list[int] = []

    async def second_fails(item: int) -> int:
        if item == 1:
            raise ValueError("item 1")
        try:
            await asyncio.sleep(0 if item == 0 else 3600)
        except asyncio.CancelledError:
            cancelled.append(item)
            raise
        return item

    results = map_in_order(second_fails, range(4), 4)
    assert await anext(results) == 0
    with pytest.raises(ValueError, match="item 1"):
        await anext(results)
    assert cancelled == [2, 3]


async def rewrite_all(gate: Gate, *prompts: tuple[Message, ...]) -> list[dict[str, Any]]:
    """The rows of prompts `a`, `b`, ... whose candidates are all refused, by a model without system turns."""
    chat = ChatFormat(tiny_tokenizer(NO_SYSTEM))
    settings = RewriteSettings()
    strategy = find_strategy(settings.strategy, settings)
    rewriter = Rewriter(ScriptedEngine(chat, ""), chat, gate, strategy, settings)
    rows = [Demonstration("abc"[i], prompt, "1 + 2 = 3", "3", line=i + 1) for i, prompt in enumerate(prompts)]
    return [row async for row, _ in rewrite_rows(rewriter, rows, model="m", concurrency=2)]


async def test_turns_that_the_chat_template_refuses_fail_their_row_alone() -> None:
    rows = await rewrite_all(Gate(GateSettings()), PLAIN, (Message("system", "Be brief"), *PLAIN), PLAIN)
    assert [row["status"] for row in rows] == ["fallback", "error", "fallback"]
    message = "the model's chat template refuses these turns: System role not supported"
    assert rows[1]["error"] == {"line": 2, "field": None, "message": message}


async def test_a_defect_of_ours_fails_its_row_alone(caplog: pytest.LogCaptureFixture) -> None:
    class BrokenGate(Gate):
        async def check(self, demonstration: Demonstration, candidate: str, *, finished: bool = True) -> Verdict:
            if demonstration.id == "b":
                raise ZeroDivisionError
            return await super().check(demonstration, candidate, finished=finished)

    rows = await rewrite_all(BrokenGate(GateSettings()), PLAIN, PLAIN, PLAIN)
    assert [row["status"] for row in rows] == ["fallback", "error", "fallback"]
    assert rows[1]["error"]["message"] == "a defect in rewright: ZeroDivisionError, see the log"
    assert "row b failed" in caplog.text


async def test_a_score_that_is_no_number_fails_its_row_alone(tmp_path: Path) -> None:
    chat = ChatFormat(tiny_tokenizer())
    questions = ("What is 1 + 2 ?", "What is 1 + 1 ?", "What is 1 + 3 ?")
    rows = [Demonstration(q, (Message("user", q),), "It is 3", "3", line=n) for n, q in enumerate(questions, 1)]
    second = chat.prompt_ids(rows[1].prompt)

    class Engine(ScriptedEngine):
        async def score(
            self, prompt_ids: Sequence[int], completion_ids: Sequence[int], adapter: str | None = None
        ) -> list[float]:
            scores = await super().score(prompt_ids, completion_ids, adapter)
            return [float("nan")] * len(scores) if list(prompt_ids) == second else scores

    settings = RewriteSettings()
    strategy = find_strategy(settings.strategy, settings)
    rewriter = Rewriter(Engine(chat, ""), chat, Gate(GateSettings()), strategy, settings)
    early = EarlyRows(tmp_path / "early.jsonl")
    early.open(resume=False)
    made = [row async for row, _ in rewrite_rows(rewriter, rows, model="m", concurrency=2, early=early)]
    assert [row["status"] for row in made] == ["fallback", "error", "fallback"]
    assert made[1]["error"]["message"].startswith("the base model's surprisal at token 1 of 4 is nan")
    assert early.waiting == 3
