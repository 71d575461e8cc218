"""Jobs as DBOS workflows: started once, carried on by the next process when this one dies.

DBOS carries on only workflows of its own application version, so that is a number that changes when the steps of
`server.jobs_workflow` do, and not DBOS's hash of the code: an upgrade finds the jobs of the release before.

A workflow may end before its job does, when even the step that writes down a failure was given up because the database
was away, or may never have begun. So this looks for such jobs now and then, and begins them again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dbos import DBOS, SetWorkflowID

from server.cluster_jobs import ClusterJobs, Served, remove_folder
from server.exceptions import StartError
from server.files import FileStore
from server.jobs import TERMINAL, Event, Job, JobStore
from server.jobs_cluster import Cluster, ClusterWork
from server.jobs_runs import RunStore
from server.jobs_shard import ShardRunner
from server.jobs_steps import Running
from server.jobs_workflow import JobWorkflow
from server.settings import ServerSettings
from server.state import Database

APPLICATION_VERSION = "rewright-1"
_QUEUE, _CLUSTER_QUEUE = "jobs", "cluster"
_WORKFLOW, _CLUSTER_WORKFLOW = "rewrite_job", "cluster_job"
_POLL_S = 0.25
_EVENTS = 500
_HEARTBEAT_S = 15.0
_THREADS = 64
_LOOK_S = 60.0  # far more than DBOS takes from a queue to the first line of a workflow

_log = logging.getLogger("rewright.server")


class JobRuntime:
    """Does the jobs of a store, in this process and its event loop. One at a time in a process, as DBOS is.

    Args:
        database: its folder holds the jobs' working folders.
        store: what is known of the jobs.
        files: their inputs and results.
        settings: how many at a time.
        served: what rows are rewritten with.
        commands: what jobs on a cluster become.
        cluster: runs them.
    """

    def __init__(
        self,
        database: Database,
        store: JobStore,
        files: FileStore,
        settings: ServerSettings,
        served: Served,
        commands: ClusterJobs,
        cluster: Cluster,
    ) -> None:
        self._database, self._store, self._files, self._settings = database, store, files, settings
        self._served, self._commands, self._cluster = served, commands, cluster
        self._running = Running()
        self._workflow: JobWorkflow | None = None
        self._registered: dict[str, tuple[str, Callable[[str], Any]]] = {}  # queue and workflow by kind
        self._changed = asyncio.Condition()
        self._changes = 0
        self._stopping = False
        self._farewell: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None

    async def start(self, runner: ShardRunner) -> None:
        """Begin to do jobs: those that were left unfinished, then new ones."""
        folder = self._database.folder / "jobs"
        self._workflow = JobWorkflow(
            self._store,
            self._files,
            folder,
            runner,
            self._settings.jobs.shard_rows,
            self._served,
            self._running,
            self._notify,
        )
        on_cluster = ClusterWork(
            jobs=self._store,
            runs=RunStore(self._database),
            files=self._files,
            folder=folder,
            commands=self._commands,
            cluster=self._cluster,
            settings=self._settings.cluster,
            running=self._running,
            notify=self._notify,
        )
        rewrite, elsewhere = self._workflow.run, on_cluster.run
        DBOS(
            config={
                "name": "rewright",
                "system_database_url": self._database.workflows_url,
                "application_version": APPLICATION_VERSION,
                "executor_id": "service",
                "log_level": "ERROR",
                "max_executor_threads": _THREADS,
            }
        )

        async def rewrite_job(job_id: str) -> None:
            await rewrite(job_id)

        async def cluster_job(job_id: str) -> None:
            await elsewhere(job_id)

        here = DBOS.workflow(name=_WORKFLOW, max_recovery_attempts=None)(rewrite_job)
        there = DBOS.workflow(name=_CLUSTER_WORKFLOW, max_recovery_attempts=None)(cluster_job)
        self._registered = {"rewrite": (_QUEUE, here)}
        self._registered |= dict.fromkeys(("train", "sft", "evaluate"), (_CLUSTER_QUEUE, there))
        DBOS.launch()
        for queue, at_once in (
            (_QUEUE, self._settings.jobs.running),
            (_CLUSTER_QUEUE, self._settings.cluster.running),
        ):
            await DBOS.register_queue_async(
                queue, worker_concurrency=at_once, polling_interval_sec=_POLL_S, on_conflict="always_update"
            )
        # A job that was written down just before a kill has no workflow yet; for the others this changes nothing.
        for job_id, kind in await asyncio.to_thread(self._store.unfinished):
            await self._enqueue(job_id, kind)
        self._looking = asyncio.create_task(self._look())

    def begin_stop(self) -> None:
        """Interrupt all jobs where they are, and end all streams of events."""
        self._stopping = True
        self._running.begin_stop()
        self._farewell = asyncio.create_task(self._notify())

    async def stop(self) -> None:
        """Return when nothing of this runs any more. Jobs are carried on by the next start."""
        self.begin_stop()
        if self._workflow is None:
            return
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        await self._running.stopped()
        await asyncio.to_thread(DBOS.destroy, destroy_registry=True)
        # DBOS makes its own pool of threads the loop's, and has closed it now.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())

    async def submit(self, job: Job) -> None:
        """Have a new job done. Doing it again changes nothing."""
        if job.status not in TERMINAL:
            try:
                await self._enqueue(job.id, job.kind)
            except Exception as error:  # the job itself is written down, so one of the next looks finds it
                _log.error("%s cannot be handed to its queue yet", job.id, exc_info=error)
        await self._notify()

    async def cancel(self, job_id: str) -> Job:
        """Ask a job to end. Raises UnknownNameError."""
        job = await asyncio.to_thread(self._store.cancel, job_id)
        if self._workflow is not None and job.status == "cancelling":
            self._workflow.cancel(job_id)
        await self._notify()
        return job

    async def forget(self, job_id: str) -> None:
        """Remove what DBOS keeps of a job that has ended, and what its command left."""
        await DBOS.delete_workflow_async(job_id)
        await asyncio.to_thread(remove_folder, self._database.folder / "jobs" / job_id)

    async def events(self, job_id: str, after: int) -> AsyncIterator[Event | None]:
        """Events after number `after`, those to come too, until the job or the service ends; None now and then."""
        loop = asyncio.get_running_loop()
        heartbeat = loop.time() + _HEARTBEAT_S  # whatever changes in other jobs does not put it off
        ended = await self._has_ended(job_id)  # before the look for events, of which the last one tells of it
        while not self._stopping:
            changes = self._changes  # before the look into the database: what changes after it is not waited for
            page = await asyncio.to_thread(self._store.events, job_id, after, _EVENTS)
            for event in page:
                after = event.number
                ended = ended or event.data.get("status") in TERMINAL
                yield event
            if page:
                heartbeat = loop.time() + _HEARTBEAT_S
                continue
            if ended:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(heartbeat), self._changed:
                    while self._changes == changes:
                        await self._changed.wait()
            if loop.time() >= heartbeat:
                heartbeat = loop.time() + _HEARTBEAT_S
                ended = await self._has_ended(job_id)
                yield None

    async def _has_ended(self, job_id: str) -> bool:
        return (await asyncio.to_thread(self._store.get, job_id)).status in TERMINAL

    async def _look(self) -> None:
        """Begin again, until cancelled, what two looks in a row have found idle, in a database that is ours alone."""
        idle: dict[str, str] = {}
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                await asyncio.to_thread(self._database.hold)
                before, idle = idle, await self._idle()
                for job_id in before.keys() & idle.keys():
                    _log.warning("%s is not finished and nothing works on it: it is begun again", job_id)
                    await DBOS.delete_workflow_async(job_id)
                    await self._enqueue(job_id, idle.pop(job_id))
            except StartError as error:
                _log.error("no job is begun again: %s", error)
            except Exception as error:  # of either database; the next look must come all the same
                _log.error("jobs that nothing works on cannot be looked for", exc_info=error)

    async def _idle(self) -> dict[str, str]:
        """Kinds by id of the unfinished jobs that neither run here nor wait in a queue."""
        left = dict(await asyncio.to_thread(self._store.unfinished))
        if left:
            queued = await DBOS.list_workflows_async(
                workflow_ids=list(left), status="ENQUEUED", load_input=False, load_output=False
            )
            for workflow in queued:
                del left[workflow.workflow_id]
        # Last, since a job that has left its queue meanwhile may run by now.
        return {job_id: kind for job_id, kind in left.items() if job_id not in self._running}

    async def _enqueue(self, job_id: str, kind: str) -> None:
        queue, workflow = self._registered[kind]
        with SetWorkflowID(job_id):
            await DBOS.enqueue_workflow_async(queue, workflow, job_id)

    async def _notify(self) -> None:
        async with self._changed:
            self._changes += 1
            self._changed.notify_all()
