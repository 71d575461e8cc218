"""What is done for one job, as the body of a DBOS workflow: cut the input, do the shards, put the results together.

Each of these is a step, and DBOS runs a step that was cut short again, so every step may be run twice. Two shards are
under way at a time, so that the slow rows of one do not hold up the next.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from dbos import DBOS, StepOptions
from dbos import error as dbos_error

from agent.exceptions import InputFileError, RewrightError
from server.exceptions import UnavailableError
from server.files import FileStore, Purpose
from server.jobs import TERMINAL, JobStore
from server.jobs_files import JobFolder, Plan, StoppedError
from server.jobs_shard import ShardRunner
from server.logs import about

T = TypeVar("T")

_WINDOW = 2
_RETRY: StepOptions = {
    "retries_allowed": True,
    "max_attempts": 8,
    "interval_seconds": 1.0,
    "backoff_rate": 3.0,
    "should_retry": lambda error: isinstance(error, _InterruptedStepError),
}

_log = logging.getLogger("rewright.server")


class _JobFailedError(Exception):
    """A step can never succeed. DBOS keeps what a step raises, so this has nothing but its message."""


class _InterruptedStepError(Exception):
    """A step may succeed later: a disk that is full, a database that is away."""


class JobWorkflow:
    """Does the jobs of a store.

    Args:
        store: what is known of the jobs.
        files: their inputs and results.
        folder: holds the jobs' working folders.
        runner: does a shard.
        shard_rows: rows of a shard at most.
        notify: awaited after every change of a job.
    """

    def __init__(
        self,
        store: JobStore,
        files: FileStore,
        folder: Path,
        runner: ShardRunner,
        shard_rows: int,
        notify: Callable[[], Awaitable[None]],
    ) -> None:
        self._store, self._files, self._folder = store, files, folder
        self._runner, self._shard_rows, self._notify = runner, shard_rows, notify
        self._running: set[asyncio.Task[Any]] = set()
        self._cancelled: dict[str, asyncio.Event] = {}
        self._stopping = threading.Event()

    def begin_stop(self) -> None:
        """Interrupt all jobs where they are, and begin no more."""
        self._stopping.set()
        for task in self._running:
            task.cancel()

    async def stopped(self) -> None:
        """Return when no job runs any more."""
        await asyncio.gather(*self._running, return_exceptions=True)

    def cancel(self, job_id: str) -> None:
        """Drop the rows under way of a job that is being cancelled, if it runs here."""
        if job_id in self._cancelled:
            self._cancelled[job_id].set()

    async def run(self, job_id: str) -> None:
        """The workflow. A job that is interrupted by `begin_stop` raises CancelledError, which DBOS does not record."""
        task = asyncio.current_task()
        assert task is not None
        if self._stopping.is_set():
            raise asyncio.CancelledError
        self._running.add(task)
        self._cancelled[job_id] = asyncio.Event()
        with about(job_id=job_id):
            await self._run(job_id, task)

    async def _run(self, job_id: str, task: asyncio.Task[Any]) -> None:
        try:
            plan = await self._step("begin", self._begin, job_id)
            if plan is not None:
                await self._shards(job_id, Plan(**plan))
                await self._step("finish", self._finish, job_id, plan["shards"])
        except _JobFailedError as error:
            await self._step("fail", self._fail, job_id, str(error))
        except dbos_error.DBOSMaxStepRetriesExceeded as error:
            await self._step("fail", self._fail, job_id, str(error.errors[-1]))
        finally:
            self._running.discard(task)
            del self._cancelled[job_id]

    async def _step(self, name: str, work: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        return await DBOS.run_step_async({"name": name, **_RETRY}, _attempt, work, *arguments)

    async def _shards(self, job_id: str, plan: Plan) -> None:
        under_way: deque[asyncio.Task[bool]] = deque()
        try:
            for shard in range(plan.shards):
                # Reserved here, so that a step has the same number in every run whichever task goes first.
                step = DBOS.reserve_step()
                work = step.run_async({"name": "shard", **_RETRY}, _attempt, self._shard, job_id, shard)
                under_way.append(asyncio.create_task(work))
                if len(under_way) == _WINDOW and not await under_way.popleft():
                    break
            while under_way:
                await under_way.popleft()
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def _begin(self, job_id: str) -> dict[str, int] | None:
        """Cut the input; None when the job is over already."""
        job = await asyncio.to_thread(self._store.get, job_id)
        if job.status in TERMINAL:
            return None
        if job.status == "cancelling":
            return {"shards": 0, "rows": 0}
        source = self._files.path(await asyncio.to_thread(self._files.get, job.input_file))
        split = self._folder_of(job_id).split
        try:
            plan = await asyncio.to_thread(split, source, self._shard_rows, self._stopping.is_set)
        except InputFileError as error:
            # Clients know the file by its id, and nothing of where it is.
            raise _JobFailedError(str(error).replace(str(source), job.input_file)) from error
        await asyncio.to_thread(self._store.begin, job_id)
        await self._notify()
        return {"shards": plan.shards, "rows": plan.rows}

    async def _shard(self, job_id: str, shard: int) -> bool:
        """Do one shard. False when the job is cancelled."""
        job = await asyncio.to_thread(self._store.get, job_id)
        if job.status != "in_progress":
            return False
        folder = self._folder_of(job_id)
        work = asyncio.create_task(self._runner.run(folder, shard, job.options))
        cancelled = asyncio.create_task(self._cancelled[job_id].wait())
        try:
            await asyncio.wait({work, cancelled}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, cancelled):
                task.cancel()
            await asyncio.gather(work, cancelled, return_exceptions=True)
        # Cancelled while it was being written, it may be whole all the same, and then its rows count.
        done = await asyncio.to_thread(folder.result, shard) if work.cancelled() else work.result()
        if done is None:
            return False
        await asyncio.to_thread(self._store.add_shard, job_id, shard, *done)
        await self._notify()
        return True

    async def _finish(self, job_id: str, shards: int) -> None:
        await asyncio.to_thread(self._store.finalize, job_id)
        await self._notify()
        await asyncio.to_thread(self._put_together, job_id, shards)
        await self._notify()

    def _put_together(self, job_id: str, shards: int) -> None:
        job = self._store.get(job_id)
        folder = self._folder_of(job_id)
        if job.status in TERMINAL:  # killed between the last write and the end of the step
            folder.remove()
            return
        folder.path.mkdir(parents=True, exist_ok=True)
        kept: dict[str, str] = {}
        results: tuple[tuple[str, Purpose], ...] = (("output", "output"), ("failed", "errors"))
        for name, purpose in results:
            # The same id every time, so that a step that is run twice makes one file.
            file_id = f"file_{hashlib.sha256(f'{job_id}/{name}'.encode()).hexdigest()[:24]}"
            path, rows = folder.assemble(name, shards)
            if rows or name == "output":
                self._files.adopt(path, file_id, purpose, f"{job_id}.{name}.jsonl", rows)
                kept[name] = file_id
        cancelled = job.status == "cancelling"
        self._store.finish(job_id, cancelled=cancelled, output_file=kept["output"], error_file=kept.get("failed"))
        folder.remove()

    async def _fail(self, job_id: str, message: str) -> None:
        await asyncio.to_thread(self._store.fail, job_id, message)
        await asyncio.to_thread(self._folder_of(job_id).remove)
        await self._notify()

    def _folder_of(self, job_id: str) -> JobFolder:
        return JobFolder(self._folder / job_id)


async def _attempt(work: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """The result of a step, with its errors sorted by whether trying again makes sense."""
    try:
        return await work(*arguments)
    except StoppedError:
        raise asyncio.CancelledError from None
    except _JobFailedError:
        raise
    except UnavailableError as error:
        raise _InterruptedStepError(str(error)) from error
    except RewrightError as error:
        raise _JobFailedError(str(error)) from error
    except Exception as error:
        # What this says is for the log alone: clients see only that it failed.
        _log.error("a step of a job failed", exc_info=error)
        reason = f"its disk failed: {error.strerror}" if isinstance(error, OSError) else "its log says why"
        raise _InterruptedStepError(f"the service failed on this job; {reason}") from error
