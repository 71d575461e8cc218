"""Jobs of kinds train, sft and evaluate over a scripted cluster: how they are followed, told and published."""

from __future__ import annotations

import asyncio
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from agent.settings import GateSettings, ModelSettings, RewriteSettings
from cli.settings import load_settings
from server import jobs_cluster
from server.app import create_app
from server.auth import Keys
from server.cluster import ClusterState
from server.cluster_jobs import Served
from server.jobs_steps import RETRY
from server.published import publish
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

LOST = "the cluster has lost the job 1 times; at last: "
SERVED = Served(ModelSettings(), GateSettings(min_length_ratio=0.1), RewriteSettings(max_tokens=77))


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.jobs_cluster._POLL_S", 0.01)


async def test_a_training_is_followed_over_a_restart_and_its_adapter_is_the_next_version(tmp_path: Path) -> None:
    settings, cluster = cluster_settings(tmp_path), ScriptedCluster()
    (tmp_path / "adapters" / "math" / "1").mkdir(parents=True)
    async with cluster_service(settings, cluster, SERVED) as client:
        job = await submit(client, "train", name="math", steps=3, reward="paper", rank=4)
        name = await cluster.started(job["id"], 1)
        words = shlex.split(cluster.commands[name])
        given = load_settings(folder_of(settings, job["id"]) / "settings.toml", {})
        cluster.logs[name] = f"step 1 of {settings.state_folder}/x\nhalf a li"
    cluster.logs[name] += "ne\nlast"
    cluster.states[name] = ENDED
    publish_adapter(folder_of(settings, job["id"]))
    async with cluster_service(settings, cluster) as client:
        ended = await end_of(client, job["id"])
        text = (await client.get(f"/v1/jobs/{job['id']}/events")).text
        report = (await client.get(f"/v1/files/{ended['output_file']}/content")).json()
    assert list(cluster.commands) == [name]
    assert words[:5] == ["cd", str(folder_of(settings, job["id"])), "||", "exit", "3;"]
    assert words[5:11] == ["exec", "python", "-P", "-m", "cli.main", "train"]
    assert (given.train.steps, given.train.reward.preset, given.train.lora.rank) == (3, "paper", 4)
    assert (given.gate.min_length_ratio, given.rewrite.max_tokens, given.engine.device) == (0.1, 77, "cpu")
    assert (ended["status"], ended["adapter"], ended["error"]) == ("completed", "math@2", None)
    assert report == {"name": "math", "version": "2", "base_model": "smollm2-135m", "job": job["id"]}
    assert json.loads((tmp_path / "adapters" / "math" / "2" / "rewright.json").read_text()) == report
    assert (tmp_path / "adapters" / "math" / "2" / "adapter_model.safetensors").read_bytes() == b"weights"
    told = [line for d in text.split("data: ")[1:] for line in json.loads(d.split("\n")[0]).get("lines", ())]
    assert told == ["step 1 of x", "half a line", "last"]
    assert not folder_of(settings, job["id"]).exists()


async def test_samples_of_an_exam_are_a_file_of_its_job(tmp_path: Path) -> None:
    settings, cluster = cluster_settings(tmp_path), ScriptedCluster()
    lines = b'{"task": "questions", "text": "4"}\n{"task": "questions", "text": "5"}\n'
    async with cluster_service(settings, cluster) as client:
        job = await submit(client, "evaluate")
        assert job["samples_file"] is None
        name = await cluster.started(job["id"], 1)
        (folder_of(settings, job["id"]) / "result.json").write_text("{}")
        (folder_of(settings, job["id"]) / "result.samples.jsonl").write_bytes(lines)
        cluster.states[name] = ENDED
        ended = await end_of(client, job["id"])
        found = (await client.get(f"/v1/files/{ended['samples_file']}")).json()
        content = (await client.get(f"/v1/files/{ended['samples_file']}/content")).content
    assert ended["status"] == "completed", ended["error"]
    assert content == lines
    assert (found["filename"], found["rows"]) == (f"{job['id']}.samples.jsonl", 2)


async def test_a_long_log_is_not_read_at_every_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_cluster, "_LOG_BYTES_PER_S", 1.0)
    settings, cluster = cluster_settings(tmp_path), ScriptedCluster()
    looks = reads = 0
    log = "".join(f"line {n}\n" for n in range(1000))

    def look(name: str) -> ClusterState | None:
        nonlocal looks
        looks += 1
        return cluster.states.get(name)

    def read(name: str) -> str:
        nonlocal reads
        reads += 1
        return log

    monkeypatch.setattr(cluster, "state", look)
    monkeypatch.setattr(cluster, "log", read)
    async with cluster_service(settings, cluster) as client:
        job = await submit(client, "evaluate")
        name = await cluster.started(job["id"], 1)
        while looks < 20:
            await asyncio.sleep(0.01)
        assert reads == 1
        log += "the last"
        cluster.states[name] = ClusterState("FAILED", "it ended", 2)
        ended = await end_of(client, job["id"])
        text = (await client.get(f"/v1/jobs/{job['id']}/events")).text
    assert reads == 2
    told = [line for d in text.split("data: ")[1:] for line in json.loads(d.split("\n")[0]).get("lines", ())]
    assert told == [*(f"line {n}" for n in range(1000)), "the last"]
    assert ended["status"] == "failed"


@pytest.mark.parametrize(
    ("tasks", "status", "error"),
    [
        ({"piqa": {"not_run": None}, "lambada": {"not_run": "no file"}}, "completed", "lambada: not run: no file"),
        (
            {"kl:input": {"not_run": "too long"}, "piqa": {"not_run": None}, "lambada": {"not_run": None}},
            "completed",
            "kl:input: not run: too long",
        ),
        ({"piqa": {"not_run": "no file"}}, "failed", f"{LOST}it ended"),
        ({"piqa": {"not_run": None}, "lambada": {"not_run": None}}, "failed", f"{LOST}it ended"),
    ],
    ids=["one was not run", "a divergence was not measured", "broken off", "something else went wrong"],
)
async def test_an_exam_that_asked_all_it_could_is_completed_and_says_what_is_missing(
    tmp_path: Path, tasks: dict[str, Any], status: str, error: str
) -> None:
    settings, cluster = cluster_settings(tmp_path, attempts=1), ScriptedCluster()
    async with cluster_service(settings, cluster) as client:
        job = await submit(client, "evaluate", tasks=["piqa", "lambada"])
        name = await cluster.started(job["id"], 1)
        (folder_of(settings, job["id"]) / "result.json").write_text(json.dumps({"tasks": tasks}))
        (folder_of(settings, job["id"]) / "result.samples.jsonl").write_bytes(b"")
        cluster.states[name] = ClusterState("FAILED", "it ended", 1)
        ended = await end_of(client, job["id"])
        events = (await client.get(f"/v1/jobs/{job['id']}/events")).text
        report = await client.get(f"/v1/files/{ended['output_file']}/content")
    assert (ended["status"], ended["error"]) == (status, error)
    assert error in events
    assert (report.json() == {"tasks": tasks}) == (status == "completed")


async def test_what_a_training_made_is_published_once_there_is_room_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.jobs_runtime._LOOK_S", 0.2)
    monkeypatch.setitem(RETRY, "max_attempts", 2)
    monkeypatch.setitem(RETRY, "interval_seconds", 0.01)
    settings, cluster = cluster_settings(tmp_path), ScriptedCluster()
    tries, full = 0, True

    def publishing(*arguments: Any) -> int:
        nonlocal tries
        tries += 1
        if full:
            raise OSError(28, "No space left on device")
        return publish(*arguments)

    monkeypatch.setattr("server.cluster_jobs.publish", publishing)
    async with cluster_service(settings, cluster) as client, asyncio.timeout(60):
        job = await submit(client, "train", name="math")
        first = await cluster.started(job["id"], 1)
        cluster.logs[first] = "one\ntwo\nthree\n"
        cluster.states[first] = ClusterState("FAILED", "a GPU fell off", 1)
        name = await cluster.started(job["id"], 2)
        publish_adapter(folder_of(settings, job["id"]))
        cluster.logs[name] = "again\n"
        cluster.states[name] = ENDED
        while tries < 6:  # two of the step, two of its failure, and begun again
            await asyncio.sleep(0.05)
        waiting = (await client.get(f"/v1/jobs/{job['id']}")).json()
        full = False
        ended = await end_of(client, job["id"])
        text = (await client.get(f"/v1/jobs/{job['id']}/events")).text
    assert (waiting["status"], waiting["error"]) == ("finalizing", None)
    assert (ended["status"], ended["adapter"], ended["error"]) == ("completed", "math@1", None)
    assert (list(cluster.commands), cluster.stopped) == ([first, name], [])
    told = [line for d in text.split("data: ")[1:] for line in json.loads(d.split("\n")[0]).get("lines", ())]
    assert told == ["one", "two", "three", "again"]
    assert not folder_of(settings, job["id"]).exists()


async def test_looks_that_find_nothing_new_wake_no_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks, cluster, settings = 0, ScriptedCluster(), cluster_settings(tmp_path)
    state = cluster.state

    def counted(name: str) -> ClusterState | None:
        nonlocal looks
        looks += 1
        return state(name)

    monkeypatch.setattr(cluster, "state", counted)
    work = DurableWork(settings, Served(), cluster)
    async with client_of(create_app(PlainBackend(), settings, Keys(), work)) as client:
        name = await cluster.started((await submit(client, "train", name="math"))["id"], 1)
        while looks < 5:
            await asyncio.sleep(0.01)
        before = work._runtime._changes
        while looks < 15:
            await asyncio.sleep(0.01)
        assert work._runtime._changes == before
        cluster.logs[name] = "step 1\n"
        while work._runtime._changes == before:
            await asyncio.sleep(0.01)
