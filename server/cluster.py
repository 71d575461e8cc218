"""Jobs of a Ray cluster, through its dashboard: start one under an id of our own, look at it, read its log, stop it.

Blocks, and keeps nothing: what a job was and how far it has come is asked anew, so that a service that was restarted
finds it by its id. Not here: what is started (`server.cluster_jobs`), and following it (`server.jobs_cluster`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.exceptions import RewrightError
from server.settings import ClusterSettings

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_TIMEOUT_S = 30.0
_STOP_GRACE_S = 60
_ENDED = ("SUCCEEDED", "STOPPED", "FAILED")
_VARIABLES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")  # they would override the address that is asked for

_connecting = threading.Lock()


class ClusterError(RewrightError, RuntimeError):
    """The cluster refuses: its token is another one, or it cannot do what it was asked."""


class ClusterAwayError(ClusterError):
    """The cluster does not answer. What it runs is not affected."""


@dataclass(frozen=True, slots=True)
class ClusterState:
    """What the cluster says of a job.

    Attributes:
        status: PENDING, RUNNING, SUCCEEDED, STOPPED or FAILED.
        message: a sentence on it.
        exit_code: of its command; None where that did not come to its end.
    """

    status: str
    message: str
    exit_code: int | None

    @property
    def ended(self) -> bool:
        return self.status in _ENDED


class RayCluster:
    """The cluster that the settings name; its token is that of Ray's own variables (`RAY_AUTH_MODE`, ...).

    All methods raise ClusterAwayError when it does not answer, and ClusterError when it refuses.
    """

    def __init__(self, settings: ClusterSettings) -> None:
        self._settings = settings
        self._client: JobSubmissionClient | None = None

    def submit(self, name: str, command: str) -> None:
        """Start `command`, a line for a shell, as job `name`. A name that is taken is that job's: nothing happens."""
        settings = self._settings
        with self._asked() as client:
            try:
                client.submit_job(
                    entrypoint=command,
                    submission_id=name,
                    runtime_env={"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_GRACE_S)}},
                    entrypoint_num_cpus=settings.cpus,
                    entrypoint_num_gpus=settings.gpus,
                    entrypoint_memory=settings.memory_mb * 2**20 if settings.memory_mb else 0,
                )
            except RuntimeError as error:
                if "already exists" not in str(error):
                    raise

    def state(self, name: str) -> ClusterState | None:
        """How job `name` stands; None when the cluster knows no such job."""
        with self._asked() as client:
            try:
                found: Any = client.get_job_info(name)
            except RuntimeError as error:
                if "does not exist" in str(error):
                    return None
                raise
        return ClusterState(found.status.value, found.message or "", found.driver_exit_code)

    def log(self, name: str) -> str:
        """What job `name` has printed so far; empty when that went with the machine it ran on."""
        with self._asked() as client:
            try:
                return str(client.get_job_logs(name))
            except RuntimeError as error:
                if _is_failure(str(error)) or "does not exist" in str(error):
                    return ""
                raise

    def stop(self, name: str) -> None:
        """Ask job `name` to end; it gets a minute to do so."""
        with self._asked() as client:
            client.stop_job(name)

    @contextlib.contextmanager
    def _asked(self) -> Iterator[JobSubmissionClient]:
        """Within: what Ray's client raises becomes one of our errors."""
        import requests
        from ray.exceptions import AuthenticationError

        address = self._settings.dashboard
        try:
            self._client = self._client or _connect(str(address))
            yield self._client
        except AuthenticationError as error:
            raise ClusterError(
                "the Ray cluster refuses the service's token: start the service with RAY_AUTH_MODE=token and the "
                "cluster's own RAY_AUTH_TOKEN"
            ) from error
        except (ConnectionError, requests.RequestException) as error:
            raise ClusterAwayError(f"no Ray dashboard answers at {address}") from error
        except RuntimeError as error:
            text = str(error)
            reason = re.split(r"status code \d{3}: ", text)[-1].strip(" .\n").rpartition("\n")[2]
            kind = ClusterAwayError if _is_failure(text) else ClusterError
            raise kind(f"the Ray cluster refuses: {reason}") from error


def _is_failure(text: str) -> bool:
    """Whether an error of Ray's client tells of one of the dashboard; it puts one answer into another."""
    codes = re.findall(r"status code (\d{3})", text)
    return bool(codes) and str(codes[-1]).startswith("5")


def _connect(address: str) -> JobSubmissionClient:
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        def _do_request(self, *arguments: Any, **options: Any) -> Any:
            """Ray sets no time limit, and a dashboard that hangs would hold a thread for good."""
            return super()._do_request(*arguments, **({"timeout": _TIMEOUT_S} | options))

    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)  # it talks of every connection
    with _connecting:
        kept = {name: os.environ.pop(name) for name in _VARIABLES if name in os.environ}
        try:
            return Client(address)
        finally:
            os.environ.update(kept)
