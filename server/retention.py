"""How long files and finished jobs are kept, and the removal of what is older and needed by nothing unfinished."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

from server.exceptions import ConflictError, UnavailableError, UnknownNameError
from server.files import FileStore
from server.jobs import JobStore
from server.settings import RetentionSettings
from server.threads import to_its_end

_BATCH = 500

_log = logging.getLogger("rewright.server")


class Sweeper:
    """Removes what has expired.

    Args:
        files: uploads and results.
        jobs: and their events.
        forget: has the workflow of a job removed from wherever it is kept.
        settings: how old things may become.
    """

    def __init__(
        self,
        files: FileStore,
        jobs: JobStore,
        forget: Callable[[str], Awaitable[None]],
        settings: RetentionSettings,
    ) -> None:
        self._files, self._jobs, self._forget, self._settings = files, jobs, forget, settings

    async def run(self) -> None:
        """Sweep now and then, until cancelled. What cannot be removed now is tried again the next time."""
        if not self._settings.any:
            return
        while True:
            try:
                files, jobs = await self.sweep(time.time())
                if files or jobs:
                    _log.info("expired: removed %d files and %d jobs", files, jobs)
            except Exception as error:  # of the database, the disk or DBOS; the next look must come all the same
                _log.error("what has expired cannot be removed", exc_info=error)
            await asyncio.sleep(self._settings.sweep_s)

    async def sweep(self, now: float) -> tuple[int, int]:
        """Remove what has expired at `now`, seconds since 1970; returns how many files and jobs that were.

        Raises:
            UnavailableError: the database does not answer.
        """
        return await self._sweep_files(now), await self._sweep_jobs(now)

    async def _sweep_files(self, now: float) -> int:
        removed = 0
        while batch := await asyncio.to_thread(self._files.expired, now, _BATCH):
            before = removed
            for file_id in batch:
                # A job may have come for it, or a client deleted it, since the look.
                with contextlib.suppress(ConflictError, UnknownNameError):
                    try:
                        await to_its_end(self._files.delete, file_id)
                        removed += 1
                    except UnavailableError as error:
                        if error.code != "storage_unavailable":
                            raise
                        _log.error("%s has expired and cannot be removed", file_id, exc_info=error)
            if removed == before:
                break
        return removed

    async def _sweep_jobs(self, now: float) -> int:
        removed = 0
        while batch := await asyncio.to_thread(self._jobs.expired, now, _BATCH):
            for job_id in batch:
                await self._forget(job_id)
                await to_its_end(self._jobs.delete, job_id)
                removed += 1
        return removed
