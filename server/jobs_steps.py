"""Steps of the workflows of jobs: what is tried again, what fails a job, and what interrupts all of them.

DBOS runs a step that was cut short again, so every step may be run twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

from dbos import DBOS, StepOptions
from dbos import error as dbos_error
from sqlalchemy.exc import InterfaceError, OperationalError

from agent.exceptions import ModelError, RewrightError
from server.exceptions import UnavailableError
from server.jobs_files import StoppedError

T = TypeVar("T")

RETRY: StepOptions = {
    "retries_allowed": True,
    "max_attempts": 8,
    "interval_seconds": 1.0,
    "backoff_rate": 3.0,
    "should_retry": lambda error: isinstance(error, _InterruptedStepError),
}

_log = logging.getLogger("rewright.server")


class JobFailedError(Exception):
    """A step can never succeed. DBOS keeps what a step raises, so this has nothing but its message."""


class _InterruptedStepError(Exception):
    """A step may succeed later: a disk that is full, a database or a model that is away."""


class Running:
    """The workflows under way in this process."""

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[Any], str] = {}
        self._stopping = threading.Event()

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._tasks.values()

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    def begin_stop(self) -> None:
        """Interrupt all of them where they are, and begin no more. Once: what they clear up then is not interrupted."""
        if self.stopping:
            return
        self._stopping.set()
        for task in self._tasks:
            task.cancel()

    async def stopped(self) -> None:
        """Return when none is under way any more."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @contextlib.contextmanager
    def one(self, job_id: str) -> Iterator[None]:
        """Within: the calling task is the workflow of a job, which `begin_stop` cancels; DBOS does not keep that."""
        task = asyncio.current_task()
        assert task is not None
        if self.stopping:
            raise asyncio.CancelledError
        self._tasks[task] = job_id
        try:
            yield
        finally:
            del self._tasks[task]


async def run_step(name: str, work: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """The result of a step of the current workflow. Raises as `attempt`, and `failure_of` explains it."""
    return await DBOS.run_step_async({"name": name, **RETRY}, attempt, work, *arguments)


async def attempt(work: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """The result of a step, with its errors sorted by whether trying again makes sense."""
    try:
        return await work(*arguments)
    except StoppedError:
        raise asyncio.CancelledError from None
    except JobFailedError:
        raise
    except (UnavailableError, ModelError) as error:  # the model is that of `gate.text_model`, loaded at its first use
        raise _InterruptedStepError(str(error)) from error
    except RewrightError as error:
        raise JobFailedError(str(error)) from error
    except Exception as error:
        # What this says is for the log alone: clients see only that it failed.
        _log.error("a step of a job failed", exc_info=error)
        said = error.strerror if isinstance(error, OSError) else None
        reason = f"its machine says: {said}" if said else "its log says why"
        raise _InterruptedStepError(f"the service failed on this job; {reason}") from error


async def failure_of(work: Awaitable[None]) -> str | None:
    """Why a job failed, once all its steps were done or one was given up; None when none was.

    What DBOS raises to take a workflow away from this process is no Exception, and passes. So does that DBOS could not
    write a step down: nothing of the job is at fault, and `server.jobs_runtime` begins it again.
    """
    try:
        await work
    except JobFailedError as error:
        return str(error)
    except dbos_error.DBOSMaxStepRetriesExceeded as error:
        return str(error.errors[-1])
    except (OperationalError, InterfaceError):
        raise
    except Exception as error:  # of a workflow, not of a step; without an end its job would stay unfinished for good
        _log.error("a job was broken off", exc_info=error)
        return "the service failed on this job; its log says why"
    return None
