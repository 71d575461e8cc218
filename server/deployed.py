"""Our application on Ray Serve: Serve started or found running, the application deployed, and both ended again.

Not here: the cluster (`server.run`), the deployments themselves (`server.deployments`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from server.exceptions import StartError
from server.ports import require_free_port
from server.settings import ServerSettings

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle
    from ray.serve.schema import LoggingConfig

APPLICATION = "rewright"
_POLL_S = 0.1


@contextlib.contextmanager
def deployed(
    application: Application, server: ServerSettings, stop: threading.Event
) -> Iterator[DeploymentHandle[Any]]:
    """Within: the application runs. Ends Serve where this started it and no other application uses it.

    Raises:
        SettingsError: the port is taken.
        StartError: Serve or the application does not start; or Serve runs there with another address, or with this
            application already.
    """
    from ray import serve as ray_serve
    from ray.serve.schema import LoggingConfig

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    found = _serve_runs(server)
    try:
        if not found:
            _start_serve(server, quiet)
        (handle,) = ray_serve.run_many(
            [ray_serve.RunTarget(application, name=APPLICATION, route_prefix="/", logging_config=quiet)],
            wait_for_applications_running=False,
        )
        _wait_until_running(server.ray.engine_start_timeout_s, stop)
        yield handle
    finally:
        with silent_stdout():
            if server.ray.address is None or not (found or ray_serve.status().applications.keys() - {APPLICATION}):
                ray_serve.shutdown()  # type: ignore[no-untyped-call]
            else:
                ray_serve.delete(APPLICATION)


def is_running() -> bool:
    """Whether the application runs now.

    Raises:
        StartError: it cannot be deployed; says why.
    """
    from ray import serve as ray_serve
    from ray.serve.schema import ApplicationStatus

    state = ray_serve.status().applications.get(APPLICATION)
    if state is None:
        raise StartError("the service was removed from Ray Serve while it started")
    if state.status == ApplicationStatus.DEPLOY_FAILED:
        # Of the traceback that Ray makes of a failure, the last line says what it was.
        told = [d.message.strip().splitlines()[-1] for d in state.deployments.values() if d.message.strip()]
        raise StartError(f"the service did not start: {'; '.join(told) or state.message}")
    return state.status == ApplicationStatus.RUNNING


@contextlib.contextmanager
def silent_stdout() -> Iterator[None]:
    """Within: nothing reaches stdout, where Ray reports the planned end of its own actors as failures."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _serve_runs(server: ServerSettings) -> bool:
    """Whether Serve runs on this cluster already, so that it is used as it is.

    Raises:
        StartError: it cannot be used: Ray ignores the address that a second start asks for, and would replace an
            application of the same name.
    """
    from ray import serve as ray_serve
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return False
    http = client.http_config
    if (http.host, http.port) != (server.host, server.port):
        raise StartError(
            f"Ray Serve runs on this cluster already and listens on {http.host}:{http.port}, not on "
            f"{server.host}:{server.port}: set server.host and server.port to that, or end it with `serve shutdown`"
        )
    if APPLICATION in ray_serve.status().applications:
        raise StartError(
            "a service runs on Ray Serve of this cluster already: stop its `rewright serve`, or, where that was "
            "killed, end what it left with `serve shutdown`"
        )
    return True


def _start_serve(server: ServerSettings, quiet: LoggingConfig) -> None:
    """Raises StartError when nobody can listen: Ray's own processes may have taken a port that was free before."""
    from ray import serve as ray_serve
    from ray.serve.config import HTTPOptions

    if server.ray.address is not None:  # else `server.run` has looked, before there was a cluster
        require_free_port(server.host, server.port)
    try:
        ray_serve.start(http_options=HTTPOptions(host=server.host, port=server.port), logging_config=quiet)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise StartError(f"Ray Serve does not listen on {server.host}:{server.port}: {reason}") from error


def _wait_until_running(timeout_s: float, stop: threading.Event) -> None:
    deadline = time.monotonic() + timeout_s
    while not stop.wait(_POLL_S) and not is_running():
        if time.monotonic() > deadline:
            raise StartError(
                f"the engine did not load within {timeout_s:g} seconds (server.ray.engine_start_timeout_s)"
            )
