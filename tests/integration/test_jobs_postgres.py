"""The same service on PostgreSQL: Debian's package, started here on a socket of its own. Skipped without it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.app import create_app
from server.auth import Keys
from server.settings import JobSettings, ServerSettings
from server.work import DurableWork
from tests.plain_backend import PlainBackend
from tests.postgres import postgres


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """URL of an empty database."""
    with postgres() as server:
        yield server.url


async def test_a_job_is_carried_on_by_the_next_service(database: str, tmp_path: Path) -> None:
    settings = ServerSettings(state=str(tmp_path / "state"), database=database, jobs=JobSettings(rows=2, shard_rows=7))
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
