"""The deployments apart from Ray: what is left to do when a start has failed."""

from __future__ import annotations

from types import SimpleNamespace

from server.deployments import EngineDeployment


async def test_a_replica_whose_start_failed_ends_without_an_error() -> None:
    await EngineDeployment.__del__(SimpleNamespace())  # type: ignore[arg-type]  # what a failed __init__ leaves
