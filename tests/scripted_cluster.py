"""A cluster that says what it is told to, a service whose jobs are commands on one, and what its clients ask."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from server.app import create_app
from server.auth import Keys
from server.cluster import ClusterError, ClusterState
from server.cluster_jobs import Served
from server.jobs_cluster import Cluster
from server.settings import ClusterSettings, ServerSettings
from server.work import DurableWork
from server.work_schemas import JobBody
from tests.asgi import client_of
from tests.plain_backend import PlainBackend
from tests.uploads import ROW, upload

RUNNING, ENDED = ClusterState("RUNNING", "", None), ClusterState("SUCCEEDED", "", 0)


class ScriptedCluster:
    """Runs nothing: what it says of a job is put into `states` and `logs` by its name.

    Attributes:
        commands: what was submitted, by name.
        stopped: names that were asked to end, which they do.
        failure: raised by every look, while it is set.
        looks: how often a state was asked for.
    """

    def __init__(self) -> None:
        self.commands: dict[str, str] = {}
        self.states: dict[str, ClusterState] = {}
        self.logs: dict[str, str] = {}
        self.stopped: list[str] = []
        self.failure: ClusterError | None = None
        self.looks = 0

    def submit(self, name: str, command: str) -> None:
        self.commands[name] = command
        self.states[name] = RUNNING

    def state(self, name: str) -> ClusterState | None:
        self.looks += 1
        if self.failure is not None:
            raise self.failure
        return self.states.get(name)

    def log(self, name: str) -> str:
        return self.logs.get(name, "")

    def stop(self, name: str) -> None:
        self.stopped.append(name)
        self.states[name] = ClusterState("STOPPED", "", None)

    async def started(self, job_id: str, attempt: int) -> str:
        """The name of an attempt, once it was submitted."""
        name = f"rewright-{job_id}-{attempt}"
        while name not in self.commands:
            await asyncio.sleep(0.01)
        return name


def cluster_settings(tmp_path: Path, **cluster: Any) -> ServerSettings:
    chosen = ClusterSettings(**{"dashboard": "http://127.0.0.1:9", "attempts": 2} | cluster)
    return ServerSettings(state=str(tmp_path / "state, it's"), adapters=tmp_path / "adapters", cluster=chosen)


@asynccontextmanager
async def cluster_service(
    settings: ServerSettings, cluster: Cluster, served: Served | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """Within: a client of a service that runs."""
    app = create_app(PlainBackend(), settings, Keys(), DurableWork(settings, served, cluster))
    async with client_of(app) as client:
        yield client


async def submit(client: httpx.AsyncClient, kind: str, rows: bytes = ROW, **params: Any) -> dict[str, Any]:
    """A new job on these rows."""
    body = {"kind": kind, "input_file": (await upload(client, rows))["id"], "params": params}
    answer = await client.post("/v1/jobs", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def end_of(client: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    """The job, once it is over."""
    await client.get(f"/v1/jobs/{job_id}/events")
    job = (await client.get(f"/v1/jobs/{job_id}")).json()
    JobBody.model_validate(job, strict=True)
    return dict(job)


def folder_of(settings: ServerSettings, job_id: str) -> Path:
    """Where a job works."""
    return settings.state_folder / "jobs" / job_id


def publish_adapter(folder: Path) -> None:
    """What a training leaves that came to its end."""
    made = folder / "adapter" / "1"
    made.mkdir(parents=True)
    (made / "adapter_model.safetensors").write_bytes(b"weights")
    (made / "rewright.json").write_text(json.dumps({"name": "adapter", "version": "1", "base_model": "smollm2-135m"}))
