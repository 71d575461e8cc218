"""Streams of the events of a job: heartbeats, places, what a job that is away does to one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.app import create_app
from server.auth import Keys
from server.exceptions import UnavailableError, UnknownNameError
from server.jobs import Event, JobStore
from server.jobs_runtime import JobRuntime
from server.work import DurableWork
from tests.asgi import client_to
from tests.plain_backend import PlainBackend
from tests.stored_job import job_settings, stored_job


async def test_a_silent_stream_has_its_heartbeat_however_busy_other_jobs_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.jobs_runtime._HEARTBEAT_S", 0.2)
    work = DurableWork(job_settings(tmp_path))
    runtime: JobRuntime = work._runtime

    async def others() -> None:
        while True:
            await runtime._notify()
            await asyncio.sleep(0.01)

    busy = asyncio.create_task(others())
    async with asyncio.timeout(30):
        stream = runtime.events(stored_job(work, tmp_path).id, 1)
        heard = [await anext(stream), await anext(stream)]
    busy.cancel()
    assert heard == [None, None]


@pytest.mark.parametrize("number", ["0" * 5000, "0" * 20 + "9" * 30, "9" * 19, "-1", "1.5"])
async def test_what_is_no_number_of_an_event_is_refused(tmp_path: Path, number: str) -> None:
    settings = job_settings(tmp_path)
    work = DurableWork(settings)
    job = stored_job(work, tmp_path)
    async with client_to(create_app(PlainBackend(), settings, Keys(), work)) as client:
        refused = await client.get(f"/v1/jobs/{job.id}/events", headers={"Last-Event-ID": number})
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "invalid_event_id")


@pytest.mark.parametrize(
    "error",
    [UnavailableError("no answer", code="database_unavailable"), UnknownNameError("forgotten", code="unknown_job")],
)
async def test_a_stream_whose_job_cannot_be_looked_at_any_more_ends_and_is_no_defect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    settings = job_settings(tmp_path)
    work = DurableWork(settings)
    job = stored_job(work, tmp_path)
    events = JobStore.events

    def once(self: JobStore, job_id: str, after: int, limit: int) -> list[Event]:
        if after:
            raise error
        return events(self, job_id, after, limit)

    monkeypatch.setattr(JobStore, "events", once)
    async with client_to(create_app(PlainBackend(), settings, Keys(), work)) as client, asyncio.timeout(30):
        heard = await client.get(f"/v1/jobs/{job.id}/events")
    assert (heard.status_code, heard.text.count("event: ")) == (200, 1)
    assert "defect" not in caplog.text
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_stream_has_a_place_of_its_own_and_asks_once_whenever_another_job_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.jobs_api._STREAMS", 1)
    settings = job_settings(tmp_path)
    work = DurableWork(settings)
    job = stored_job(work, tmp_path)
    path, asked = f"/v1/jobs/{job.id}/events", {"get": 0, "events": 0}

    def counted(name: str) -> Callable[..., Any]:
        real = getattr(JobStore, name)

        def count(*arguments: Any) -> Any:
            asked[name] += 1
            return real(*arguments)

        return count

    async with client_to(create_app(PlainBackend(), settings, Keys(), work)) as client, asyncio.timeout(60):
        with monkeypatch.context() as counting:
            for name in asked:
                counting.setattr(JobStore, name, counted(name))
            open_one = asyncio.create_task(client.get(path))
            for looks in range(2, 6):  # two at the beginning: the first event, and that no more is there
                while asked["events"] < looks:
                    await asyncio.sleep(0.01)
                before = asked["get"]
                await work._runtime._notify()
        refused = await client.get(path)
        await asyncio.to_thread(work._jobs.cancel, job.id)
        await work._runtime._notify()
        heard = await open_one
        again = await client.get(path)
    assert before == 2  # by the route, and as the stream begins
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_streams")
    assert refused.headers["retry-after"] == "5"
    assert heard.text.count("event: status") == 2
    assert (again.status_code, again.text) == (200, heard.text)
