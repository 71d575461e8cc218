"""Jobs over a scripted cluster that are lost, given up or cancelled, and a cluster that does not answer."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from server.app import create_app
from server.auth import Keys
from server.cluster import ClusterAwayError, ClusterError, ClusterState
from server.cluster_jobs import Served
from server.jobs import JobStore
from server.jobs_cluster import ClusterWork
from server.settings import ServerSettings
from server.work import DurableWork
from tests.asgi import client_of
from tests.plain_backend import PlainBackend
from tests.scripted_cluster import (
    ENDED,
    ScriptedCluster,
    cluster_service,
    cluster_settings,
    end_of,
    folder_of,
    publish_adapter,
    submit,
)

LOST = "the cluster has lost the job {} times; at last: "


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.jobs_cluster._POLL_S", 0.01)


async def test_a_job_that_is_cancelled_while_it_begins_is_never_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = JobStore.begin

    def cancelled_before(self: JobStore, job_id: str) -> None:
        self.cancel(job_id)
        begin(self, job_id)

    monkeypatch.setattr(JobStore, "begin", cancelled_before)
    cluster = ScriptedCluster()
    async with cluster_service(cluster_settings(tmp_path), cluster) as client:
        ended = await end_of(client, (await submit(client, "train", name="math"))["id"])
        await asyncio.sleep(0.3)
    assert (ended["status"], cluster.commands) == ("cancelled", {})


async def test_a_cancelled_job_is_stopped_on_the_cluster(tmp_path: Path) -> None:
    cluster = ScriptedCluster()
    async with cluster_service(cluster_settings(tmp_path), cluster) as client:
        job = await submit(client, "train", name="math")
        name = await cluster.started(job["id"], 1)
        assert (await client.post(f"/v1/jobs/{job['id']}/cancel")).json()["status"] == "cancelling"
        ended = await end_of(client, job["id"])
    assert (ended["status"], ended["output_file"]) == ("cancelled", None)
    assert cluster.stopped == [name]


async def test_a_job_that_is_lost_is_started_again_until_it_was_often_enough(tmp_path: Path) -> None:
    cluster = ScriptedCluster()
    async with cluster_service(cluster_settings(tmp_path, attempts=3), cluster) as client, asyncio.timeout(60):
        job = await submit(client, "train", name="math")
        del cluster.states[await cluster.started(job["id"], 1)]
        for attempt, code in ((2, None), (3, 137)):
            cluster.states[await cluster.started(job["id"], attempt)] = ClusterState("FAILED", "it ended", code)
        ended = await end_of(client, job["id"])
    assert list(cluster.commands) == [f"rewright-{job['id']}-{attempt}" for attempt in (1, 2, 3)]
    assert (ended["status"], ended["error"]) == ("failed", f"{LOST.format(3)}it ended")


def _checkpoint(settings: ServerSettings, job_id: str) -> Path:
    made = folder_of(settings, job_id) / "adapter" / "training" / "checkpoint-900"
    made.mkdir(parents=True)
    return made


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("failure", [ClusterError("its token is another one"), ClusterAwayError("nobody answers")])
async def test_a_cluster_that_refuses_is_waited_for_as_one_that_is_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, failure: ClusterError, begun: bool
) -> None:
    settings, cluster = cluster_settings(tmp_path), ScriptedCluster()
    async with cluster_service(settings, cluster) as client, asyncio.timeout(60):
        cluster.failure = None if begun else failure
        job = await submit(client, "train", name="math")
        if begun:
            await cluster.started(job["id"], 1)
        cluster.failure, cluster.looks = failure, 0
        while cluster.looks < 5:
            await asyncio.sleep(0.01)
        waiting = (await client.get(f"/v1/jobs/{job['id']}")).json()
        cluster.failure = None
        name = await cluster.started(job["id"], 1)
        publish_adapter(folder_of(settings, job["id"]))
        cluster.states[name] = ENDED
        ended = await end_of(client, job["id"])
    assert (waiting["status"], ended["status"], ended["adapter"]) == ("in_progress", "completed", "math@1")
    assert list(cluster.commands) == [name]
    assert caplog.text.count(f"{name} is waited for: {failure}") == 1


async def test_a_job_that_fails_while_its_command_runs_is_stopped_and_keeps_its_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, cluster = cluster_settings(tmp_path, patience_s=0.2), ScriptedCluster()
    state = cluster.state

    def away_until_it_is_given_up(name: str) -> ClusterState | None:
        if cluster.commands and threading.current_thread() not in givers:
            raise ClusterAwayError("nobody answers")
        return state(name)

    givers: set[threading.Thread] = set()
    give_up = ClusterWork._give_up

    def noted(self: ClusterWork, job_id: str, message: str) -> None:
        givers.add(threading.current_thread())
        give_up(self, job_id, message)

    monkeypatch.setattr(ClusterWork, "_give_up", noted)
    monkeypatch.setattr(cluster, "state", away_until_it_is_given_up)
    work = DurableWork(settings, Served(), cluster)
    async with client_of(create_app(PlainBackend(), settings, Keys(), work)) as client, asyncio.timeout(60):
        job = await submit(client, "train", name="math")
        name = await cluster.started(job["id"], 1)
        checkpoint = _checkpoint(settings, job["id"])
        ended = await end_of(client, job["id"])
        kept = checkpoint.exists()
        await work._runtime.forget(job["id"])
    assert (ended["status"], ended["error"]) == ("failed", "nobody answers, for 0.2 seconds")
    assert cluster.stopped == [name]
    assert kept
    assert not folder_of(settings, job["id"]).exists(), "what is forgotten leaves nothing"


@pytest.mark.parametrize(
    ("code", "attempts", "kept", "lost"),
    [(2, 1, False, ""), (1, 2, True, LOST), (3, 2, True, LOST), (None, 2, True, LOST)],
)
async def test_only_a_command_that_gave_up_is_not_started_again_and_leaves_nothing(
    tmp_path: Path, code: int | None, attempts: int, kept: bool, lost: str
) -> None:
    settings, cluster = cluster_settings(tmp_path), ScriptedCluster()
    async with cluster_service(settings, cluster) as client, asyncio.timeout(60):
        job = await submit(client, "train", name="math")
        for number in range(1, attempts + 1):
            name = await cluster.started(job["id"], number)
            if number == 1:
                checkpoint = _checkpoint(settings, job["id"])
            cluster.logs[name] = f"first line of {number}\nsecond\n"
            cluster.states[name] = ClusterState("FAILED", "it ended", code)
        ended = await end_of(client, job["id"])
    assert (ended["status"], len(cluster.commands), checkpoint.exists()) == ("failed", attempts, kept)
    assert ended["error"] == f"{lost.format(attempts)}it ended\nfirst line of {attempts}\nsecond"
