"""What is done for one `rewrite` job, as the body of a DBOS workflow: cut the input, do the shards, put the results
together.

Each of these is a step (`server.jobs_steps`), so may be run twice. Two shards are under way at a time, so that the
slow rows of one do not hold up the next.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path

from dbos import DBOS

from agent.exceptions import InputFileError
from server.cluster_jobs import Served
from server.exceptions import UnavailableError
from server.files import FileStore, Purpose, job_file_id
from server.jobs import TERMINAL, Job, JobStore
from server.jobs_files import JobFolder, Plan
from server.jobs_shard import ShardRunner
from server.jobs_steps import RETRY, JobFailedError, Running, attempt, failure_of, run_step
from server.logs import about
from server.threads import to_its_end

_WINDOW = 2

_log = logging.getLogger("rewright.server")

# DBOS has pickled it under this name for jobs that an earlier release began.
_JobFailedError = JobFailedError


class JobWorkflow:
    """Does the jobs of a store.

    Args:
        store: what is known of the jobs.
        files: their inputs and results.
        folder: holds the jobs' working folders.
        runner: does a shard.
        shard_rows: rows of a shard at most.
        served: what rows are rewritten with.
        running: knows of the workflows under way.
        notify: awaited after every change of a job.
    """

    def __init__(
        self,
        store: JobStore,
        files: FileStore,
        folder: Path,
        runner: ShardRunner,
        shard_rows: int,
        served: Served,
        running: Running,
        notify: Callable[[], Awaitable[None]],
    ) -> None:
        self._store, self._files, self._folder = store, files, folder
        self._runner, self._shard_rows, self._notify = runner, shard_rows, notify
        self._served, self._running = served, running
        self._cancelled: dict[str, asyncio.Event] = {}

    def cancel(self, job_id: str) -> None:
        """Drop the rows under way of a job that is being cancelled, if it runs here."""
        if job_id in self._cancelled:
            self._cancelled[job_id].set()

    async def run(self, job_id: str) -> None:
        """The workflow. A job that is interrupted raises CancelledError, which DBOS does not record."""
        with self._running.one(job_id), about(job_id=job_id):
            self._cancelled[job_id] = asyncio.Event()
            try:
                if (failure := await failure_of(self._do(job_id))) is not None:
                    await run_step("fail", self._fail, job_id, failure)
            finally:
                del self._cancelled[job_id]

    async def _do(self, job_id: str) -> None:
        plan = await run_step("begin", self._begin, job_id)
        if plan is not None:
            await self._shards(job_id, Plan(**plan))
            await run_step("finish", self._finish, job_id, plan["shards"])

    async def _shards(self, job_id: str, plan: Plan) -> None:
        under_way: deque[asyncio.Task[bool]] = deque()
        try:
            for shard in range(plan.shards):
                # Reserved here, so that a step has the same number in every run whichever task goes first.
                step = DBOS.reserve_step()
                work = step.run_async({"name": "shard", **RETRY}, attempt, self._shard, job_id, shard)
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
            begun = await asyncio.to_thread(self._folder_of(job_id).plan)
            return {"shards": begun.shards, "rows": begun.rows} if begun is not None else {"shards": 0, "rows": 0}
        assert job.input_file is not None
        plan = await to_its_end(self._split, job, job.input_file)
        await to_its_end(self._store.begin, job_id)
        await self._notify()
        return {"shards": plan.shards, "rows": plan.rows}

    def _split(self, job: Job, input_file: str) -> Plan:
        folder = self._folder_of(job.id)
        stored = self._files.get(input_file)
        spare = self._files.spare(stored)
        try:
            source = self._files.fetch(stored, spare)
            plan = folder.split(source, self._shard_rows, lambda: self._running.stopping)
            folder.begin_with(self._served.decides(job.options))
            return plan
        except InputFileError as error:
            # Clients know the file by its id, and nothing of where it is.
            raise JobFailedError(str(error).replace(str(source), input_file)) from error
        finally:
            spare.unlink(missing_ok=True)

    async def _shard(self, job_id: str, shard: int) -> bool:
        """Do one shard. False when the job is cancelled."""
        job = await asyncio.to_thread(self._store.get, job_id)
        if job.status != "in_progress":
            return False
        folder = self._folder_of(job_id)
        await asyncio.to_thread(self._require_same_settings, job, folder, shard)
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
        await to_its_end(self._store.add_shard, job_id, shard, *done)
        await self._notify()
        return True

    def _require_same_settings(self, job: Job, folder: JobFolder, shard: int) -> None:
        """Raises JobFailedError where a shard that is not finished would be rewritten by other settings than before."""
        begun = folder.settings()
        if begun not in (None, self._served.decides(job.options)) and folder.result(shard) is None:
            raise JobFailedError(
                "the service has other settings of model, gate or rewrite than when this job began; "
                "what was finished is kept: start a new job for the rows that are missing, or for all"
            )

    async def _finish(self, job_id: str, shards: int) -> None:
        await to_its_end(self._store.finalize, job_id)
        await self._notify()
        await to_its_end(self._put_together, job_id, shards)
        await self._notify()

    def _put_together(self, job_id: str, shards: int) -> None:
        job = self._store.get(job_id)
        folder = self._folder_of(job_id)
        if job.status not in TERMINAL:  # else killed between the last write and the end of the step
            cancelled, plan = job.status == "cancelling", folder.plan()
            kept, rows = self._keep(job_id, folder, shards)
            if not cancelled and (plan is None or rows != plan.rows):
                raise JobFailedError(f"its working folder has the results of {rows} rows only: start the job again")
            self._store.finish(job_id, cancelled=cancelled, **kept)
        folder.remove()

    def _keep(self, job_id: str, folder: JobFolder, shards: int) -> tuple[dict[str, str], int]:
        """Make files of the shards that are finished; their ids, by what the store calls them, and the rows in them."""
        folder.path.mkdir(parents=True, exist_ok=True)
        kept: dict[str, str] = {}
        made = 0
        results: tuple[tuple[str, Purpose, str], ...] = (
            ("output", "output", "output_file"),
            ("failed", "errors", "error_file"),
        )
        for name, purpose, field in results:
            file_id = job_file_id(job_id, name)
            path, rows = folder.assemble(name, shards)
            if name == "output":
                made = rows
            if rows or name == "output":
                self._files.adopt(path, file_id, purpose, f"{job_id}.{name}.jsonl", rows)
                kept[field] = file_id
        return kept, made

    async def _fail(self, job_id: str, message: str) -> None:
        await to_its_end(self._give_up, job_id, message)
        await self._notify()

    def _give_up(self, job_id: str, message: str) -> None:
        folder = self._folder_of(job_id)
        kept: dict[str, str] = {}
        try:
            if (plan := folder.plan()) is not None:
                kept, _ = self._keep(job_id, folder, plan.shards)
        except (OSError, UnavailableError):
            raise  # a full disk, a database that is away: the rows are worth another try
        except Exception as error:  # what failed the job may hinder this too; it has failed all the same
            _log.error("the finished rows of a job that failed cannot be kept", exc_info=error)
        self._store.fail(job_id, message, **kept)
        folder.remove()

    def _folder_of(self, job_id: str) -> JobFolder:
        return JobFolder(self._folder / job_id)
