"""Starting the service on Ray, and ending it so that nothing in flight is lost.

Not here: Ray Serve (`server.deployed`), the deployments themselves (`server.deployments`), the same app without Ray
(`server.local`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

import httpx

from agent.exceptions import SettingsError
from agent.models import resolve_model
from agent.settings import EngineSettings, GateSettings, ModelSettings, RewriteSettings
from server.auth import Keys
from server.deployed import deployed, is_running, silent_stdout
from server.exceptions import StartError
from server.ports import require_free_port
from server.settings import RaySettings, ServerSettings, require_keys_in_public
from server.work import needs_key

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

_NAMESPACE = "rewright"
_POLL_S = 0.1
_NAP_S = 0.5

Announce = Callable[[str], None]


def serve(
    model: ModelSettings,
    engine: EngineSettings,
    gate: GateSettings,
    rewrite: RewriteSettings,
    server: ServerSettings,
    announce: Announce,
) -> None:
    """Run the service on Ray until SIGINT or SIGTERM, then finish what is in flight and return.

    Args:
        model: fetched here first if need be, and again on every node that runs an engine.
        announce: called with one line at each stage.

    Raises:
        SettingsError: keys are missing for a public host, the port is taken, the cluster is too small.
        ModelError: the model cannot be had.
        StartError: the service did not come up; says why.
    """
    keys = Keys.from_environment()
    require_keys_in_public(server, has_keys=needs_key(keys, server))
    if server.ray.address is None:  # Serve of a cluster that we join may have it already
        require_free_port(server.host, server.port)
    resolve_model(model)
    started = time.monotonic()
    with _stop_signals() as stop, _ray_cluster(server.ray), _stop_signals(stop):  # Ray has installed handlers too
        if not _wait_for_resources(server.ray, stop, announce):
            return
        from server.deployments import build_application  # imports Ray, which reads its environment then

        announce(f"Ray is up after {time.monotonic() - started:.1f} s; loading {model.name}")
        application = build_application(model, engine, gate, rewrite, server, keys)
        with deployed(application, server, stop) as handle:
            if _wait_until_ready(server, stop):
                announce(f"ready at {base_url(server)} after {time.monotonic() - started:.1f} s; docs at /docs")
                _wait_for(stop)
                announce("shutting down: finishing what is in flight")
                _drain(handle, server.drain_timeout_s, announce)
    announce("stopped")


def base_url(server: ServerSettings) -> str:
    """Where a client on this machine reaches the service."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(server.host, server.host)
    return f"http://[{host}]:{server.port}" if ":" in host else f"http://{host}:{server.port}"


@contextlib.contextmanager
def _stop_signals(stop: threading.Event | None = None) -> Iterator[threading.Event]:
    """Within: the first SIGINT or SIGTERM sets the event, the second one interrupts."""
    event = stop or threading.Event()

    def on_signal(number: int, _: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt(signal.Signals(number).name)
        event.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait_for(stop: threading.Event) -> None:
    """Wait in short naps: a signal that another thread receives does not end a wait of this one."""
    while not stop.wait(_NAP_S):
        pass


def _set_ray_environment(settings: RaySettings) -> None:
    """Variables that Ray reads when it is imported; its processes inherit them. What the user set stays."""
    defaults = {"RAY_USAGE_STATS_ENABLED": "0"}
    if settings.address is None:
        defaults["RAY_AUTH_MODE"] = "token"
        # Ray's switch for "more than this machine", named after the platforms where it is off by default:
        # with it off, every port of Ray's is bound to loopback.
        defaults["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        # A copy of the engine that does not say within this how much it has to do is given nothing while another has
        # said so. Ray's tenth of a second is too short where copies compute on the cores that they answer with.
        defaults["RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S"] = "1"
        if "RAY_AUTH_TOKEN_PATH" not in os.environ:
            defaults["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def _ray_cluster(settings: RaySettings) -> Iterator[None]:
    """Within: connected to the cluster of the settings, or to one of our own that ends with this."""
    _set_ray_environment(settings)
    import ray

    local: dict[str, Any] = {
        "include_dashboard": False,
        "object_store_memory": settings.object_store_mb * 2**20,
    }
    try:
        ray.init(
            address=settings.address or "local",
            namespace=_NAMESPACE,
            log_to_driver=False,
            logging_level=logging.WARNING,
            **(local if settings.address is None else {}),
        )
    except Exception as error:  # Ray raises the bare class when a process of its own does not come up
        raise StartError(f"Ray did not start, or cannot be reached at {settings.address}: {error}") from error
    try:
        yield
    finally:
        with silent_stdout():
            ray.shutdown()


def _wait_for_resources(settings: RaySettings, stop: threading.Event, announce: Announce) -> bool:
    """Return when the cluster has what the engines reserve; nodes may still join one that we did not start.

    Returns:
        False when told to stop before.

    Raises:
        SettingsError: the cluster is too small, and nothing joined within `engine_start_timeout_s`.
    """
    import ray

    patience_s = 0.0 if settings.address is None else settings.engine_start_timeout_s
    deadline = time.monotonic() + patience_s
    told = ""
    while not stop.is_set():
        missing = _missing_resources(settings, ray.cluster_resources())  # type: ignore[no-untyped-call]
        if not missing:
            return True
        if time.monotonic() >= deadline:
            raise SettingsError(
                f"{missing}: lower server.ray.engine_cpus, server.ray.engine_gpus or server.ray.engine_replicas"
            )
        if missing != told:
            announce(f"waiting for nodes to join: {missing}")
            told = missing
        stop.wait(_NAP_S)
    return False


def _missing_resources(settings: RaySettings, available: dict[str, float]) -> str:
    """What the cluster lacks for the engines, in words; empty when it lacks nothing."""
    for name, each in (("CPU", settings.engine_cpus), ("GPU", settings.engine_gpus)):
        needed = settings.engine_replicas * each
        if needed > available.get(name, 0.0):
            return (
                f"{settings.engine_replicas} engines with {each:g} {name}s each need {needed:g}, "
                f"and the Ray cluster has {available.get(name, 0.0):g}"
            )
    return ""


def _wait_until_ready(server: ServerSettings, stop: threading.Event) -> bool:
    """Ask over HTTP until the engine has answered. False when told to stop before.

    Raises:
        StartError: the application has failed, or there is no such answer within `engine_start_timeout_s`.
    """
    timeout_s = server.ray.engine_start_timeout_s
    deadline = time.monotonic() + timeout_s
    heard = "nothing answers"
    with httpx.Client(base_url=base_url(server), timeout=10, trust_env=False) as client:
        while not stop.wait(_POLL_S):
            with contextlib.suppress(httpx.TransportError):
                status = client.get("/readyz").status_code
                if status == httpx.codes.OK:
                    return True
                heard = f"the last answer was {status}"
            is_running()
            if time.monotonic() > deadline:
                raise StartError(
                    f"the service was not ready at {base_url(server)}/readyz within {timeout_s:g} seconds "
                    f"(server.ray.engine_start_timeout_s): {heard}; on a cluster, start it on the head node"
                )
    return False


def _drain(handle: DeploymentHandle[Any], timeout_s: float, announce: Announce) -> None:
    try:
        handle.drain.remote().result(timeout_s=timeout_s)
    except TimeoutError:
        announce(f"gave up on requests that took longer than {timeout_s:g} s (server.drain_timeout_s)")
