"""200 clients at once, four times what the service takes: it refuses politely, and loses no job.

The engine is scripted: a row takes 0.2 seconds. `REWRIGHT_LOAD_SECONDS` sets how long they go on.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.scripted_process import ScriptedProcess

CLIENTS = 200
CAPACITY = CLIENTS // 4
SECONDS = float(os.environ.get("REWRIGHT_LOAD_SECONDS", "120"))
PATIENCE_S = 900.0
LINES = {"Content-Type": "application/x-ndjson"}


class Traffic:
    """What the clients do, and what came of it."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self._numbers = itertools.count()
        self.statuses: Counter[tuple[str, int]] = Counter()
        self.seconds: dict[str, list[float]] = {}
        self.jobs: list[str] = []
        self.wrong: list[str] = []

    async def rewrite(self) -> None:
        row = {"question": f"{next(self._numbers)}?", "answer": "it is"}
        answer = await self._send("rewrite", "POST", "/v1/rewrites", json={"demonstrations": [row]})
        if answer.status_code == 200:
            (record,) = answer.json()["data"]
            if record["completion"][0]["content"] != "IT IS":
                self.wrong.append(answer.text)

    async def job(self) -> None:
        rows = "\n".join(json.dumps({"question": f"{next(self._numbers)}?", "answer": "it is"}) for _ in range(3))
        file = await self._send("upload", "POST", "/v1/files", content=rows, headers=LINES)
        if file.status_code in (200, 201):
            body = {"kind": "rewrite", "input_file": file.json()["id"]}
            job = await self._send("job", "POST", "/v1/jobs", json=body)
            if job.status_code in (200, 201, 202):
                self.jobs.append(job.json()["id"])

    async def look(self) -> None:
        await self._send("look", "GET", "/v1/jobs")

    async def nonsense(self) -> None:
        answer = await self._send(
            "nonsense", "POST", "/v1/rewrites", content=b"{]", headers={"Content-Type": "application/json"}
        )
        if answer.status_code not in (400, 429, 503):
            self.wrong.append(f"nonsense got {answer.status_code}")

    async def _send(self, what: str, method: str, path: str, **more: object) -> httpx.Response:
        started = time.perf_counter()
        answer = await self._http.request(method, path, **more)  # type: ignore[arg-type]
        self.statuses[what, answer.status_code] += 1
        if answer.is_success:
            self.seconds.setdefault(what, []).append(time.perf_counter() - started)
        if answer.status_code in (429, 503):
            if "retry-after" not in answer.headers:
                self.wrong.append(f"{what}: {answer.status_code} without Retry-After")
            await asyncio.sleep(random.uniform(0.0, 0.2))  # less than it asks for: it is to be overrun
        elif answer.status_code >= 500:
            self.wrong.append(f"{what}: {answer.status_code} {answer.text}")
        return answer


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    service = ScriptedProcess(tmp_path, "--queue-rows", str(CAPACITY))
    service.start(pause_s=0.2)
    yield service.url
    service.stop()


async def test_an_overrun_service_refuses_politely_and_loses_no_job(address: str) -> None:
    limits = httpx.Limits(max_connections=CLIENTS, max_keepalive_connections=CLIENTS)
    async with httpx.AsyncClient(base_url=address, limits=limits, timeout=PATIENCE_S, trust_env=False) as http:
        traffic = Traffic(http)
        ends = time.monotonic() + SECONDS

        async def client(number: int) -> None:
            chance = random.Random(number)
            acts: list[Callable[[], Awaitable[None]]] = [traffic.rewrite] * 16
            acts += [traffic.job, traffic.look, traffic.look, traffic.nonsense]
            while time.monotonic() < ends:
                await chance.choice(acts)()

        await asyncio.gather(*(client(number) for number in range(CLIENTS)))
        unfinished = set(traffic.jobs)
        deadline = time.monotonic() + PATIENCE_S
        while unfinished:
            assert time.monotonic() < deadline, f"{len(unfinished)} jobs do not end"
            for job in list(unfinished):
                body = (await http.get(f"/v1/jobs/{job}")).json()
                if body["status"] == "completed":
                    assert body["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
                    unfinished.remove(job)
            await asyncio.sleep(0.5)
    _report(traffic)
    assert traffic.wrong == []
    assert traffic.statuses["rewrite", 200] > 0
    assert traffic.jobs
    refused = sum(count for (_, status), count in traffic.statuses.items() if status in (429, 503))
    assert refused > 0, "it was not overrun"


def _report(traffic: Traffic) -> None:
    print(f"\n{CLIENTS} clients, {SECONDS:g} s, room for {CAPACITY} rows; {len(traffic.jobs)} jobs, none lost")
    for (what, status), count in sorted(traffic.statuses.items()):
        print(f"  {what:10} {status} {count:6}")
    for what, seconds in sorted(traffic.seconds.items()):
        if len(seconds) > 1:
            cuts = statistics.quantiles(seconds, n=100)
            print(f"  {what:10} p50 {cuts[49]:.2f} s  p95 {cuts[94]:.2f} s  p99 {cuts[98]:.2f} s")
