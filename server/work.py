"""Work that outlives a process: files, jobs and keys in one state folder and database, put together.

Not here: each of the three (`server.files`, `server.jobs_runtime`, `server.keys`).
"""

from __future__ import annotations

import asyncio
from contextlib import closing

from fastapi import APIRouter

from server.admission import Admission
from server.auth import Keys
from server.cluster import RayCluster
from server.cluster_jobs import ClusterJobs, Served
from server.files import FileStore
from server.files_api import files_router
from server.jobs import JobStore
from server.jobs_api import jobs_router
from server.jobs_cluster import Cluster
from server.jobs_runtime import JobRuntime
from server.jobs_shard import Lane, RowBackend, ShardRunner
from server.keys import KeyStore
from server.retention import Sweeper
from server.settings import ServerSettings
from server.state import Database, StateLock


class DurableWork:
    """Files, jobs and keys of a service.

    Args:
        settings: where they are kept, and how much of them there may be.
        served: what jobs rewrite with, and train for.
        cluster: runs them; None for that of the settings.

    Attributes:
        keys: the stored keys.

    Raises:
        SettingsError: the state folder or the database URL cannot be used.
        StartError: the database cannot be reached.
    """

    def __init__(self, settings: ServerSettings, served: Served | None = None, cluster: Cluster | None = None) -> None:
        self._settings = settings
        self._database = Database(settings, older=True)
        self.keys = KeyStore(self._database)
        self._files = FileStore(self._database, self._database.folder / "files", settings.files, settings.retention)
        self._jobs = JobStore(self._database, settings.jobs.waiting, settings.limits.retry_after_s, settings.retention)
        served = served or Served()
        self._commands = ClusterJobs(settings, served)
        cluster = cluster or RayCluster(settings.cluster)
        self._runtime = JobRuntime(self._database, self._jobs, self._files, settings, served, self._commands, cluster)
        self._sweeper = Sweeper(self._files, self._jobs, self._runtime.forget, settings.retention)
        self._looking: asyncio.Task[None] | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._lock: StateLock | None = None

    async def check(self) -> None:
        """Use the database and the folder of files now.

        Where they hang, whoever asks again waits for the same look: threads that hang do not become more.

        Raises:
            UnavailableError: one of the two does not work.
        """
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(asyncio.to_thread(self._look))
            self._looking.add_done_callback(lambda look: look.cancelled() or look.exception())
        await asyncio.shield(self._looking)

    def job_counts(self) -> dict[str, int]:
        """Number of jobs in each state. Blocks; raises UnavailableError."""
        return self._jobs.counts()

    def routers(self) -> tuple[APIRouter, ...]:
        """The routes of files and jobs."""
        jobs = jobs_router(self._jobs, self._runtime, self._commands, self._settings.retention)
        return files_router(self._files, self._settings), jobs

    async def start(self, backend: RowBackend, admission: Admission) -> None:
        """Take hold of the state folder and the database, and do their jobs. Raises StartError when another has one."""
        self._lock = StateLock(self._database.folder)
        await asyncio.to_thread(self._database.hold)
        await asyncio.to_thread(self._database.upgrade)
        await asyncio.to_thread(self._files.sweep)
        await self._runtime.start(ShardRunner(backend, Lane(self._settings.jobs.rows, admission)))
        self._sweeping = asyncio.create_task(self._sweeper.run())

    def begin_stop(self) -> None:
        """Interrupt the jobs and end the streams of events, which would keep a server from closing."""
        self._runtime.begin_stop()

    async def stop(self) -> None:
        """Return when nothing runs any more and the state folder is free."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)
        await self._runtime.stop()
        self._database.close()
        if self._lock is not None:
            self._lock.release()

    def _look(self) -> None:
        self._database.check()
        self._files.check()


def needs_key(keys: Keys, settings: ServerSettings) -> bool:
    """Whether the service asks for a key: there is one in `keys` or in its database. Raises as `DurableWork`."""
    if keys:
        return True
    with closing(Database(settings, older=True)) as database:
        return KeyStore(database).any()
