"""Jobs of kinds train, sft and evaluate over a scripted cluster: what is refused, followed, lost, and published."""

from __future__ import annotations

import asyncio
import json
import shlex
import threading
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent.settings import GateSettings, ModelSettings, RewriteSettings
from cli.settings import load_settings
from server import jobs_cluster
from server.app import create_app
from server.auth import Keys
from server.cluster import ClusterAwayError, ClusterError, ClusterState
from server.cluster_jobs import Served
from server.job_params import EvaluateParams, SftParams, TrainParams
from server.jobs import JobStore
from server.jobs_cluster import ClusterWork
from server.jobs_steps import RETRY
from server.published import publish
from server.schemas import RequestBody, RewriteOptions, SamplingBody
from server.settings import ClusterSettings, ServerSettings
from server.work import DurableWork
from tests.absurd import absurd_bodies
from tests.asgi import client_of
from tests.plain_backend import PlainBackend

ROW = b'{"question": "1 + 1?", "answer": "2"}\n'
LOST = "the cluster has lost the job 1 times; at last: "
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
            await asyncio.sleep(0.05)
        return name


def _settings(tmp_path: Path, **cluster: Any) -> ServerSettings:
    chosen = ClusterSettings(**{"dashboard": "http://127.0.0.1:9", "attempts": 2} | cluster)
    return ServerSettings(state=str(tmp_path / "state, it's"), adapters=tmp_path / "adapters", cluster=chosen)


@asynccontextmanager
async def _service(settings: ServerSettings, cluster: ScriptedCluster) -> AsyncIterator[httpx.AsyncClient]:
    served = Served(ModelSettings(), GateSettings(min_length_ratio=0.1), RewriteSettings(max_tokens=77))
    app = create_app(PlainBackend(), settings, Keys(), DurableWork(settings, served, cluster))
    async with client_of(app) as client:
        yield client


async def _submit(client: httpx.AsyncClient, kind: str, **params: Any) -> dict[str, Any]:
    headers = {"Content-Type": "application/x-ndjson"}
    file = (await client.post("/v1/files", content=ROW, headers=headers)).json()["id"]
    answer = await client.post("/v1/jobs", json={"kind": kind, "input_file": file, "params": params})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def _ended(client: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    await client.get(f"/v1/jobs/{job_id}/events")
    return dict((await client.get(f"/v1/jobs/{job_id}")).json())


def _folder(settings: ServerSettings, job_id: str) -> Path:
    return settings.state_folder / "jobs" / job_id


def _publish(folder: Path) -> None:
    made = folder / "adapter" / "1"
    made.mkdir(parents=True)
    (made / "adapter_model.safetensors").write_bytes(b"weights")
    (made / "rewright.json").write_text(json.dumps({"name": "adapter", "version": "1", "base_model": "smollm2-135m"}))


async def test_a_training_is_followed_over_a_restart_and_its_adapter_is_the_next_version(tmp_path: Path) -> None:
    settings, cluster = _settings(tmp_path), ScriptedCluster()
    (tmp_path / "adapters" / "math" / "1").mkdir(parents=True)
    async with _service(settings, cluster) as client:
        job = await _submit(client, "train", name="math", steps=3, reward="paper", rank=4)
        name = await cluster.started(job["id"], 1)
        words = shlex.split(cluster.commands[name])
        given = load_settings(_folder(settings, job["id"]) / "settings.toml", {})
        cluster.logs[name] = f"step 1 of {settings.state_folder}/x\nhalf a li"
    cluster.logs[name] += "ne\nlast"
    cluster.states[name] = ENDED
    _publish(_folder(settings, job["id"]))
    async with _service(settings, cluster) as client:
        ended = await _ended(client, job["id"])
        text = (await client.get(f"/v1/jobs/{job['id']}/events")).text
        report = (await client.get(f"/v1/files/{ended['output_file']}/content")).json()
    assert list(cluster.commands) == [name]
    assert words[:5] == ["cd", str(_folder(settings, job["id"])), "||", "exit", "3;"]
    assert words[5:11] == ["exec", "python", "-P", "-m", "cli.main", "train"]
    assert (given.train.steps, given.train.reward.preset, given.train.lora.rank) == (3, "paper", 4)
    assert (given.gate.min_length_ratio, given.rewrite.max_tokens, given.engine.device) == (0.1, 77, "cpu")
    assert (ended["status"], ended["adapter"], ended["error"]) == ("completed", "math@2", None)
    assert report == {"name": "math", "version": "2", "base_model": "smollm2-135m", "job": job["id"]}
    assert json.loads((tmp_path / "adapters" / "math" / "2" / "rewright.json").read_text()) == report
    told = [line for d in text.split("data: ")[1:] for line in json.loads(d.split("\n")[0]).get("lines", ())]
    assert told == ["step 1 of x", "half a line", "last"]
    assert not _folder(settings, job["id"]).exists()


async def test_samples_of_an_exam_are_a_file_of_its_job(tmp_path: Path) -> None:
    settings, cluster = _settings(tmp_path), ScriptedCluster()
    lines = b'{"task": "questions", "text": "4"}\n{"task": "questions", "text": "5"}\n'
    async with _service(settings, cluster) as client:
        job = await _submit(client, "evaluate")
        assert job["samples_file"] is None
        name = await cluster.started(job["id"], 1)
        (_folder(settings, job["id"]) / "result.json").write_text("{}")
        (_folder(settings, job["id"]) / "result.samples.jsonl").write_bytes(lines)
        cluster.states[name] = ENDED
        ended = await _ended(client, job["id"])
        found = (await client.get(f"/v1/files/{ended['samples_file']}")).json()
        content = (await client.get(f"/v1/files/{ended['samples_file']}/content")).content
    assert ended["status"] == "completed", ended["error"]
    assert content == lines
    assert (found["filename"], found["rows"]) == (f"{job['id']}.samples.jsonl", 2)


async def test_a_long_log_is_not_read_at_every_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_cluster, "_POLL_S", 0.01)
    monkeypatch.setattr(jobs_cluster, "_LOG_BYTES_PER_S", 1.0)
    settings, cluster = _settings(tmp_path), ScriptedCluster()
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
    async with _service(settings, cluster) as client:
        job = await _submit(client, "evaluate")
        name = await cluster.started(job["id"], 1)
        while looks < 20:
            await asyncio.sleep(0.01)
        assert reads == 1
        log += "the last"
        cluster.states[name] = ClusterState("FAILED", "it ended", 2)
        ended = await _ended(client, job["id"])
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
    settings, cluster = _settings(tmp_path, attempts=1), ScriptedCluster()
    async with _service(settings, cluster) as client:
        job = await _submit(client, "evaluate", tasks=["piqa", "lambada"])
        name = await cluster.started(job["id"], 1)
        (_folder(settings, job["id"]) / "result.json").write_text(json.dumps({"tasks": tasks}))
        (_folder(settings, job["id"]) / "result.samples.jsonl").write_bytes(b"")
        cluster.states[name] = ClusterState("FAILED", "it ended", 1)
        ended = await _ended(client, job["id"])
        events = (await client.get(f"/v1/jobs/{job['id']}/events")).text
        report = await client.get(f"/v1/files/{ended['output_file']}/content")
    assert (ended["status"], ended["error"]) == (status, error)
    assert error in events
    assert (report.json() == {"tasks": tasks}) == (status == "completed")


async def test_a_job_that_is_cancelled_while_it_begins_is_never_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = JobStore.begin

    def cancelled_before(self: JobStore, job_id: str) -> None:
        self.cancel(job_id)
        begin(self, job_id)

    monkeypatch.setattr(JobStore, "begin", cancelled_before)
    cluster = ScriptedCluster()
    async with _service(_settings(tmp_path), cluster) as client:
        ended = await _ended(client, (await _submit(client, "train", name="math"))["id"])
        await asyncio.sleep(0.3)
    assert (ended["status"], cluster.commands) == ("cancelled", {})


def _checkpoint(settings: ServerSettings, job_id: str) -> Path:
    made = _folder(settings, job_id) / "adapter" / "training" / "checkpoint-900"
    made.mkdir(parents=True)
    return made


@pytest.mark.parametrize("failure", [ClusterError("its token is another one"), ClusterAwayError("nobody answers")])
async def test_a_cluster_that_refuses_is_waited_for_as_one_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failure: ClusterError
) -> None:
    monkeypatch.setattr("server.jobs_cluster._POLL_S", 0.01)
    settings, cluster = _settings(tmp_path), ScriptedCluster()
    async with _service(settings, cluster) as client, asyncio.timeout(60):
        job = await _submit(client, "train", name="math")
        name = await cluster.started(job["id"], 1)
        cluster.failure, cluster.looks = failure, 0
        while cluster.looks < 5:
            await asyncio.sleep(0.01)
        waiting = (await client.get(f"/v1/jobs/{job['id']}")).json()
        cluster.states[name], cluster.failure = ENDED, None
        _publish(_folder(settings, job["id"]))
        ended = await _ended(client, job["id"])
    assert (waiting["status"], ended["status"], ended["adapter"]) == ("in_progress", "completed", "math@1")
    assert caplog.text.count(f"{name} is waited for: {failure}") == 1


async def test_a_job_that_fails_while_its_command_runs_is_stopped_and_keeps_its_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.jobs_cluster._POLL_S", 0.01)
    settings, cluster = _settings(tmp_path, patience_s=0.2), ScriptedCluster()
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
        job = await _submit(client, "train", name="math")
        name = await cluster.started(job["id"], 1)
        checkpoint = _checkpoint(settings, job["id"])
        ended = await _ended(client, job["id"])
        kept = checkpoint.exists()
        await work._runtime.forget(job["id"])
    assert (ended["status"], ended["error"]) == ("failed", "nobody answers, for 0.2 seconds")
    assert cluster.stopped == [name]
    assert kept
    assert not _folder(settings, job["id"]).exists(), "what is forgotten leaves nothing"


@pytest.mark.parametrize(("code", "attempts", "kept"), [(2, 1, False), (1, 2, True), (3, 2, True), (None, 2, True)])
async def test_only_a_command_that_gave_up_is_not_started_again_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int | None, attempts: int, kept: bool
) -> None:
    monkeypatch.setattr("server.jobs_cluster._POLL_S", 0.01)
    settings, cluster = _settings(tmp_path), ScriptedCluster()
    async with _service(settings, cluster) as client, asyncio.timeout(60):
        job = await _submit(client, "train", name="math")
        for number in range(1, attempts + 1):
            name = await cluster.started(job["id"], number)
            if number == 1:
                checkpoint = _checkpoint(settings, job["id"])
            cluster.states[name] = ClusterState("FAILED", "it ended", code)
        ended = await _ended(client, job["id"])
    assert (ended["status"], len(cluster.commands), checkpoint.exists()) == ("failed", attempts, kept)


async def test_what_a_training_made_is_published_once_there_is_room_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.jobs_cluster._POLL_S", 0.01)
    monkeypatch.setattr("server.jobs_runtime._LOOK_S", 0.2)
    monkeypatch.setitem(RETRY, "max_attempts", 2)
    monkeypatch.setitem(RETRY, "interval_seconds", 0.01)
    settings, cluster = _settings(tmp_path), ScriptedCluster()
    tries, full = 0, True

    def publishing(*arguments: Any) -> int:
        nonlocal tries
        tries += 1
        if full:
            raise OSError(28, "No space left on device")
        return publish(*arguments)

    monkeypatch.setattr("server.cluster_jobs.publish", publishing)
    async with _service(settings, cluster) as client, asyncio.timeout(60):
        job = await _submit(client, "train", name="math")
        first = await cluster.started(job["id"], 1)
        cluster.logs[first] = "one\ntwo\nthree\n"
        cluster.states[first] = ClusterState("FAILED", "a GPU fell off", 1)
        name = await cluster.started(job["id"], 2)
        _publish(_folder(settings, job["id"]))
        cluster.logs[name] = "again\n"
        cluster.states[name] = ENDED
        while tries < 6:  # two of the step, two of its failure, and begun again
            await asyncio.sleep(0.05)
        waiting = (await client.get(f"/v1/jobs/{job['id']}")).json()
        full = False
        ended = await _ended(client, job["id"])
        text = (await client.get(f"/v1/jobs/{job['id']}/events")).text
    assert (waiting["status"], waiting["error"]) == ("finalizing", None)
    assert (ended["status"], ended["adapter"], ended["error"]) == ("completed", "math@1", None)
    assert (list(cluster.commands), cluster.stopped) == ([first, name], [])
    told = [line for d in text.split("data: ")[1:] for line in json.loads(d.split("\n")[0]).get("lines", ())]
    assert told == ["one", "two", "three", "again"]
    assert not _folder(settings, job["id"]).exists()


async def test_looks_that_find_nothing_new_wake_no_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.jobs_cluster._POLL_S", 0.01)
    looks, cluster, settings = 0, ScriptedCluster(), _settings(tmp_path)
    state = cluster.state

    def counted(name: str) -> ClusterState | None:
        nonlocal looks
        looks += 1
        return state(name)

    monkeypatch.setattr(cluster, "state", counted)
    work = DurableWork(settings, Served(), cluster)
    async with client_of(create_app(PlainBackend(), settings, Keys(), work)) as client:
        name = await cluster.started((await _submit(client, "train", name="math"))["id"], 1)
        while looks < 5:
            await asyncio.sleep(0.01)
        before = work._runtime._changes
        while looks < 15:
            await asyncio.sleep(0.01)
        assert work._runtime._changes == before
        cluster.logs[name] = "step 1\n"
        while work._runtime._changes == before:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("kind", "params", "status", "param"),
    [
        ("train", {}, 422, "params.name"),
        ("train", {"name": "../x"}, 422, "params.name"),
        ("train", {"name": "a b; rm -rf $HOME"}, 422, "params.name"),
        ("train", {"name": "a", "steps": 10**9}, 422, "params.steps"),
        ("train", {"name": "a", "learning_rate": "1e-4"}, 422, "params.learning_rate"),
        ("train", {"name": "a", "source": "/etc/passwd"}, 422, "params.source"),
        ("sft", {"name": "a", "method": "magic"}, 422, "params.method"),
        ("sft", {"name": "a", "batch_rows": 6}, 422, "params.batch_rows"),
        ("evaluate", {"tasks": ["x=/etc/passwd"]}, 422, "params.tasks"),
        ("evaluate", {"tasks": ["piqa", "piqa"]}, 422, "params.tasks"),
        ("evaluate", {"adapter": "none@1"}, 404, "adapter"),
        ("evaluate", {"adapter": "../../x"}, 404, "adapter"),
        ("evaluate", {"model": "none"}, 404, "params.model"),
        ("evaluate", {"model": "/etc"}, 404, "params.model"),
    ],
)
async def test_params_that_make_no_sense_are_refused(
    tmp_path: Path, kind: str, params: dict[str, Any], status: int, param: str
) -> None:
    cluster = ScriptedCluster()
    async with _service(_settings(tmp_path), cluster) as client:
        headers = {"Content-Type": "application/x-ndjson"}
        file = (await client.post("/v1/files", content=ROW, headers=headers)).json()["id"]
        answer = await client.post("/v1/jobs", json={"kind": kind, "input_file": file, "params": params})
        nothing = await client.post("/v1/jobs", json={"kind": "evaluate"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text
    assert nothing.json()["error"]["code"] == "nothing_to_do"
    assert cluster.commands == {}


@pytest.mark.parametrize(
    ("kind", "place", "model", "others"),
    [
        ("rewrite", "params.sampling", SamplingBody, {"max_tokens": 4}),
        ("rewrite", "params", RewriteOptions, {}),
        ("train", "params", TrainParams, {"name": "a"}),
        ("sft", "params", SftParams, {"name": "a"}),
        ("evaluate", "params", EvaluateParams, {}),
    ],
)
async def test_absurd_params_are_refused_by_their_name_and_make_no_job(
    tmp_path: Path, kind: str, place: str, model: type[RequestBody], others: dict[str, Any]
) -> None:
    async with _service(_settings(tmp_path), ScriptedCluster()) as client:
        headers = {"Content-Type": "application/x-ndjson"}
        file = (await client.post("/v1/files", content=ROW, headers=headers)).json()["id"]
        for name, absurd in absurd_bodies(model, others):
            params = f'{{"sampling": {absurd}}}' if place == "params.sampling" else absurd
            body = f'{{"kind": "{kind}", "input_file": "{file}", "params": {params}}}'
            answer = await client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code in (400, 422), body
            assert str(answer.json()["error"]["param"]).startswith(f"{place}.{name}"), body
        jobs = (await client.get("/v1/jobs")).json()["data"]
    assert jobs == []


def test_settings_files_are_toml_whatever_is_in_them() -> None:
    from server.cluster_jobs import _toml

    value = {"text": 'a "b" \\ \n \x7f ü 😀', "list": [{"x": 1}, {"y": [0.5, True]}], "none": None}
    assert tomllib.loads(f"value = {_toml(value)}")["value"] == {k: v for k, v in value.items() if v is not None}
