"""Jobs that are commands on a cluster, on real DBOS and SQLite: followed, lost, cancelled, carried on, published.

Ray is replaced by processes of this machine; what is run is the real command line on a tiny random model.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent.models import ModelFiles
from agent.settings import ModelSettings
from server.app import create_app
from server.auth import Keys
from server.cluster import ClusterAwayError, ClusterState
from server.cluster_jobs import Served
from server.settings import ClusterSettings, FileSettings, ServerSettings
from server.work import DurableWork
from server.work_schemas import JobBody
from tests.asgi import client_of
from tests.plain_backend import PlainBackend
from tests.tiny import make_model

RAW = {"Content-Type": "application/x-ndjson"}
ROWS = b"\n".join(
    json.dumps({"question": f"{n} + 1?", "answer": f"{n}+1={n + 1}\n#### {n + 1}"}).encode() for n in range(8)
)


class Scripted:
    """A cluster that says what it is told to; `states` are those of an attempt, one a look."""

    def __init__(self, *attempts: list[str]) -> None:
        self._attempts = list(attempts)
        self.commands: list[str] = []
        self.names: list[str] = []
        self.stopped: list[str] = []
        self.away = 0

    def submit(self, name: str, command: str) -> None:
        self.names.append(name)
        self.commands.append(command)

    def state(self, name: str) -> ClusterState | None:
        if self.away:
            self.away -= 1
            raise ClusterAwayError("no Ray dashboard answers")
        if name not in self.names:
            return None
        states = self._attempts[self.names.index(name)]
        said = "STOPPED" if name in self.stopped else states.pop(0) if len(states) > 1 else states[0]
        status, _, code = said.partition(" ")
        return None if status == "UNKNOWN" else ClusterState(status, "it ended", int(code) if code else None)

    def log(self, name: str) -> str:
        return f"first line of {name[-1]}\nsecond\n"

    def stop(self, name: str) -> None:
        self.stopped.append(name)


class Processes:
    """A cluster of this machine: commands run in a shell, as Ray runs them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._jobs: dict[str, subprocess.Popen[bytes]] = {}

    def submit(self, name: str, command: str) -> None:
        with (self._folder / name).open("wb") as log:
            path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            self._jobs[name] = subprocess.Popen(
                command, shell=True, stdout=log, stderr=log, env=os.environ | {"PATH": path}
            )

    def state(self, name: str) -> ClusterState | None:
        if name not in self._jobs:
            return None
        code = self._jobs[name].poll()
        status = {None: "RUNNING", 0: "SUCCEEDED", -signal.SIGTERM: "STOPPED"}.get(code, "FAILED")
        return ClusterState(status, "", code)

    def log(self, name: str) -> str:
        return (self._folder / name).read_text()

    def stop(self, name: str) -> None:
        self._jobs[name].terminate()


def _settings(tmp_path: Path, **cluster: Any) -> ServerSettings:
    named = ClusterSettings(**{"dashboard": "http://head:8265", "patience_s": 600.0} | cluster)
    return ServerSettings(state=str(tmp_path / "state"), adapters=tmp_path / "adapters", cluster=named)


@asynccontextmanager
async def _service(
    settings: ServerSettings, cluster: Scripted | Processes, served: Served | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(PlainBackend(), settings, Keys(), DurableWork(settings, served, cluster))
    async with client_of(app) as client:
        yield client


async def _submit(client: httpx.AsyncClient, kind: str, **params: Any) -> dict[str, Any]:
    file = await client.post("/v1/files", content=ROWS, headers=RAW)
    answer = await client.post("/v1/jobs", json={"kind": kind, "input_file": file.json()["id"], "params": params})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def _ended(client: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    await client.get(f"/v1/jobs/{job_id}/events")
    job = (await client.get(f"/v1/jobs/{job_id}")).json()
    JobBody.model_validate(job, strict=True)
    return dict(job)


async def _until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.02)


@pytest.fixture
def tiny(model_files: ModelFiles, tmp_path: Path) -> Served:
    return Served(ModelSettings(name=str(make_model(tmp_path / "tiny", model_files).path)))


async def test_an_exam_runs_the_real_command_and_its_report_is_the_result(tmp_path: Path, tiny: Served) -> None:
    async with _service(_settings(tmp_path), Processes(tmp_path), tiny) as client:
        job = await _submit(client, "evaluate", samples=0, max_tokens=8, limit=2)
        assert (job["status"], job["adapter"], job["request_counts"]["total"]) == ("validating", None, 0)
        ended = await _ended(client, job["id"])
        assert ended["status"] == "completed", ended["error"]
        report = (await client.get(f"/v1/files/{ended['output_file']}/content")).json()
        samples = (await client.get(f"/v1/files/{ended['samples_file']}/content")).text.splitlines()
        events = (await client.get(f"/v1/jobs/{job['id']}/events")).text
        refused = await client.post("/v1/jobs", json={"kind": "rewrite", "input_file": ended["output_file"]})
    assert "questions" in json.dumps(report)
    assert len(samples) == 2
    assert "event: attempt" in events
    assert str(tmp_path) not in events
    assert refused.json()["error"]["code"] == "no_rows"
    assert not any((tmp_path / "state" / "jobs").iterdir())


async def test_a_job_that_is_lost_is_started_again_until_it_was_often_enough(tmp_path: Path) -> None:
    cluster = Scripted(["RUNNING", "UNKNOWN"], ["RUNNING", "FAILED"], ["RUNNING", "FAILED 137"])
    async with _service(_settings(tmp_path), cluster) as client:
        job = await _submit(client, "train", name="math", steps=3)
        ended = await _ended(client, job["id"])
    assert cluster.names == [f"rewright-{job['id']}-{number}" for number in (1, 2, 3)]
    assert ended["status"] == "failed"
    assert ended["error"].startswith("the cluster has lost the job 3 times; at last: it ended")
    assert ended["error"].endswith("first line of 3\nsecond")


class Reading(Scripted):
    """Reads the input of a command when it is started."""

    def submit(self, name: str, command: str) -> None:
        super().submit(name, command)
        words = shlex.split(command)
        self.read = Path(words[words.index("sft") + 1]).read_bytes()


async def test_an_input_in_a_store_elsewhere_lies_where_the_cluster_sees_it(tmp_path: Path) -> None:
    cluster = Reading(["RUNNING", "FAILED 2"])
    store = FileSettings(url=f"file://{tmp_path}/store")
    async with _service(_settings(tmp_path).model_copy(update={"files": store}), cluster) as client:
        assert (await _ended(client, (await _submit(client, "sft", name="tuned"))["id"]))["status"] == "failed"
    assert cluster.read == ROWS
    assert str(tmp_path / "state" / "jobs") in cluster.commands[0]
    assert list((tmp_path / "state" / "jobs").iterdir()) == []


async def test_a_command_that_gives_up_is_not_started_again(tmp_path: Path) -> None:
    cluster = Scripted(["RUNNING", "FAILED 2"])
    async with _service(_settings(tmp_path), cluster) as client:
        ended = await _ended(client, (await _submit(client, "sft", name="tuned"))["id"])
    assert (ended["status"], len(cluster.names)) == ("failed", 1)
    assert ended["error"] == "it ended\nfirst line of 1\nsecond"


async def test_a_cluster_that_is_away_is_waited_for(tmp_path: Path) -> None:
    cluster = Scripted(["FAILED 2"])
    cluster.away = 3
    async with _service(_settings(tmp_path), cluster) as client:
        ended = await _ended(client, (await _submit(client, "sft", name="tuned"))["id"])
    assert (ended["status"], cluster.away, len(cluster.names)) == ("failed", 0, 1)


async def test_a_cancelled_job_is_stopped_on_the_cluster(tmp_path: Path) -> None:
    cluster = Scripted(["RUNNING"])
    async with _service(_settings(tmp_path), cluster) as client:
        job = await _submit(client, "train", name="math")
        await _until(lambda: cluster.names)
        assert (await client.post(f"/v1/jobs/{job['id']}/cancel")).json()["status"] == "cancelling"
        ended = await _ended(client, job["id"])
    assert (ended["status"], ended["output_file"]) == ("cancelled", None)
    assert cluster.stopped == cluster.names


async def test_the_next_service_follows_what_runs_and_starts_nothing_twice(tmp_path: Path) -> None:
    cluster = Scripted(["RUNNING"])
    async with _service(_settings(tmp_path), cluster) as client:
        job = await _submit(client, "train", name="math")
        await _until(lambda: cluster.names)
    cluster._attempts[0] = ["FAILED 2"]
    async with _service(_settings(tmp_path), cluster) as client:
        ended = await _ended(client, job["id"])
        events = (await client.get(f"/v1/jobs/{job['id']}/events")).text
    assert (ended["status"], len(cluster.names)) == ("failed", 1)
    assert events.count("second") == 2  # once as a line of the log, once in the error


async def test_nothing_that_a_client_chose_is_in_the_command(tmp_path: Path) -> None:
    cluster = Scripted(["FAILED 2"])
    async with _service(_settings(tmp_path), cluster) as client:
        await _ended(client, (await _submit(client, "train", name="mine-own.name", steps=7, limit=5))["id"])
    (command,) = cluster.commands
    assert "mine-own" not in command
    assert " --limit 5 " in command


async def test_a_training_is_published_once_and_its_adapter_shown(tmp_path: Path) -> None:
    cluster = Scripted(["RUNNING"])
    settings = _settings(tmp_path)
    async with _service(settings, cluster) as client:
        job = await _submit(client, "train", name="math")
        await _until(lambda: cluster.names)
        made = settings.state_folder / "jobs" / job["id"] / "adapter" / "1"
        made.mkdir(parents=True)
        (made / "adapter_model.safetensors").write_bytes(b"weights")
        (made / "rewright.json").write_text(json.dumps({"name": "adapter", "version": "1", "score": 0.5}))
        cluster._attempts[0] = ["SUCCEEDED 0"]
        ended = await _ended(client, job["id"])
        report = (await client.get(f"/v1/files/{ended['output_file']}/content")).json()
    assert (ended["status"], ended["adapter"]) == ("completed", "math@1")
    assert report == {"name": "math", "version": "1", "score": 0.5, "job": job["id"]}
    assert (tmp_path / "adapters/math/1/adapter_model.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize(
    ("params", "status", "code"),
    [
        ({}, 422, "nothing_to_do"),
        ({"tasks": ["mmlu"]}, 422, "unknown_task"),
        ({"tasks": ["piqa", "piqa"]}, 422, "duplicate_task"),
        ({"tasks": ["piqa"], "model": "none"}, 404, "unknown_model"),
        ({"tasks": ["piqa"], "model": "../../etc"}, 404, "unknown_model"),
        ({"tasks": ["piqa"], "adapter": "math@9"}, 404, "unknown_adapter"),
    ],
)
async def test_an_exam_of_what_is_not_there_is_refused(
    tmp_path: Path, params: dict[str, Any], status: int, code: str
) -> None:
    async with _service(_settings(tmp_path), Scripted()) as client:
        refused = await client.post("/v1/jobs", json={"kind": "evaluate", "params": params})
    assert (refused.status_code, refused.json()["error"]["code"]) == (status, code), refused.text
