"""Jobs that are commands on a cluster, on real DBOS and SQLite: the real command line, and a store elsewhere.

Ray is replaced by processes of this machine; what is run is the real command line on a tiny random model.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agent.models import ModelFiles
from agent.settings import ModelSettings
from server.cluster import ClusterState
from server.cluster_jobs import Served
from server.settings import FileSettings
from tests.scripted_cluster import ScriptedCluster, cluster_service, cluster_settings, end_of, folder_of, submit
from tests.tiny import make_model

ROWS = b"\n".join(
    json.dumps({"question": f"{n} + 1?", "answer": f"{n}+1={n + 1}\n#### {n + 1}"}).encode() for n in range(8)
)


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


@pytest.fixture
def tiny(model_files: ModelFiles, tmp_path: Path) -> Served:
    return Served(ModelSettings(name=str(make_model(tmp_path / "tiny", model_files).path)))


async def test_an_exam_runs_the_real_command_and_its_report_is_the_result(tmp_path: Path, tiny: Served) -> None:
    settings = cluster_settings(tmp_path)
    async with cluster_service(settings, Processes(tmp_path), tiny) as client:
        job = await submit(client, "evaluate", ROWS, samples=0, max_tokens=8, limit=2)
        assert (job["status"], job["adapter"], job["request_counts"]["total"]) == ("validating", None, 0)
        ended = await end_of(client, job["id"])
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
    assert not any((settings.state_folder / "jobs").iterdir())


class Reading(ScriptedCluster):
    """Reads the input of a command when it is started, which gives up then."""

    def submit(self, name: str, command: str) -> None:
        super().submit(name, command)
        words = shlex.split(command)
        self.source = Path(words[words.index("sft") + 1])
        self.read = self.source.read_bytes()
        self.states[name] = ClusterState("FAILED", "it ended", 2)


async def test_an_input_in_a_store_elsewhere_lies_where_the_cluster_sees_it(tmp_path: Path) -> None:
    cluster = Reading()
    store = FileSettings(url=f"file://{tmp_path}/store")
    settings = cluster_settings(tmp_path).model_copy(update={"files": store})
    async with cluster_service(settings, cluster) as client:
        job = await submit(client, "sft", ROWS, name="tuned")
        assert (await end_of(client, job["id"]))["status"] == "failed"
    assert cluster.read == ROWS
    assert cluster.source.parent == folder_of(settings, job["id"])
    assert list((settings.state_folder / "jobs").iterdir()) == []
