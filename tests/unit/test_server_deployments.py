"""The deployments apart from Ray: what is left to do when a start has failed."""

from __future__ import annotations

from types import SimpleNamespace

from agent.settings import EngineSettings, GateSettings, ModelSettings, RewriteSettings
from server.auth import Keys
from server.deployments import EngineDeployment, build_application
from server.settings import ServerSettings


async def test_a_replica_whose_start_failed_ends_without_an_error() -> None:
    await EngineDeployment.__del__(SimpleNamespace())  # type: ignore[arg-type]  # what a failed __init__ leaves


def test_both_deployments_get_the_time_to_drain() -> None:
    server = ServerSettings(drain_timeout_s=77.0)
    settings = (ModelSettings(), EngineSettings(), GateSettings(), RewriteSettings())
    api = build_application(*settings, server, Keys())._bound_deployment
    engine = api.init_args[0]._bound_deployment
    assert [(d.name, d._deployment_config.graceful_shutdown_timeout_s) for d in (api, engine)] == [
        ("api", 77.0),
        ("engine", 77.0),
    ]
