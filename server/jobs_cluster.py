"""What is done for one job on a cluster, as the body of a DBOS workflow: start it, follow it, take what it made.

An attempt has an id of its own, made of the job's id and its number. So whichever side was restarted, the service asks
the cluster for that id: what runs is followed further, what is over is taken, and what the cluster does not know any
more is lost and tried again from its last checkpoint.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.exceptions import GAVE_UP
from agent.pieces import count_lines
from server.cluster import ClusterError, ClusterState
from server.cluster_jobs import ClusterJobs, remove_folder
from server.exceptions import UnavailableError
from server.files import FileStore, job_file_id
from server.jobs import TERMINAL, Job, JobStore
from server.jobs_runs import Run, RunStore
from server.jobs_steps import JobFailedError, Running, failure_of, run_step
from server.logs import about
from server.settings import ClusterSettings
from server.threads import to_its_end

_POLL_S = 1.0
_EVENT_LINES = 100
_TOLD_LINES = 20_000  # of an attempt, as events
_LOG_BYTES_PER_S = 2**18  # read of the log of an attempt that runs: it comes whole every time
_LINE_CHARACTERS = 500
_LAST_LINES = 20
_LOST, _DONE, _STOPPED = "lost", "done", "stopped"
_OVER = ("cancelling", *TERMINAL)  # no state of a job whose command should run
# The exit code of an exam whose result is there, but for benchmarks that could not be run. A defect's traceback, of a
# GPU or of a connection, is 1 too: with any code but GAVE_UP, what ended a command may pass.
_PARTLY = 1
_log = logging.getLogger("rewright.server")


class Cluster(Protocol):
    """What is needed of a cluster; `server.cluster` has the real one, and says what each does."""

    def submit(self, name: str, command: str) -> None: ...

    def state(self, name: str) -> ClusterState | None: ...

    def log(self, name: str) -> str: ...

    def stop(self, name: str) -> None: ...


class _LogPace:
    """When the log of an attempt is read again: the longer it is, the more seldom."""

    def __init__(self) -> None:
        self._next = 0.0

    def due(self) -> bool:
        return time.monotonic() >= self._next

    def read(self, size: int) -> None:
        self._next = time.monotonic() + size / _LOG_BYTES_PER_S


@dataclass(frozen=True, slots=True)
class ClusterWork:
    """Does jobs on a cluster.

    Attributes:
        jobs: what is known of the jobs.
        runs: how far they have come.
        files: their inputs and reports.
        folder: holds their working folders.
        commands: what they become.
        cluster: runs it.
        settings: how often a job is started, and how long the cluster may be away.
        running: knows of the workflows under way.
        notify: awaited after every change of a job.
    """

    jobs: JobStore
    runs: RunStore
    files: FileStore
    folder: Path
    commands: ClusterJobs
    cluster: Cluster
    settings: ClusterSettings
    running: Running
    notify: Callable[[], Awaitable[None]]

    async def run(self, job_id: str) -> None:
        """The workflow. A job that is interrupted raises CancelledError, which DBOS does not record."""
        with self.running.one(job_id), about(job_id=job_id):
            if (failure := await failure_of(self._do(job_id))) is not None:
                await run_step("fail", self._fail, job_id, failure)

    async def _do(self, job_id: str) -> None:
        if not await run_step("begin", self._begin, job_id):
            return
        for attempt in range(1, self.settings.attempts + 1):
            end, message = await run_step("attempt", self._attempt, job_id, attempt)
            if end != _LOST:
                await run_step("finish", self._finish, job_id, message)
                return
        raise JobFailedError(f"the cluster has lost the job {self.settings.attempts} times; at last: {message}")

    async def _begin(self, job_id: str) -> bool:
        """Make the working folder. False when the job is over already."""
        job = await asyncio.to_thread(self.jobs.get, job_id)
        if job.status in TERMINAL:
            return False
        await to_its_end(self.commands.prepare, job, self.folder / job_id)
        await to_its_end(self.jobs.begin, job_id)
        await self.notify()
        return (await asyncio.to_thread(self.jobs.get, job_id)).status not in TERMINAL  # cancelled meanwhile

    async def _attempt(self, job_id: str, number: int) -> tuple[str, str]:
        """Start an attempt where it was not, and follow it to its end; how it ended, and what was said of that.

        Raises:
            JobFailedError: the job failed, or the cluster is away, or refuses, for too long.
        """
        name = _name(job_id, number)
        pace = _LogPace()
        answered = time.monotonic()
        seen: Run | None = None
        told = ""
        while True:
            try:
                found = await asyncio.to_thread(self._look, name, job_id, number, pace)
                if not isinstance(found, Run):
                    return found
                answered, told = time.monotonic(), ""
                if found != seen:
                    seen = found
                    await self.notify()
            except ClusterError as error:  # a refusal may pass as well: a token that is put right, a proxy in between
                if time.monotonic() - answered > self.settings.patience_s:
                    raise JobFailedError(f"{error}, for {self.settings.patience_s:g} seconds") from error
                if str(error) != told:
                    told = str(error)
                    _log.warning("%s is waited for: %s", name, told)
            await asyncio.sleep(_POLL_S)

    def _look(self, name: str, job_id: str, number: int, pace: _LogPace) -> tuple[str, str] | Run:
        """One look at an attempt, and what follows from it; how far it is while it goes on. Blocks."""
        job = self.jobs.get(job_id)
        over = job.status in _OVER
        state = self.cluster.state(name)
        if state is None:
            if over:
                return _STOPPED, ""
            if self.runs.get(job_id).attempt >= number:
                return _LOST, "the cluster does not know it any more"
            command = self.commands.command(job, self.folder / job_id, self._source(job))
            self.cluster.submit(name, command)
            return self.runs.started(job_id, number)
        run = self.runs.started(job_id, number)
        if not state.ended:
            if pace.due() and run.told < _TOLD_LINES:
                run = self._tell(job_id, self._read_log(job, name, pace), whole=False)
            if over:
                self.cluster.stop(name)
            return run
        log = self._read_log(job, name, pace)
        if run.attempt == number:  # not so where the job was begun again, and this is one of its earlier attempts
            self._tell(job_id, log, whole=True)
        return self._end(job, state, log)

    def _read_log(self, job: Job, name: str, pace: _LogPace) -> str:
        log = self.cluster.log(name)
        pace.read(len(log))
        return self._without_paths(job, log)

    def _end(self, job: Job, state: ClusterState, log: str) -> tuple[str, str]:
        if state.status == "SUCCEEDED":
            return _DONE, ""
        if job.status in _OVER:
            return _STOPPED, ""
        left = self.commands.not_run(job, self.folder / job.id) if state.exit_code == _PARTLY else None
        if left is not None:
            return _DONE, self._without_paths(job, left)
        if state.status == "STOPPED":
            raise JobFailedError("somebody stopped the job on the cluster")
        reason = self._without_paths(job, state.message).split(", last available logs")[0].strip()
        lines = [line for line in map(_shown, log.splitlines()) if line][-_LAST_LINES:]
        message = "\n".join((reason, *lines))
        if state.exit_code == GAVE_UP:
            raise JobFailedError(message)
        return _LOST, message

    def _tell(self, job_id: str, log: str, *, whole: bool) -> Run:
        """Tell the lines that were not told yet, the last one only when it is `whole`; how far the job is then."""
        lines = log.split("\n")[: None if whole and not log.endswith("\n") else -1]
        while (run := self.runs.get(job_id)).told < min(len(lines), _TOLD_LINES):
            end = min(run.told + _EVENT_LINES, _TOLD_LINES)
            self.runs.tell(job_id, run, [_shown(line) for line in lines[run.told : end]])
        return run

    async def _finish(self, job_id: str, message: str) -> None:
        await to_its_end(self.jobs.finalize, job_id)
        await self.notify()
        await to_its_end(self._take, job_id, message)
        await self.notify()

    def _take(self, job_id: str, message: str) -> None:
        """Publish what the job has made, and keep its report; `message` says what it has not, if anything."""
        job, folder = self.jobs.get(job_id), self.folder / job_id
        if job.status == "cancelling":
            self.jobs.finish(job_id, cancelled=True)
        elif job.status not in TERMINAL:
            try:
                made = self.commands.collect(job, folder)
                report, samples = folder / "report", folder / "samples"
                shutil.copyfile(made.report, report)
                if made.samples is not None:
                    shutil.copyfile(made.samples, samples)
            except (FileNotFoundError, ValueError) as error:
                raise JobFailedError("the command ended well and left no result that can be read") from error
            file_id, samples_id = job_file_id(job_id, "report"), None
            self.files.adopt(report, file_id, "output", f"{job_id}.json", 0, "json")
            if made.samples is not None:
                samples_id = job_file_id(job_id, "samples")
                self.files.adopt(samples, samples_id, "output", f"{job_id}.samples.jsonl", count_lines(samples))
            self.runs.made(job_id, adapter=made.adapter, model=made.model, samples=samples_id)
            self.jobs.finish(job_id, cancelled=False, output_file=file_id, error=message or None)
        remove_folder(folder)

    async def _fail(self, job_id: str, message: str) -> None:
        await to_its_end(self._give_up, job_id, message)
        await self.notify()

    def _give_up(self, job_id: str, message: str) -> None:
        """End a job that cannot be done.

        What a command has made that ended well is taken all the same. What one leaves that was broken off, or that may
        still go on, is kept until the job is forgotten; only a command that gave up itself leaves nothing of worth.

        Raises:
            OSError, UnavailableError: what was made cannot be kept now; it is worth another try.
        """
        job, attempt = self.jobs.get(job_id), self.runs.get(job_id).attempt
        name = _name(job_id, max(attempt, 1))
        worthless = False
        try:
            state = self.cluster.state(name)
            if state is None:
                worthless = not attempt
            elif not state.ended:
                self.cluster.stop(name)
            else:
                worthless = state.exit_code == GAVE_UP
                end, left = self._end(job, state, "")
                if end == _DONE:
                    self._take(job_id, left)
        except (OSError, UnavailableError):
            raise
        except JobFailedError:
            pass  # what it says is the message, or comes after it
        except Exception as error:  # of a cluster that is away; the job has failed all the same
            _log.error("%s cannot be stopped, or what it made not be taken: it may go on", name, exc_info=error)
        self.jobs.fail(job_id, message)  # nothing, where the job has ended just now
        if worthless:
            remove_folder(self.folder / job_id)

    def _source(self, job: Job) -> Path | None:
        if job.input_file is None:
            return None
        stored = self.files.get(job.input_file)
        return self.files.fetch(stored, self.folder / job.id / f"input.{stored.format}")

    def _without_paths(self, job: Job, text: str) -> str:
        return self.commands.without_paths(text, self.folder / job.id, self._source(job), job.input_file)


def _name(job_id: str, attempt: int) -> str:
    return f"rewright-{job_id}-{attempt}"


def _shown(line: str) -> str:
    """A line of a log as clients get it: what a terminal would show of it, of bounded length."""
    last = line.rstrip("\r").rpartition("\r")[2]
    return "".join(c for c in last if c.isprintable() or c == "\t")[:_LINE_CHARACTERS]
