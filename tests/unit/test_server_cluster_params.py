"""What clients may ask of a cluster: params that are refused, and what of the others is in a command."""

from __future__ import annotations

import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.app import create_app
from server.auth import Keys
from server.cluster_jobs import _toml
from server.job_params import EvaluateParams, SftParams, TrainParams
from server.schemas import RequestBody, RewriteOptions, SamplingBody
from server.work import DurableWork
from tests.absurd import absurd_bodies
from tests.asgi import client_to
from tests.plain_backend import PlainBackend
from tests.scripted_cluster import ScriptedCluster, cluster_service, cluster_settings, submit
from tests.uploads import ROW, upload


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Of a service that takes jobs and does none."""
    settings = cluster_settings(tmp_path)
    work = DurableWork(settings, cluster=ScriptedCluster())
    async with client_to(create_app(PlainBackend(), settings, Keys(), work)) as http:
        yield http


async def test_nothing_that_a_client_chose_is_in_the_command(tmp_path: Path) -> None:
    cluster = ScriptedCluster()
    async with cluster_service(cluster_settings(tmp_path), cluster) as client:
        job = await submit(client, "train", name="mine-own.name", steps=7, limit=5)
        command = cluster.commands[await cluster.started(job["id"], 1)]
    assert "mine-own" not in command
    assert " --limit 5 " in command


@pytest.mark.parametrize(
    ("kind", "params", "status", "param", "code"),
    [
        ("train", {}, 422, "params.name", "missing"),
        ("train", {"name": "../x"}, 422, "params.name", "string_pattern_mismatch"),
        ("train", {"name": "a b; rm -rf $HOME"}, 422, "params.name", "string_pattern_mismatch"),
        ("train", {"name": "a", "steps": 10**9}, 422, "params.steps", "less_than_equal"),
        ("train", {"name": "a", "learning_rate": "1e-4"}, 422, "params.learning_rate", "float_type"),
        ("train", {"name": "a", "source": "/etc/passwd"}, 422, "params.source", "extra_forbidden"),
        ("sft", {"name": "a", "method": "magic"}, 422, "params.method", "literal_error"),
        ("sft", {"name": "a", "batch_rows": 6}, 422, "params.batch_rows", "multiple_of"),
        ("evaluate", {"tasks": ["x=/etc/passwd"]}, 422, "params.tasks", "unknown_task"),
        ("evaluate", {"tasks": ["mmlu"]}, 422, "params.tasks", "unknown_task"),
        ("evaluate", {"tasks": ["piqa", "piqa"]}, 422, "params.tasks", "duplicate_task"),
        ("evaluate", {"adapter": "none@1"}, 404, "adapter", "unknown_adapter"),
        ("evaluate", {"adapter": "../../x"}, 404, "adapter", "unknown_adapter"),
        ("evaluate", {"model": "none"}, 404, "params.model", "unknown_model"),
        ("evaluate", {"model": "/etc"}, 404, "params.model", "unknown_model"),
    ],
)
async def test_params_that_make_no_sense_are_refused_and_make_no_job(
    client: httpx.AsyncClient, kind: str, params: dict[str, Any], status: int, param: str, code: str
) -> None:
    body = {"kind": kind, "input_file": (await upload(client, ROW))["id"], "params": params}
    answer = await client.post("/v1/jobs", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (status, param, code), answer.text
    assert (await client.get("/v1/jobs")).json()["data"] == []


async def test_an_exam_of_nothing_is_refused(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/jobs", json={"kind": "evaluate"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "nothing_to_do"), answer.text


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
    client: httpx.AsyncClient, kind: str, place: str, model: type[RequestBody], others: dict[str, Any]
) -> None:
    file = (await upload(client, ROW))["id"]
    for name, absurd in absurd_bodies(model, others):
        params = f'{{"sampling": {absurd}}}' if place == "params.sampling" else absurd
        body = f'{{"kind": "{kind}", "input_file": "{file}", "params": {params}}}'
        answer = await client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 422), body
        assert str(answer.json()["error"]["param"]).startswith(f"{place}.{name}"), body
    assert (await client.get("/v1/jobs")).json()["data"] == []


def test_settings_files_are_toml_whatever_is_in_them() -> None:
    value = {"text": 'a "b" \\ \n \x7f ü 😀', "list": [{"x": 1}, {"y": [0.5, True]}], "none": None}
    assert tomllib.loads(f"value = {_toml(value)}")["value"] == {k: v for k, v in value.items() if v is not None}
