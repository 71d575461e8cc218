"""Trainings as jobs of a Ray cluster: submit, follow, look at, stop. A job outlives whoever submitted it.

The cluster starts jobs through a shell, so the command is a constant; what is to be trained travels as data. Nothing
is uploaded: the cluster has the package installed, and paths are paths on its machines. Not here: the job's own side
(`trainer.ray_entry`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from agent.exceptions import GAVE_UP
from trainer.exceptions import JobError, JobFailedError, UnreachableError
from trainer.ray_entry import JOB_VARIABLE
from trainer.request import SftRequest, TrainingJob, TrainingRequest, WorkerResources
from trainer.submission import job_of

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ENTRYPOINT = "python -m trainer.ray_entry"

_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", re.ASCII)
_ADDRESS = re.compile(r"https?://\S+")
_MAX_JOB_CHARACTERS = 32_768  # Linux allows 131,072 bytes a variable, and Ray escapes and wraps this one
_STOP_GRACE_S = 60
_PATIENCE_S = 300.0
_RETRY_S = 1.0
_SILENCE_S = 120.0
_LAST_LINES = 20
_LAST_CHARACTERS = 20_000
_ENDED = ("SUCCEEDED", "STOPPED", "FAILED")


@dataclass(frozen=True, slots=True)
class JobState:
    """What Ray says about a job.

    Attributes:
        status: PENDING, RUNNING, SUCCEEDED, STOPPED or FAILED.
        message: a sentence on it.
        exit_code: of its process; None where that did not come to its end.
    """

    job_id: str
    status: str
    message: str
    exit_code: int | None


def submit(
    address: str,
    request: TrainingRequest | SftRequest,
    *,
    resume: bool = False,
    workers: int = 1,
    resources: WorkerResources | None = None,
    job_id: str | None = None,
) -> str:
    """Have a cluster train. Returns at once; the job runs on when this process ends.

    Args:
        address: of the cluster's dashboard, `http://head:8265`.
        request: its paths are paths on the cluster's machines; see `trainer.submission` for what changes.
        resources: of each worker, None for the defaults. A single worker is the job's own process. Several are
            started by it, and it reserves nothing itself, so that they may have the whole cluster.
        job_id: 1 to 64 letters, digits, `-` and `_`; None for a new one. A cluster takes an id only once.

    Returns:
        The job's id.

    Raises:
        JobError: a path is relative, a GPU is needed and not reserved, the id is malformed or taken, the cluster
            refuses.
        TrainingSettingsError: the settings do not fit together, or not so many workers.
        UnreachableError: there is no cluster at `address`.
    """
    resources = resources or WorkerResources()
    job = job_of(request, resume=resume, workers=workers, resources=resources)
    job_id = f"rewright-{request.kind}-{secrets.token_hex(8)}" if job_id is None else job_id
    _require_job_id(job_id)
    own = resources if workers == 1 else None
    with _explained(address):
        return str(
            _connect(address).submit_job(
                entrypoint=ENTRYPOINT,
                submission_id=job_id,
                runtime_env={"env_vars": job_environment(job)},
                entrypoint_num_cpus=own.cpus if own else 0,
                entrypoint_num_gpus=own.gpus if own else 0,
                entrypoint_memory=own.memory_mb * 2**20 if own and own.memory_mb else 0,
            )
        )


def job_environment(job: TrainingJob) -> dict[str, str]:
    """Environment variables that carry a job to its process.

    Raises:
        JobError: the job is too long for one.
    """
    # Ray expands $NAME and ${NAME} in the values; in JSON a dollar sign can be written without one.
    text = json.dumps(job.model_dump(mode="json")).replace("$", "\\u0024")
    if len(text) > _MAX_JOB_CHARACTERS:
        raise JobError(f"the settings of the training take {len(text)} characters, at most {_MAX_JOB_CHARACTERS}")
    return {JOB_VARIABLE: text, "RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_GRACE_S)}


def status(address: str, job_id: str) -> JobState:
    """How a job stands.

    Raises:
        JobError: the cluster has no such job, or refuses.
        UnreachableError: the cluster does not answer.
    """
    _require_job_id(job_id)
    with _explained(address):
        return _state(_connect(address), job_id)


def stop(address: str, job_id: str) -> bool:
    """Ask a job to end; it gets a minute to do so. Returns at once.

    Returns:
        Whether it was running.

    Raises:
        As `status`.
    """
    _require_job_id(job_id)
    with _explained(address):
        return bool(_connect(address).stop_job(job_id))


def follow(address: str, job_id: str, write: Callable[[str], object], *, patience_s: float = _PATIENCE_S) -> JobState:
    """Pass on a job's log, from its beginning, until the job ends. May be given up and called again at any time.

    Args:
        write: gets the text piece by piece, every character once, however often the connection is lost.
        patience_s: how long the cluster may be out of reach, seconds.

    Returns:
        The final state, SUCCEEDED or STOPPED.

    Raises:
        JobFailedError: the job failed: status, reason and last lines.
        JobError: it gave up, and would again; or as `status`.
        UnreachableError: the cluster was out of reach for longer than `patience_s`.
    """
    _require_job_id(job_id)
    log = _Log(write)
    state = asyncio.run(_follow(address, job_id, log, patience_s))
    if state.status == "FAILED":
        raise (JobError if state.exit_code == GAVE_UP else JobFailedError)(_failure(state, log.last_lines()))
    return state


async def _follow(address: str, job_id: str, log: _Log, patience_s: float) -> JobState:
    client, answered = None, time.monotonic()
    while True:
        try:
            with _explained(address):
                client = client or _connect(address)
                state = _state(client, job_id)
        except UnreachableError:
            if time.monotonic() - answered > patience_s:
                raise
        else:
            if state.status in _ENDED:
                _finish(client, job_id, log)
                return state
            await _stream(client, job_id, log)
            answered = time.monotonic()
        await asyncio.sleep(_RETRY_S)


async def _stream(client: JobSubmissionClient, job_id: str, log: _Log) -> None:
    """Pass on the log until the connection ends, for whatever reason, or is silent so long that it may be dead."""
    import aiohttp

    log.rewind()
    async with contextlib.aclosing(cast("AsyncGenerator[str, None]", client.tail_job_logs(job_id))) as pieces:
        while True:
            try:
                async with asyncio.timeout(_SILENCE_S):
                    piece = await anext(pieces)
            except (StopAsyncIteration, aiohttp.ClientError, OSError, RuntimeError):
                return
            log.add(piece)


def _finish(client: JobSubmissionClient, job_id: str, log: _Log) -> None:
    """Pass on what the stream has left out, unless the log went with the job's machine."""
    import requests

    try:
        text = client.get_job_logs(job_id)
    except (RuntimeError, requests.RequestException):
        return
    log.rewind()
    log.add(text)


class _Log:
    """A log that every connection sends from its beginning, written once."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._written = 0
        self._seen = 0
        self._last = ""

    def rewind(self) -> None:
        self._seen = 0

    def add(self, text: str) -> None:
        new = text[max(0, self._written - self._seen) :]
        self._seen += len(text)
        if new:
            self._written = self._seen
            self._last = (self._last + new)[-_LAST_CHARACTERS:]
            self._write(new)

    def last_lines(self) -> list[str]:
        return self._last.splitlines()[-_LAST_LINES:]


def _failure(state: JobState, lines: list[str]) -> str:
    reason = state.message.split(", last available logs")[0].strip()
    return "\n".join((f"job {state.job_id} FAILED: {reason}", *(f"  {line}" for line in lines)))


def _state(client: JobSubmissionClient, job_id: str) -> JobState:
    info = client.get_job_info(job_id)
    return JobState(job_id, info.status.value, info.message or "", info.driver_exit_code)


def _require_job_id(job_id: str) -> None:
    if not _JOB_ID.fullmatch(job_id):
        raise JobError(f"job id {job_id!r}: use 1 to 64 letters, digits, '-' and '_', the first no sign")


def _connect(address: str) -> JobSubmissionClient:
    if not _ADDRESS.fullmatch(address):
        raise JobError(f"address {address!r}: give that of the cluster's dashboard, as in http://head:8265")
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)  # it talks of every connection
    with _without_variables("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # they would override the address
        return JobSubmissionClient(address)


@contextlib.contextmanager
def _without_variables(*names: str) -> Iterator[None]:
    """Within: this process does not have these environment variables."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


@contextlib.contextmanager
def _explained(address: str) -> Iterator[None]:
    """Within: what Ray's client raises becomes a JobError that says what to do."""
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise JobError(
            f"{address} refuses the token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or the "
            "file ~/.ray/auth_token to the token of the cluster"
        ) from error
    except (ConnectionError, requests.RequestException) as error:
        raise UnreachableError(f"no Ray dashboard answers at {address}: {error}") from error
    except JobError:
        raise
    except RuntimeError as error:
        raise _refusal(address, str(error)) from error


def _refusal(address: str, text: str) -> JobError:
    """The error for a request that the dashboard did not carry out; it answers with tracebacks, one in another."""
    codes = re.findall(r"status code (\d{3})", text)
    reason = re.split(r"status code \d{3}: ", text)[-1].strip(" .\n").rpartition("\n")[2]
    kind = UnreachableError if codes and codes[-1].startswith("5") else JobError
    return kind(f"{address}: {reason}")
