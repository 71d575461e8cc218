"""One shard of a job: its rows through the engine at a bounded pace, and the row that kills the engine found.

Rows go together. Those that were under way when the engine died are tried again one at a time, with nothing else of
any job beside them; one that the engine dies on again and again becomes an error record. Where the whole process dies
with its engine, the same is known from a journal: a shard that was begun twice and never ended goes row by row.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from agent.demonstrations import BadRow
from agent.engine import EngineInfo
from agent.engine.urgency import bulk_work
from agent.exceptions import EngineClosedError, RewrightError
from server.admission import Admission
from server.jobs_files import JobFolder, Row
from server.schemas import RewriteOptions
from server.threads import to_its_end

_log = logging.getLogger("rewright.server")

_STARTS = 2  # of a shard together, before its rows go one at a time
_TRIES = 3  # of a row alone
_ENGINE_DOWN_S = 1.0


class RowBackend(Protocol):
    """What a shard needs; `server.backend` has the real one."""

    async def rewrite_row(self, row: Row, options: RewriteOptions) -> dict[str, Any]:
        """The record of one row.

        Raises:
            RewrightError: the engine or a model is away, or no row can be rewritten with these options.
            OSError, MemoryError: the machine has no more of something.
            Exception: a defect, of which this row alone need be the reason while `ping` answers.
        """
        ...

    async def ping(self) -> EngineInfo:
        """Ask the engine now. Raises EngineClosedError when none answers, or one that fails on everything."""
        ...


class Lane:
    """The part of the house that jobs may fill.

    Args:
        rows: rows of all jobs at the same time.
        admission: where they count beside the requests; jobs wait while the house is full.
    """

    def __init__(self, rows: int, admission: Admission) -> None:
        self._rows, self._admission = rows, admission
        self._places = asyncio.Semaphore(rows)
        self._emptying = asyncio.Lock()

    @asynccontextmanager
    async def row(self) -> AsyncIterator[None]:
        """Room for one row; served in the order of asking."""
        async with self._places, self._admission.job_row():
            yield

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Room for one row with no other row of any job beside it."""
        async with self._emptying, AsyncExitStack() as stack:
            for _ in range(self._rows):
                await stack.enter_async_context(self._places)
            yield


class ShardRunner:
    """Rewrites shards.

    Args:
        backend: rewrites rows.
        lane: bounds how many at a time.
    """

    def __init__(self, backend: RowBackend, lane: Lane) -> None:
        self._backend, self._lane = backend, lane
        self._down = True  # until it has answered once: it may still be loading

    async def run(self, folder: JobFolder, shard: int, options: RewriteOptions) -> tuple[int, int]:
        """Do what is not done of a shard; returns its rows that are no errors, and that are.

        Cancelled, it leaves no trace or a whole result; killed, it leaves its journal.

        Raises:
            RewrightError, OSError, MemoryError: the service cannot rewrite now, or none with these options.
        """
        if (done := await asyncio.to_thread(folder.result, shard)) is not None:
            return done
        rows = await asyncio.to_thread(folder.rows, shard)
        journal = await asyncio.to_thread(_Journal, folder.journal(shard))
        if journal.starts < _STARTS:
            records = await self._together(rows, options, journal)
        else:
            records = {}
        for index, row in enumerate(rows):
            if index not in records:
                records[index] = await self._alone(index, row, options, journal)
        done = await to_its_end(folder.commit, shard, [records[index] for index in range(len(rows))])
        await to_its_end(journal.remove)
        return done

    async def _together(self, rows: list[Row], options: RewriteOptions, journal: _Journal) -> dict[int, dict[str, Any]]:
        """Records by index, without those that were under way when the engine died."""
        records: dict[int, dict[str, Any]] = {}

        async def one(index: int, row: Row) -> None:
            async with self._lane.row():
                await self._engine_up()
                try:
                    records[index] = await self._record(row, options)
                except EngineClosedError:
                    self._down = True

        before = await asyncio.to_thread(journal.size)
        try:
            await to_its_end(journal.note, {"start": True})
            async with asyncio.TaskGroup() as group:
                for index, row in enumerate(rows):
                    group.create_task(one(index, row))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            await to_its_end(journal.cut, before)  # whatever ended this, it was no kill
        return records

    async def _alone(self, index: int, row: Row, options: RewriteOptions, journal: _Journal) -> dict[str, Any]:
        if index in journal.records:
            return journal.records[index]
        while journal.tries[index] < _TRIES:
            async with self._lane.alone():
                await self._engine_up()
                before = await asyncio.to_thread(journal.size)
                try:
                    await to_its_end(journal.note, {"try": index})
                    record = await self._record(row, options)
                    await to_its_end(journal.note, {"done": index, "record": record})
                    return record
                except EngineClosedError:
                    self._down = True
                except BaseException:  # a stop or a full disk is not the row's fault
                    await to_its_end(journal.cut, before)
                    raise
        _log.error("row %s: the engine died on it %d times", row.id, _TRIES)
        return await self._error(row, f"the engine died on this row {_TRIES} times", options)

    async def _record(self, row: Row, options: RewriteOptions) -> dict[str, Any]:
        try:
            with bulk_work():
                return await self._backend.rewrite_row(row, options)
        except (RewrightError, OSError, MemoryError):  # not the row's fault; `server.jobs_steps` sorts them
            raise
        except Exception as error:  # a defect of ours: this row pays for it, the others do not
            await self._backend.ping()  # unless it is the engine that fails, whatever the row
            _log.error("row %s failed", row.id, exc_info=error)
            return await self._error(row, f"the service failed on this row: {type(error).__name__}", options)

    async def _error(self, row: Row, message: str, options: RewriteOptions) -> dict[str, Any]:
        await self._engine_up()
        return await self._backend.rewrite_row(BadRow(row.id, row.line or 0, message, source=row.source), options)

    async def _engine_up(self) -> None:
        """Wait until the engine answers, where it was seen not to."""
        while self._down:
            try:
                await self._backend.ping()
                self._down = False
            except EngineClosedError:
                await asyncio.sleep(_ENGINE_DOWN_S)


class _Journal:
    """What was begun of a shard, kept through a kill. What is written is small, so it is written in place.

    Methods block, and are called one at a time.

    Attributes:
        starts: how often its rows were begun together until the process was killed.
        tries: how often a row was begun alone until its engine died, by index.
        records: rows that are done, by index.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.starts = 0
        self.tries: Counter[int] = Counter()
        self.records: dict[int, dict[str, Any]] = {}
        for line in path.read_bytes().splitlines() if path.exists() else ():
            try:
                note = json.loads(line)
            except ValueError:
                continue  # cut off by a kill
            self._take(note)

    def note(self, note: dict[str, Any]) -> None:
        """Remember, on disk too."""
        self._take(note)
        with self._path.open("ab") as file:
            file.write(f"\n{json.dumps(note)}".encode())
            file.flush()
            os.fsync(file.fileno())

    def size(self) -> int:
        return self._path.stat().st_size if self._path.exists() else 0

    def cut(self, size: int) -> None:
        """Forget what was noted since it had this size. Needs no room, as a further note would."""
        with self._path.open("ab") as file:
            file.truncate(size)
            os.fsync(file.fileno())

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)

    def _take(self, note: dict[str, Any]) -> None:
        match note:
            case {"start": bool(begun)}:  # false, and "untry", are of earlier releases
                self.starts += 1 if begun else -1
            case {"try": int(index)}:
                self.tries[index] += 1
            case {"untry": int(index)}:
                self.tries[index] -= 1
            case {"done": int(index), "record": dict(record)}:
                self.records[index] = record
