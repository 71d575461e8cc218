"""Spans as a collector receives them: a real HTTP server here, the real rewriter and gate over a scripted engine."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent.assembly import build_gate, open_chat
from agent.models import ModelFiles
from agent.settings import GateSettings, RewriteSettings
from server.adapters import AdapterStore
from server.app import create_app
from server.auth import Keys
from server.backend import AgentBackend
from server.observed import open_tracing
from server.settings import ServerSettings
from server.work import DurableWork
from tests.scripted_engine import ScriptedEngine

ROW = {"id": "a", "question": "Mira has 3 apples and buys 4. How many?", "answer": "She has 3+4=7\n#### 7"}
REPLY = "Mira has 3 + 4 = 7 apples. The answer is \\boxed{7}."
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector(HTTPServer):
    """Keeps what is posted to it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: list[bytes] = []

    def spans(self) -> list[dict[str, Any]]:
        """All spans, with their attributes as plain values."""
        spans = [
            span
            for body in self.bodies
            for resource in json.loads(body)["resourceSpans"]
            for scope in resource["scopeSpans"]
            for span in scope["spans"]
        ]
        for span in spans:
            span["attributes"] = {a["key"]: next(iter(a["value"].values())) for a in span["attributes"]}
        return spans


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:  # the base class looks for it by this name
        assert isinstance(self.server, Collector)
        self.server.bodies.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Quiet."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


async def _ask(model_files: ModelFiles, settings: ServerSettings, headers: dict[str, str]) -> list[int]:
    """Statuses of a rewrite of two rows and of a request for an unknown strategy."""
    chat = open_chat(model_files)
    engine = ScriptedEngine(chat, REPLY)
    tracing = open_tracing(settings)
    tracer = tracing.tracer if tracing else None
    gate = build_gate(engine, chat, GateSettings())
    backend = AgentBackend(engine, chat, gate, RewriteSettings(strategy="solve"), AdapterStore(), tracer)
    transport = httpx.ASGITransport(create_app(backend, settings, Keys(), DurableWork(settings)))
    statuses = []
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers) as client:
        for strategy in ("solve", "none"):
            body = {"demonstrations": [ROW, ROW | {"id": "b"}], "strategy": strategy}
            statuses.append((await client.post("/v1/rewrites", json=body)).status_code)
    await backend.aclose()
    if tracing:
        tracing.close()
    return statuses


async def test_a_request_its_rows_and_their_calls_are_one_tree(
    model_files: ModelFiles, collector: Collector, tmp_path: Path
) -> None:
    settings = ServerSettings(traces=f"http://127.0.0.1:{collector.server_port}/v1/traces", state=str(tmp_path))
    statuses = await _ask(model_files, settings, {"traceparent": f"00-{TRACE}-{PARENT}-01"})
    assert statuses == [200, 404]
    spans = collector.spans()
    assert {span["traceId"] for span in spans} == {TRACE}
    requests = [span for span in spans if span["kind"] == 2]
    assert [span["name"] for span in requests] == ["POST /v1/rewrites"] * 2
    assert [span["attributes"]["http.response.status_code"] for span in requests] == ["200", "404"]
    assert {span["parentSpanId"] for span in requests} == {PARENT}
    rewrites = [span for span in spans if span["name"] == "rewrite"]
    assert len(rewrites) == 2
    assert {span["parentSpanId"] for span in rewrites} == {requests[0]["spanId"]}
    assert all(span["attributes"]["status"] == "self_solved" for span in rewrites)
    for rewrite in rewrites:
        calls = [span for span in spans if span["parentSpanId"] == rewrite["spanId"]]
        assert {span["name"] for span in calls} == {"engine.generate", "engine.score"}
        for call in calls:
            assert int(rewrite["startTimeUnixNano"]) <= int(call["startTimeUnixNano"])
            assert int(call["endTimeUnixNano"]) <= int(rewrite["endTimeUnixNano"])
    assert not [body for body in collector.bodies if b"Mira" in body]


async def test_a_collector_that_is_away_costs_the_spans_and_nothing_else(
    model_files: ModelFiles, collector: Collector, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ServerSettings(traces=f"http://127.0.0.1:{collector.server_port}/", state=str(tmp_path))
    collector.server_close()
    assert await _ask(model_files, settings, {}) == [200, 404]
    assert "spans are lost" in caplog.text


def test_who_wants_no_traces_does_not_load_them() -> None:
    code = "import sys, server.app, server.backend; print('server.tracing' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
