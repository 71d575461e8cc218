"""Jobs that outlive the settings they began with."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from agent.demonstrations import BadRow, Demonstration
from agent.settings import GateSettings, RewriteSettings
from server.app import create_app
from server.auth import Keys
from server.cluster_jobs import Served
from server.schemas import RewriteOptions
from server.settings import JobSettings, ServerSettings
from server.work import DurableWork
from tests.asgi import client_of
from tests.plain_backend import PlainBackend

RAW = {"Content-Type": "application/x-ndjson"}
SERVED = Served(rewrite=RewriteSettings(top_p=0.9))
MORE_STRATEGIES = {"mine": ({"proposer": "solve"},)}


class Halting(PlainBackend):
    """Does the first rows of a job, and then none."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self._rows = rows

    async def rewrite_row(self, row: Demonstration | BadRow, options: RewriteOptions) -> dict[str, Any]:
        if isinstance(row, Demonstration) and int(row.question.rstrip("?")) >= self._rows:
            await asyncio.Event().wait()
        return await super().rewrite_row(row, options)


@pytest.mark.parametrize(
    ("then", "status", "rows"),
    [
        (Served(rewrite=RewriteSettings(top_p=0.8)), "failed", 2),
        (Served(gate=GateSettings(steps=False), rewrite=RewriteSettings(top_p=0.9)), "failed", 2),
        (Served(rewrite=RewriteSettings(top_p=0.9, concurrency=3, strategies=MORE_STRATEGIES)), "completed", 6),
    ],
)
async def test_rows_of_two_settings_never_make_one_output(tmp_path: Path, then: Served, status: str, rows: int) -> None:
    settings = ServerSettings(state=str(tmp_path / "state"), jobs=JobSettings(shard_rows=2))
    first = create_app(Halting(2), settings, Keys(), DurableWork(settings, SERVED))
    async with client_of(first) as client, asyncio.timeout(60):
        content = "\n".join(json.dumps({"question": f"{n}?", "answer": f"a{n}"}) for n in range(6))
        file = (await client.post("/v1/files", content=content.encode(), headers=RAW)).json()
        job_id = (await client.post("/v1/jobs", json={"kind": "rewrite", "input_file": file["id"]})).json()["id"]
        while (await client.get(f"/v1/jobs/{job_id}")).json()["request_counts"]["completed"] < 2:
            await asyncio.sleep(0.05)
    async with client_of(create_app(PlainBackend(), settings, Keys(), DurableWork(settings, then))) as client:
        assert (await client.get(f"/v1/jobs/{job_id}/events")).status_code == 200
        ended = (await client.get(f"/v1/jobs/{job_id}")).json()
        made = (await client.get(f"/v1/files/{ended['output_file']}/content")).text.splitlines()
    assert (ended["status"], len(made)) == (status, rows)
    assert (ended["error"] or "").startswith("the service has other settings" if status == "failed" else "")
