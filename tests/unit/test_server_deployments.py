"""The deployments apart from Ray: what is left to do when a start has failed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from agent.settings import EngineSettings, GateSettings, ModelSettings, RewriteSettings
from server.auth import Keys
from server.deployments import EngineDeployment, build_application
from server.settings import ClusterSettings, ServerSettings
from tests.scripted_engine import QuietEngine

SETTINGS = (ModelSettings(), EngineSettings(), GateSettings(), RewriteSettings())


async def test_a_replica_closes_its_engine_and_needs_none_where_its_start_failed() -> None:
    started, failed = SimpleNamespace(_engine=QuietEngine()), SimpleNamespace()
    for replica in (started, failed):
        await EngineDeployment.__del__(replica)  # type: ignore[arg-type]  # as __init__ leaves it
    assert started._engine.closed


def test_both_deployments_get_the_time_to_drain() -> None:
    server = ServerSettings(drain_timeout_s=77.0)
    api = build_application(*SETTINGS, server, Keys())._bound_deployment
    engine = api.init_args[0]._bound_deployment
    assert [(d.name, d._deployment_config.graceful_shutdown_timeout_s) for d in (api, engine)] == [
        ("api", 77.0),
        ("engine", 77.0),
    ]


def test_folders_are_those_of_whoever_starts_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REWRIGHT_HOME", str(tmp_path / "home"))
    for given, state in ((None, "home/service"), ("here", "here")):
        data = ClusterSettings(benchmark_data=Path("exams"))
        application = build_application(*SETTINGS, ServerSettings(state=given, cluster=data), Keys())
        for deployment in (application._bound_deployment, application._bound_deployment.init_args[0]._bound_deployment):
            (server,) = (value for value in deployment.init_args if isinstance(value, ServerSettings))
            assert server.state == str(tmp_path / state)
            assert server.cluster.models == tmp_path / state / "models"
            assert server.cluster.benchmark_data == tmp_path / "exams"
