"""What /metrics says after real requests, and who may read it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.demonstrations import Demonstration, Message
from agent.exceptions import EngineClosedError
from agent.records import Record
from agent.rewriter import Rewritten
from agent.usage import Usage
from server.app import create_app
from server.auth import Keys
from server.metrics import EngineCount, Metrics, Snapshot
from server.settings import ServerSettings
from server.work import DurableWork
from tests.asgi import client_to
from tests.plain_backend import PlainBackend

ROW = {"question": "1 + 1?", "answer": "2"}
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Backend(PlainBackend):
    """With two adapters, one engine that has replaced another, and a death on demand."""

    dead = False

    async def engines(self) -> EngineCount:
        if self.dead:
            raise EngineClosedError("the engine has died")
        return EngineCount(answering=1, started=2)

    def active_adapters(self) -> dict[str, int]:
        return {"math": 3, "prose": 1}


@pytest.fixture
def settings(tmp_path: Path) -> ServerSettings:
    return ServerSettings(state=str(tmp_path / "state"))


@pytest.fixture
def backend() -> Backend:
    return Backend()


@pytest.fixture
def work(settings: ServerSettings) -> DurableWork:
    return DurableWork(settings)


@pytest.fixture
async def client(backend: Backend, settings: ServerSettings, work: DurableWork) -> AsyncIterator[httpx.AsyncClient]:
    async with client_to(create_app(backend, settings, Keys(), work)) as http:
        yield http


def _parse(text: str) -> Samples:
    families = text_string_to_metric_families(text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


async def _samples(client: httpx.AsyncClient) -> Samples:
    response = await client.get("/metrics")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    return _parse(response.text)


def _value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, frozenset(labels.items())))


async def test_requests_are_counted_by_template_and_never_by_path(client: httpx.AsyncClient) -> None:
    for number in range(3):
        await client.get(f"/v1/jobs/job_{number:024x}")
    await client.post("/v1/rewrites", json={"demonstrations": [ROW]})
    await client.get("/secret-path-of-somebody")
    await client.request("FOO", "/v1/rewrites")
    samples = await _samples(client)
    count = "rewright_http_request_seconds_count"
    assert _value(samples, count, method="GET", route="/v1/jobs/{job_id}", status="4xx") == 3
    assert _value(samples, count, method="POST", route="/v1/rewrites", status="2xx") == 1
    assert _value(samples, count, method="GET", route="unmatched", status="4xx") == 1
    assert _value(samples, count, method="other", route="/v1/rewrites", status="4xx") == 1
    labels = {value for _, pairs in samples for _, value in pairs}
    assert not [label for label in labels if "secret" in label or "0000" in label]


async def test_a_request_refused_at_the_door_and_a_defect_are_counted_too(client: httpx.AsyncClient) -> None:
    await client.get("/healthz", headers={"Host": "rebound.example"})
    samples = await _samples(client)
    assert _value(samples, "rewright_http_request_seconds_count", method="GET", route="unmatched", status="4xx") == 1
    assert _value(samples, "rewright_http_requests_in_flight") == 1


async def test_how_things_stand_is_asked_at_every_look(client: httpx.AsyncClient, backend: Backend) -> None:
    upload = await client.post(
        "/v1/files", content=b'{"question": "1", "answer": "1"}', headers={"Content-Type": "text/plain"}
    )
    assert upload.status_code == 200
    samples = await _samples(client)
    assert _value(samples, "rewright_jobs", status="in_progress") == 0
    assert _value(samples, "rewright_queue_rows") == 0
    assert _value(samples, "rewright_queue_capacity_rows") == 1024
    assert _value(samples, "rewright_engines") == 1
    assert _value(samples, "rewright_engine_starts_total") == 2
    assert _value(samples, "rewright_adapter_active_version", adapter="math") == 3
    backend.dead = True
    samples = await _samples(client)
    assert _value(samples, "rewright_engines") == 0
    assert _value(samples, "rewright_engine_starts_total") is None


def test_a_rewritten_row_counts_its_tokens_and_the_candidates_that_were_refused() -> None:
    metrics = Metrics()
    row = Demonstration("a", (Message("user", "?"),), "!", None, None, {}, 1)
    record = Record(row, "rewritten", "hint", "!", 2, None, None, None, None, "m")
    metrics.count_rewritten(Rewritten(record, Usage(10, 20, 30), ("hygiene", "math_answer", "hygiene")))
    metrics.count_row("error", "expert")
    samples = _parse(metrics.render(Snapshot(0, 1)).decode())
    assert _value(samples, "rewright_rows_total", status="rewritten", proposer="hint") == 1
    assert _value(samples, "rewright_rows_total", status="error", proposer="expert") == 1
    assert _value(samples, "rewright_rows_total", status="fallback", proposer="expert") == 0
    assert _value(samples, "rewright_gate_failures_total", check="hygiene") == 2
    assert _value(samples, "rewright_gate_failures_total", check="math_answer") == 1
    tokens = [_value(samples, "rewright_tokens_total", kind=kind) for kind in ("prompt", "completion", "scored")]
    assert tokens == [10, 20, 30]


async def test_with_keys_only_one_for_figures_or_of_an_administrator_reads_them(
    client: httpx.AsyncClient, work: DurableWork
) -> None:
    assert (await client.get("/metrics")).status_code == 200
    made = {scope: work.keys.create(scope, [scope])[1] for scope in ("rewrite", "train", "metrics", "admin")}
    assert (await client.get("/metrics")).status_code == 401
    statuses = {
        scope: (await client.get("/metrics", headers={"Authorization": f"Bearer {key}"})).status_code
        for scope, key in made.items()
    }
    assert statuses == {"rewrite": 403, "train": 403, "metrics": 200, "admin": 200}
    figures = {"Authorization": f"Bearer {made['metrics']}"}
    assert (await client.get("/v1/files", headers=figures)).status_code == 403
    text = (await client.get("/metrics", headers=figures)).text
    assert not [key for key in made.values() if key in text or key.split("_")[1] in text]
