"""Idempotency keys: the same request is the same job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.app import create_app
from server.auth import Keys
from server.exceptions import UnknownNameError
from server.jobs import Job
from server.jobs_runtime import JobRuntime
from server.settings import ClusterSettings
from server.work import DurableWork
from tests.asgi import client_to
from tests.plain_backend import PlainBackend
from tests.stored_job import job_settings, stored_job


@pytest.mark.parametrize("kind", ["rewrite", "evaluate"])
async def test_the_same_key_and_body_are_the_same_job_whatever_has_become_of_what_it_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    settings = job_settings(tmp_path).model_copy(update={"cluster": ClusterSettings(dashboard="http://127.0.0.1:9")})
    work = DurableWork(settings)
    input_file = stored_job(work, tmp_path).input_file
    submitted: list[str] = []

    async def submit(self: JobRuntime, job: Job) -> None:
        submitted.append(job.id)

    def gone(*_: Any) -> None:
        raise UnknownNameError("the adapter is gone", code="unknown_adapter")

    async def gone_too(*_: Any) -> None:
        gone()

    monkeypatch.setattr(JobRuntime, "submit", submit)
    async with client_to(create_app(PlainBackend(), settings, Keys(), work)) as client:
        body: dict[str, Any] = {"kind": kind, "input_file": input_file}
        once = {"Idempotency-Key": "once"}
        made = await client.post("/v1/jobs", json=body, headers=once)
        monkeypatch.setattr(PlainBackend, "check_options", gone_too)
        monkeypatch.setattr("server.cluster_jobs.ClusterJobs.accept", gone)
        again = await client.post("/v1/jobs", json=body, headers=once)
        other = await client.post("/v1/jobs", json=body | {"params": {"sampling": {"seed": 1}}}, headers=once)
        new = await client.post("/v1/jobs", json=body, headers={"Idempotency-Key": "twice"})
    assert (made.status_code, again.status_code, again.json()["id"]) == (200, 200, made.json()["id"])
    assert submitted == [made.json()["id"]] * 2
    if kind == "rewrite":
        assert other.json()["error"]["code"] == "idempotency_key_reused"
    assert (new.status_code, new.json()["error"]["code"]) == (404, "unknown_adapter")


async def test_of_two_idempotency_keys_neither_is_chosen(tmp_path: Path) -> None:
    settings = job_settings(tmp_path)
    async with client_to(create_app(PlainBackend(), settings, Keys(), DurableWork(settings))) as client:
        body = {"kind": "rewrite", "input_file": "file_" + "0" * 24}
        twice = [("Idempotency-Key", "one"), ("Idempotency-Key", "other")]
        answer = await client.post("/v1/jobs", json=body, headers=twice)
    assert answer.status_code == 400
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == (
        "duplicate_parameter",
        "idempotency-key",
    )
