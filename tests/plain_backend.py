"""A backend without a model, for tests of files and jobs: every target is the expert's text in capitals."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import MutableSequence
from typing import Any

from agent.demonstrations import BadRow, Demonstration
from agent.engine import EngineInfo
from agent.exceptions import EngineClosedError
from agent.intake import read_json_rows
from agent.records import Record, error_row
from server.exceptions import UnknownNameError
from server.metrics import EngineCount, Metrics
from server.schemas import MismatchBody, RewriteOptions, RewritesBody

MODEL = "plain"


class PlainBackend:
    """Rewrites after `pause_s`.

    A row whose question has `DEFECT` in it raises what nobody expects, one with `POISON` kills the engine: the
    process where `kills` is set, else every row under way.

    Attributes:
        alive: cleared while the engine is dead; `ping` brings it back.
        at_once: the largest number of rows under way together.
        seen: question of every row that was begun.
    """

    def __init__(self, pause_s: float = 0.0, *, kills: bool = False) -> None:
        self.pause_s, self.kills = pause_s, kills
        self.died = asyncio.Event()
        self.alive = True
        self.at_once = 0
        self.seen: MutableSequence[str] = []
        self.metrics = Metrics()
        self.tracer = None
        self._under_way = 0

    async def rewrite(self, body: RewritesBody) -> dict[str, Any]:
        await asyncio.sleep(self.pause_s)
        rows = read_json_rows(body.demonstrations)
        data = [error_row(row, MODEL) if isinstance(row, BadRow) else plain_record(row) for row in rows]
        return {"data": data, "model": MODEL}

    async def mismatch(self, body: MismatchBody) -> dict[str, Any]:
        return {"data": body.demonstrations, "model": MODEL}

    async def list_adapters(self) -> dict[str, Any]:
        return {"data": [], "default": None}

    async def activate_adapter(self, name: str, version: int) -> dict[str, Any]:
        raise UnknownNameError("there are no adapters", code="unknown_adapter", param="name")

    async def engines(self) -> EngineCount:
        return EngineCount(answering=1, started=1)

    def active_adapters(self) -> dict[str, int]:
        return {}

    async def check_options(self, options: RewriteOptions) -> str | None:
        if options.strategy not in (None, "solve"):
            raise UnknownNameError("no such strategy", code="unknown_strategy", param="strategy")
        return None

    async def rewrite_row(self, row: Demonstration | BadRow, options: RewriteOptions) -> dict[str, Any]:
        if isinstance(row, BadRow):
            return error_row(row, MODEL)
        self.seen.append(row.question)
        self._under_way += 1
        self.at_once = max(self.at_once, self._under_way)
        try:
            await self._work(row.question)
        finally:
            self._under_way -= 1
        return plain_record(row)

    async def ping(self) -> EngineInfo:
        if not self.alive:
            self.alive, self.died = True, asyncio.Event()
        return EngineInfo(MODEL, 128)

    async def _work(self, question: str) -> None:
        if "DEFECT" in question:
            raise RuntimeError("the password is hunter2")
        died = self.died  # of the engine that this row began with, whichever answers at its end
        if "POISON" in question:
            if self.kills:
                os.kill(os.getpid(), signal.SIGKILL)
            self.alive = False
            died.set()
        if self.pause_s or died.is_set():
            gone = asyncio.create_task(died.wait())
            await asyncio.wait({gone}, timeout=self.pause_s)
            gone.cancel()
        if died.is_set():
            raise EngineClosedError("the engine died")


def plain_record(row: Demonstration) -> dict[str, Any]:
    """What `PlainBackend` makes of a row."""
    return Record(row, "rewritten", "rewrite", row.expert.upper(), 1, None, None, None, None, MODEL).as_dict()
