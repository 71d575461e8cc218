"""Jobs over HTTP on real DBOS and SQLite, in this process: what they make, and how they are refused and ended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from agent.assembly import build_gate, open_chat
from agent.intake import read_rows
from agent.models import ModelFiles
from agent.records import file_row
from agent.settings import GateSettings, RewriteSettings
from server.adapters import AdapterStore
from server.app import Backend, create_app
from server.auth import Keys
from server.backend import AgentBackend
from server.exceptions import StartError
from server.schemas import RewriteOptions
from server.settings import FileSettings, JobSettings, LimitSettings, ServerSettings
from server.work import DurableWork
from server.work_schemas import JobBody
from tests.asgi import client_of, error_of
from tests.plain_backend import PlainBackend
from tests.scripted_engine import ScriptedEngine

TERMINAL = ("completed", "failed", "cancelled")
RAW = {"Content-Type": "application/x-ndjson"}
UNKNOWN_FILE, UNKNOWN_JOB = "file_" + "0" * 24, "job_" + "0" * 24


def _settings(tmp_path: Path, **jobs: int) -> ServerSettings:
    limits = LimitSettings(rows=4, queue_rows=12)
    sizes = JobSettings(**{"rows": 8, "shard_rows": 7} | jobs)
    return ServerSettings(state=str(tmp_path / "state"), jobs=sizes, limits=limits)


@asynccontextmanager
async def _service(backend: Backend, settings: ServerSettings) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(backend, settings, Keys(), DurableWork(settings))
    async with client_of(app) as client:
        yield client


def _rows(count: int, **special: str) -> bytes:
    """Rows that can be told apart; some have no id, `special` are questions by number."""
    rows = []
    for number in range(count):
        row = {"question": special.get(f"n{number}", f"{number} + 1?"), "answer": f"it is {number + 1}"}
        rows.append(row if number % 3 else {"id": f"id-{number}", **row})
    return "\n".join(json.dumps(row) for row in rows).encode()


async def _upload(client: httpx.AsyncClient, content: bytes) -> str:
    response = await client.post("/v1/files", content=content, headers=RAW)
    assert response.status_code == 200, response.text
    return str(response.json()["id"])


async def _submit(client: httpx.AsyncClient, content: bytes, key: str | None = None, **params: Any) -> dict[str, Any]:
    body = {"kind": "rewrite", "input_file": await _upload(client, content), "params": params}
    response = await client.post("/v1/jobs", json=body, headers={"Idempotency-Key": key} if key else {})
    assert response.status_code == 200, response.text
    return dict(response.json())


async def _ended(client: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    """The job when it is over; follows its events, which end with it."""
    assert (await client.get(f"/v1/jobs/{job_id}/events")).status_code == 200
    job = (await client.get(f"/v1/jobs/{job_id}")).json()
    JobBody.model_validate(job, strict=True)
    assert job["status"] in TERMINAL
    return dict(job)


async def _lines(client: httpx.AsyncClient, file_id: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (await client.get(f"/v1/files/{file_id}/content")).content.splitlines()]


def _events(text: str) -> list[tuple[int, str, dict[str, Any]]]:
    events = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if fields:
            events.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return events


async def test_a_job_of_200_rows_is_what_rewriting_them_one_by_one_gives(
    model_files: ModelFiles, tmp_path: Path
) -> None:
    """Real rewriter, chat format and gate over a scripted engine; bad rows and duplicate ids among them."""
    chat = open_chat(model_files)
    engine = ScriptedEngine(chat, "Mira has 3 + 4 = 7 apples. The answer is \\boxed{7}.")
    gate = build_gate(engine, chat, GateSettings())
    backend = AgentBackend(engine, chat, gate, RewriteSettings(strategy="solve", seed=1), AdapterStore())
    lines = []
    for number in range(200):
        question = f"Mira has 3 apples and buys 4 of kind {number}. How many apples has she?"
        row = {"id": f"id-{number % 90}", "question": question, "answer": f"3+4=7\n#### {7 if number % 5 else 8}"}
        lines.append("{broken" if number % 50 == 7 else json.dumps(row if number % 2 else {**row, "id": None}))
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(lines))
    direct = [file_row(await backend.rewrite_row(row, RewriteOptions())) for row in read_rows(source)]
    async with _service(backend, _settings(tmp_path)) as client:
        submitted = await _submit(client, source.read_bytes())
        job = await _ended(client, submitted["id"])
        made = await _lines(client, job["output_file"])
        failed = await _lines(client, job["error_file"])
    await backend.aclose()
    assert made == direct
    assert {row["status"] for row in made} == {"self_solved", "fallback", "error"}
    assert failed == [row for row in made if row["status"] == "error"]
    assert job["request_counts"] == {"total": 200, "completed": 200 - len(failed), "failed": len(failed)}
    assert list((tmp_path / "state" / "jobs").iterdir()) == []


async def test_a_job_reads_and_writes_a_store_elsewhere(tmp_path: Path) -> None:
    store = tmp_path / "store"
    settings = _settings(tmp_path).model_copy(update={"files": FileSettings(url=f"file://{store}")})
    async with _service(PlainBackend(), settings) as client:
        source = tmp_path / "rows.parquet"
        pq.write_table(pa.table({"question": ["1?", "2?"], "answer": ["one", None]}), source)
        job = await _ended(client, (await _submit(client, source.read_bytes()))["id"])
        made = await _lines(client, job["output_file"])
    assert [row["completion"][0]["content"] for row in made] == ["ONE", ""]
    names = {f"{job['input_file']}.parquet", f"{job['output_file']}.jsonl", f"{job['error_file']}.jsonl"}
    assert {path.name for path in store.iterdir()} == names
    assert [path for path in (tmp_path / "state" / "files").rglob("*") if path.is_file()] == []


async def test_events_tell_everything_once_and_go_on_where_they_were_left(tmp_path: Path) -> None:
    async with _service(PlainBackend(), _settings(tmp_path)) as client:
        job = await _submit(client, _rows(30))
        whole = _events((await client.get(f"/v1/jobs/{job['id']}/events")).text)
        numbers = [number for number, _, _ in whole]
        assert numbers == list(range(1, len(whole) + 1))
        assert [data["status"] for _, kind, data in whole if kind == "status"] == [
            "validating",
            "in_progress",
            "finalizing",
            "completed",
        ]
        counts = [data["completed"] for _, kind, data in whole if kind == "progress"]
        assert counts == sorted(set(counts))
        assert counts[-1] == 30
        path = f"/v1/jobs/{job['id']}/events"
        for after in (0, 3, numbers[-1], 99):
            rest = await client.get(path, headers={"Last-Event-ID": str(after)})
            assert _events(rest.text) == whole[after:]
        for bad in ("x", "-1", "9" * 30, "1.5", "٣"):
            refused = await client.get(path, headers=[(b"Last-Event-ID", bad.encode())])
            assert refused.status_code == 422, bad


async def test_an_idempotency_key_makes_one_job_of_many_requests(tmp_path: Path) -> None:
    async with _service(PlainBackend(), _settings(tmp_path)) as client:
        file_id = await _upload(client, _rows(3))
        body = {"kind": "rewrite", "input_file": file_id, "params": {"strategy": "solve"}}
        headers = {"Idempotency-Key": "once"}
        answers = await asyncio.gather(*(client.post("/v1/jobs", json=body, headers=headers) for _ in range(8)))
        assert len({answer.json()["id"] for answer in answers}) == 1
        other = await client.post("/v1/jobs", json={**body, "params": {}}, headers=headers)
        assert other.status_code == 409
        assert error_of(other)["code"] == "idempotency_key_reused"
        await _ended(client, answers[0].json()["id"])
        again = await client.post("/v1/jobs", json=body, headers=headers)
        assert again.json()["status"] == "completed"
        assert len((await client.get("/v1/jobs")).json()["data"]) == 1
        for bad in ("", "x" * 256, "two words"):
            assert (await client.post("/v1/jobs", json=body, headers={"Idempotency-Key": bad})).status_code == 422


async def test_a_cancelled_job_keeps_what_is_finished_and_stops_the_rest(tmp_path: Path) -> None:
    backend = PlainBackend(pause_s=0.02)
    async with _service(backend, _settings(tmp_path, rows=2, shard_rows=2)) as client:
        job = await _submit(client, _rows(500))
        while (await client.get(f"/v1/jobs/{job['id']}")).json()["request_counts"]["completed"] < 4:
            await asyncio.sleep(0.05)
        assert (await client.post(f"/v1/jobs/{job['id']}/cancel")).status_code == 200
        ended = await _ended(client, job["id"])
        made = await _lines(client, ended["output_file"])
    assert ended["status"] == "cancelled"
    assert 4 <= ended["request_counts"]["completed"] == len(made) < 500
    assert [row["source"]["answer"] for row in made] == [f"it is {n + 1}" for n in range(len(made))]


async def test_a_queued_job_is_cancelled_at_once_and_its_input_is_free(tmp_path: Path) -> None:
    backend = PlainBackend(pause_s=3600)
    async with _service(backend, _settings(tmp_path, running=1)) as client:
        first, second = await _submit(client, _rows(1)), await _submit(client, _rows(2))
        while not backend.seen:
            await asyncio.sleep(0.05)
        refused = await client.delete(f"/v1/files/{second['input_file']}")
        assert refused.status_code == 409
        assert second["id"] in error_of(refused)["message"]
        cancelled = (await client.post(f"/v1/jobs/{second['id']}/cancel")).json()
        assert cancelled["status"] == "cancelled"
        assert (await client.delete(f"/v1/files/{second['input_file']}")).status_code == 200
        assert (await client.post(f"/v1/jobs/{first['id']}/cancel")).json()["status"] == "cancelling"
        ended = await _ended(client, first["id"])
        assert ended["status"] == "cancelled"
        assert await _lines(client, ended["output_file"]) == []
        assert (await client.post(f"/v1/jobs/{first['id']}/cancel")).json() == ended
        assert (await _ended(client, second["id"]))["output_file"] is None


async def test_a_job_fills_its_lane_and_no_more_while_requests_are_answered(tmp_path: Path) -> None:
    backend = PlainBackend(pause_s=0.01)
    async with _service(backend, _settings(tmp_path, rows=3, shard_rows=50)) as client:
        jobs = [await _submit(client, _rows(60)) for _ in range(2)]
        while not backend.seen:
            await asyncio.sleep(0.01)
        answer = await client.post("/v1/rewrites", json={"demonstrations": [{"question": "1?", "answer": "1"}]})
        assert answer.status_code == 200
        for job in jobs:
            assert (await _ended(client, job["id"]))["request_counts"]["completed"] == 60
        assert backend.at_once == 3
        halves = backend.seen[:60], backend.seen[60:]
        assert any(question in halves[0][30:] for question in halves[1]), "the second job waited for the first"


async def test_a_full_house_holds_a_job_back_and_never_fails_it(tmp_path: Path) -> None:
    backend = PlainBackend()
    settings = _settings(tmp_path)
    work = DurableWork(settings)
    app = create_app(backend, settings, Keys(), work)
    async with client_of(app) as client:
        with app.state.admission.admit(settings.limits.queue_rows):
            job = await _submit(client, _rows(5))
            while (await client.get(f"/v1/jobs/{job['id']}")).json()["status"] != "in_progress":
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.2)
            assert backend.seen == []
        assert (await _ended(client, job["id"]))["status"] == "completed"


async def test_the_row_that_kills_the_engine_is_found_and_the_others_finish(tmp_path: Path) -> None:
    backend = PlainBackend(pause_s=0.01)
    async with _service(backend, _settings(tmp_path)) as client:
        job = await _submit(client, _rows(40, n11="POISON", n12="DEFECT"))
        ended = await _ended(client, job["id"])
        made = await _lines(client, ended["output_file"])
    assert ended["status"] == "completed"
    assert ended["request_counts"] == {"total": 40, "completed": 38, "failed": 2}
    assert [row["source"]["answer"] for row in made] == [f"it is {n + 1}" for n in range(40)]
    assert "engine died" in made[11]["error"]["message"]
    assert "RuntimeError" in made[12]["error"]["message"]
    assert "hunter2" not in json.dumps(made)
    assert backend.seen.count("POISON") == 4


async def test_a_stopped_service_carries_its_jobs_on(tmp_path: Path) -> None:
    settings = _settings(tmp_path, rows=2)
    first = PlainBackend(pause_s=0.01)
    async with _service(first, settings) as client:
        job = await _submit(client, _rows(60))
        while len(first.seen) < 20:
            await asyncio.sleep(0.01)
    second = PlainBackend()
    async with _service(second, settings) as client:
        ended = await _ended(client, job["id"])
        made = await _lines(client, ended["output_file"])
    assert [row["source"]["answer"] for row in made] == [f"it is {n + 1}" for n in range(60)]
    assert ended["request_counts"]["completed"] == 60
    assert 0 < len(second.seen) < 60


async def test_jobs_of_damaged_input_fail_and_say_why(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    async with _service(PlainBackend(), settings) as client:
        path = tmp_path / "rows.parquet"
        pq.write_table(pa.table({"question": ["x" * 100] * 5000, "answer": [str(i) for i in range(5000)]}), path)
        content = bytearray(path.read_bytes())
        content[len(content) // 4 : len(content) // 2] = b"\0" * (len(content) // 2 - len(content) // 4)
        job = await _submit(client, bytes(content))
        ended = await _ended(client, job["id"])
    assert ended["status"] == "failed"
    assert "parquet" in ended["error"]
    assert str(tmp_path) not in ended["error"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"kind": "train", "input_file": UNKNOWN_FILE, "params": {"name": "a"}}, 400, "kind_not_available"),
        ({"kind": "sft", "input_file": UNKNOWN_FILE, "params": {"name": "a"}}, 400, "kind_not_available"),
        ({"kind": "evaluate", "input_file": UNKNOWN_FILE}, 400, "kind_not_available"),
        ({"kind": "delete", "input_file": UNKNOWN_FILE}, 422, "union_tag_invalid"),
        ({"kind": "train", "input_file": UNKNOWN_FILE, "params": {"name": "../a"}}, 422, "string_pattern_mismatch"),
        ({"kind": "sft", "input_file": UNKNOWN_FILE, "params": {"name": "a", "output": "/x"}}, 422, "extra_forbidden"),
        ({"kind": "evaluate", "params": {"tasks": ["hellaswag"], "samples": 1000}}, 422, "less_than_equal"),
        ({"kind": "rewrite", "input_file": UNKNOWN_FILE}, 404, "unknown_file"),
        ({"kind": "rewrite", "input_file": "../../etc/passwd"}, 422, "string_pattern_mismatch"),
        ({"kind": "rewrite", "input_file": "https://example.org/x"}, 422, "string_pattern_mismatch"),
        ({"kind": "rewrite", "input_file": UNKNOWN_FILE + "\n"}, 422, "string_pattern_mismatch"),
        ({"kind": "rewrite", "input_file": UNKNOWN_FILE, "params": {"strategy": "none"}}, 404, "unknown_strategy"),
        ({"kind": "rewrite", "input_file": UNKNOWN_FILE, "params": {"model": "x"}}, 422, "extra_forbidden"),
        ({"kind": "rewrite"}, 422, "missing"),
    ],
)
async def test_what_cannot_be_a_job_is_refused(tmp_path: Path, body: dict[str, Any], status: int, code: str) -> None:
    settings = _settings(tmp_path)
    app = create_app(PlainBackend(), settings, Keys(), DurableWork(settings))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
        response = await client.post("/v1/jobs", json=body)
    assert response.status_code == status, response.text
    assert error_of(response)["code"] == code


async def test_pages_unknown_jobs_and_the_bound_on_unfinished_ones(tmp_path: Path) -> None:
    async with _service(PlainBackend(pause_s=3600), _settings(tmp_path, waiting=3)) as client:
        ids = [(await _submit(client, _rows(1)))["id"] for _ in range(3)]
        refused = await client.post("/v1/jobs", json={"kind": "rewrite", "input_file": await _upload(client, _rows(1))})
        assert refused.status_code == 429
        assert refused.headers["retry-after"]
        first = (await client.get("/v1/jobs", params={"limit": 2})).json()
        rest = (await client.get("/v1/jobs", params={"limit": 2, "after": first["data"][-1]["id"]})).json()
        assert (first["has_more"], rest["has_more"]) == (True, False)
        assert sorted(job["id"] for job in first["data"] + rest["data"]) == sorted(ids)
        for path in (UNKNOWN_JOB, "..%2f..", "job_" + "g" * 24, UNKNOWN_JOB + "%0a"):
            for method, suffix in (("GET", ""), ("GET", "/events"), ("POST", "/cancel")):
                assert (await client.request(method, f"/v1/jobs/{path}{suffix}")).status_code == 404


async def test_one_state_folder_serves_one_service(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    async with _service(PlainBackend(), settings):
        second = create_app(PlainBackend(), settings, Keys(), DurableWork(settings))
        with pytest.raises(StartError, match="in use"):
            async with second.router.lifespan_context(second):
                pass
