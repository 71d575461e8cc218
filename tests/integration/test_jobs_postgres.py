"""The same service on PostgreSQL: Debian's package, started here on a socket of its own. Skipped without it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.admission import Admission
from server.app import create_app
from server.auth import Keys
from server.exceptions import StartError
from server.settings import JobSettings, ServerSettings
from server.work import DurableWork
from tests.plain_backend import PlainBackend
from tests.postgres import Postgres, postgres


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


async def test_a_second_service_is_kept_off_the_database_and_changes_nothing_there(
    server: Postgres, tmp_path: Path
) -> None:
    first, second = (
        DurableWork(ServerSettings(state=str(tmp_path / name), database=server.url)) for name in ("first", "second")
    )
    app = create_app(PlainBackend(), first._settings, Keys(), first)
    async with app.router.lifespan_context(app):
        for _ in range(2):
            with pytest.raises(StartError, match="another service uses this database"):
                await second.start(PlainBackend(), Admission(10, 1))
            assert second._lock is not None
            second._lock.release()
            server.drop_connections()
            await asyncio.to_thread(first._database.hold)  # as at the next look for idle jobs
    await second.stop()
    third = DurableWork(second._settings)
    app = create_app(PlainBackend(), third._settings, Keys(), third)
    async with app.router.lifespan_context(app):
        assert await asyncio.to_thread(third._database.check) is None


async def test_a_job_is_carried_on_by_the_next_service(server: Postgres, tmp_path: Path) -> None:
    settings = ServerSettings(
        state=str(tmp_path / "state"), database=server.url, jobs=JobSettings(rows=2, shard_rows=7)
    )
    rows = b"\n".join(json.dumps({"question": f"{n}?", "answer": f"it is {n}"}).encode() for n in range(60))
    job = None
    for pause in (0.01, 0.0):
        backend, work = PlainBackend(pause_s=pause), DurableWork(settings)
        app = create_app(backend, settings, Keys(), work)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=None) as client,
        ):
            if job is None:
                headers = {"Authorization": f"Bearer {work.keys.create('mine', ['rewrite'])[1]}"}
                raw = {"Content-Type": "application/x-ndjson"}
                file = await client.post("/v1/files", content=rows, headers=headers | raw)
                body = {"kind": "rewrite", "input_file": file.json()["id"]}
                once = headers | {"Idempotency-Key": "once"}
                answers = await asyncio.gather(*(client.post("/v1/jobs", json=body, headers=once) for _ in range(6)))
                (job,) = {answer.json()["id"] for answer in answers}
                while len(backend.seen) < 20:
                    await asyncio.sleep(0.01)
                continue
            await client.get(f"/v1/jobs/{job}/events", headers=headers)
            ended = (await client.get(f"/v1/jobs/{job}", headers=headers)).json()
            output = await client.get(f"/v1/files/{ended['output_file']}/content", headers=headers)
            assert (await client.get("/v1/jobs")).status_code == 401
    assert ended["status"] == "completed"
    assert ended["request_counts"] == {"total": 60, "completed": 60, "failed": 0}
    made = [json.loads(line) for line in output.content.splitlines()]
    assert [row["source"]["answer"] for row in made] == [f"it is {n}" for n in range(60)]
    assert len(backend.seen) < 60
    assert list((tmp_path / "state").glob("*.sqlite")) == []
