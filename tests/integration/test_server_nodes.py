"""Engines on two Ray nodes of one machine: the work is spread, and a call that kills engines is found.

In this process, since Ray's test cluster is: its nodes are processes of their own all the same.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import serve
from ray._private.state import actors
from ray.cluster_utils import Cluster
from ray.serve.handle import DeploymentHandle

from agent.engine import Completion, EngineInfo, Sampling
from agent.engine.urgency import bulk_work, is_bulk
from agent.exceptions import EngineClosedError, EngineCrashError
from agent.models import ModelFiles
from agent.settings import EngineSettings, GateSettings, ModelSettings, RewriteSettings
from server.adapters import AdapterStore
from server.auth import Keys
from server.deployments import EngineDeployment, build_application
from server.hosting import HostedEngine
from server.remote import RemoteEngine
from server.settings import RaySettings, ServerSettings

PATIENCE_S = 300.0
MOST_ROUNDS = 10
POISON = 13


class CoreEngine:
    """An engine whose core is a process of its own, as vLLM's is; a poison kills it under all that it works on.

    It scores bulk work at 1 nat a token, and everything else at none.
    """

    info = EngineInfo("core", 128)

    def __init__(self) -> None:
        self._core = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, n: int = 1, adapter: str | None = None
    ) -> list[Completion]:
        await self.check()
        await asyncio.sleep(0.2)
        if POISON in prompt_ids:
            self._core.kill()
            self._core.wait()
        await self.check()
        return [Completion(list(prompt_ids), str(prompt_ids[0]), [0.0], "stop")] * n

    async def score(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], adapter: str | None = None
    ) -> list[float]:
        await self.check()
        return [-1.0 if is_bulk() else 0.0] * len(completion_ids)

    async def load_adapter(self, name: str, path: Path) -> None: ...
    async def unload_adapter(self, name: str) -> None: ...

    async def check(self) -> None:
        if self._core.poll() is not None:
            raise EngineClosedError("the core has died")

    async def close(self) -> None:
        self._core.kill()


class CoreDeployment(EngineDeployment):
    """The deployment as it is, on the engine above."""

    async def __init__(self) -> None:  # type: ignore[misc]
        store = AdapterStore()
        self._engine = HostedEngine(CoreEngine(), ModelFiles("core", Path(), None), store.path_of, 1)
        self._answers = self._answers_at_last_check = 0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    ray.init(address=nodes.address, log_to_driver=False, namespace="rewright")
    serve.start(proxy_location="Disabled")  # no port is taken: the calls go through handles
    try:
        yield nodes
    finally:
        serve.shutdown()
        ray.shutdown()
        nodes.shutdown()


async def test_two_nodes_share_the_work_and_both_load_an_adapter(
    cluster: Cluster, model_files: ModelFiles, tmp_path: Path
) -> None:
    from tests.tiny import make_model, publish_lora  # torch, which the other test does without

    model = make_model(tmp_path / "tiny", model_files)
    publish_lora(tmp_path / "adapters", model, 1)
    settings = ServerSettings(
        adapters=tmp_path / "adapters",
        state=str(tmp_path / "state"),
        ray=RaySettings(engine_replicas=2, engine_cpus=1.0, health_period_s=1),
    )
    application = build_application(
        ModelSettings(name=str(model.path)),
        EngineSettings(threads=1),
        GateSettings(),
        RewriteSettings(),
        settings,
        Keys(),
    )
    await asyncio.to_thread(serve.run, application, name="two")
    handle: DeploymentHandle[Any] = serve.get_deployment_handle("engine", "two")
    engine = RemoteEngine(handle, PATIENCE_S)
    await engine.load("math@1")
    rounds = 0
    answers = [0, 0]
    while min(answers) <= 4 and rounds < MOST_ROUNDS:  # in the first, one engine may be known well before the other
        drawn = await asyncio.gather(
            *(engine.generate([40, 41, 42 + i], Sampling(max_tokens=16), 1, "math@1") for i in range(32))
        )
        assert len(drawn) == 32
        rounds += 1
        reports = await engine.reports()
        assert len({report.node for report in reports}) == 2
        assert [report.adapters for report in reports] == [{"math@1"}] * 2
        answers = [report.answers for report in reports]
    assert sum(answers) == 32 * rounds
    assert min(answers) > 4
    hosts = {
        a["Name"]: a["Address"]["NodeID"] for a in actors().values() if "ServeReplica:two:api" in a["ActorClassName"]
    }
    assert list(hosts.values()) == [cluster.head_node.node_id]  # where its files are
    await asyncio.to_thread(serve.delete, "two")


async def test_of_32_calls_the_one_that_kills_engines_fails_alone(cluster: Cluster) -> None:
    deployment = serve.deployment(
        name="core", num_replicas=2, ray_actor_options={"num_cpus": 0}, health_check_period_s=0.5
    )(CoreDeployment)
    handle: DeploymentHandle[Any] = await asyncio.to_thread(
        serve.run, deployment.bind(), name="core", route_prefix=None
    )
    engine = RemoteEngine(handle, PATIENCE_S)
    with bulk_work():
        assert await engine.score([1], [2]) == [-1.0]
    assert await engine.score([1], [2]) == [0.0], "bulk work of one call became that of the next"
    outcomes = await asyncio.gather(
        *(engine.generate([number], Sampling()) for number in range(32)), return_exceptions=True
    )
    assert [number for number, outcome in enumerate(outcomes) if isinstance(outcome, BaseException)] == [POISON]
    assert isinstance(outcomes[POISON], EngineCrashError)
    texts = [outcome[0].text for outcome in outcomes if not isinstance(outcome, BaseException)]
    assert texts == [str(number) for number in range(32) if number != POISON]
