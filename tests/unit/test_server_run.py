"""What the service asks of a cluster before it starts."""

from __future__ import annotations

import threading

import pytest

from server.exceptions import StartError
from server.ports import free_port
from server.run import _missing_resources, _wait_until_ready
from server.settings import RaySettings, ServerSettings


@pytest.mark.parametrize(
    ("available", "said"),
    [
        ({"CPU": 3.0, "GPU": 1.5}, ""),
        ({"CPU": 2.5, "GPU": 1.5}, "3 engines with 1 CPUs each need 3, and the Ray cluster has 2.5"),
        ({"CPU": 3.0, "GPU": 1.0}, "3 engines with 0.5 GPUs each need 1.5, and the Ray cluster has 1"),
        ({"CPU": 3.0}, "3 engines with 0.5 GPUs each need 1.5, and the Ray cluster has 0"),
        ({}, "3 engines with 1 CPUs each need 3, and the Ray cluster has 0"),
    ],
)
def test_what_a_cluster_lacks_for_the_engines_is_said(available: dict[str, float], said: str) -> None:
    assert _missing_resources(RaySettings(engine_replicas=3, engine_gpus=0.5), available) == said


def test_a_service_that_is_never_ready_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.run.is_running", lambda: True)
    server = ServerSettings(port=free_port(), ray=RaySettings(engine_start_timeout_s=0.3))
    with pytest.raises(StartError, match=rf"not ready at http://127\.0\.0\.1:{server.port}/readyz within 0\.3 seconds"):
        _wait_until_ready(server, threading.Event())


def test_a_service_that_has_failed_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def failed() -> bool:
        raise StartError("the service did not start: SettingsError")

    monkeypatch.setattr("server.run.is_running", failed)
    with pytest.raises(StartError, match="did not start: SettingsError"):
        _wait_until_ready(ServerSettings(port=free_port()), threading.Event())
