"""What an earlier release left unfinished, and what is kept only for a time, on real DBOS and SQLite."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from dbos import DBOS

from server.app import create_app
from server.auth import Keys
from server.settings import JobSettings, RetentionSettings, ServerSettings
from server.work import DurableWork
from tests import schema_1, schema_2
from tests.plain_backend import PlainBackend
from tests.schema_1 import JOB_ID, KEY


@asynccontextmanager
async def serving(
    backend: PlainBackend, settings: ServerSettings, work: DurableWork
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the service on what an earlier release left."""
    app = create_app(backend, settings, Keys(), work)
    headers = {"Authorization": f"Bearer {KEY}"}
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers, timeout=None) as client,
    ):
        yield client


async def test_a_job_of_the_first_schema_is_finished_and_forgotten_in_its_time(tmp_path: Path) -> None:
    schema_1.make_state(tmp_path / "state")
    settings = ServerSettings(
        state=str(tmp_path / "state"), jobs=JobSettings(shard_rows=7), retention=RetentionSettings(jobs_days=1.0)
    )
    work = DurableWork(settings)
    async with serving(PlainBackend(), settings, work) as client:
        await client.get(f"/v1/jobs/{JOB_ID}/events")
        job = (await client.get(f"/v1/jobs/{JOB_ID}")).json()
        assert job["status"] == "completed"
        assert job["request_counts"] == {"total": 30, "completed": 30, "failed": 0}
        assert job["expires_at"] == job["finished_at"] + 86_400
        output = await client.get(f"/v1/files/{job['output_file']}/content")
        made = [json.loads(line)["source"]["answer"] for line in output.content.splitlines()]
        assert made == [f"it is {n + 1}" for n in range(30)]
        assert await work._sweeper.sweep(time.time()) == (0, 0)
        assert len(await DBOS.list_workflows_async()) == 1
        assert await work._sweeper.sweep(job["expires_at"]) == (0, 1)
        assert (await client.get(f"/v1/jobs/{JOB_ID}")).status_code == 404
        assert await DBOS.list_workflows_async() == []
        assert (await client.get(f"/v1/files/{job['output_file']}")).status_code == 200


async def test_a_job_under_way_of_the_schema_before_goes_on_where_it_was(tmp_path: Path) -> None:
    schema_2.make_state(tmp_path / "state")
    settings = ServerSettings(state=str(tmp_path / "state"), jobs=JobSettings(shard_rows=7))
    backend = PlainBackend()
    async with serving(backend, settings, DurableWork(settings)) as client:
        await client.get(f"/v1/jobs/{JOB_ID}/events")
        job = (await client.get(f"/v1/jobs/{JOB_ID}")).json()
        output = (await client.get(f"/v1/files/{job['output_file']}/content")).text.splitlines()
    assert (job["status"], job["adapter"], job["error"]) == ("completed", "math@3", None)
    assert job["request_counts"] == {"total": 30, "completed": 30, "failed": 0}
    made = [json.loads(line) for line in output]
    assert [row["id"] for row in made] == [f"row-{number}" for number in range(1, 31)]
    assert [row["model"] == schema_2.KEPT for row in made] == [True] * 7 + [False] * 23
    assert len(backend.seen) == 23
