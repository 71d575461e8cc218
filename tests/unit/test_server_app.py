"""The application over a scripted backend: queue, errors, disconnects, keys, headers. Real HTTP is in tests/e2e."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from agent.exceptions import EngineClosedError, ModelError, SettingsError
from server.app import create_app
from server.auth import Keys
from server.metrics import Snapshot
from server.settings import ServerSettings
from server.work import DurableWork
from tests.asgi import error_of
from tests.scripted_backend import LIMITS, ROW, ScriptedBackend, app_over, client_over, post_rewrites


@pytest.fixture
async def backend() -> ScriptedBackend:
    return ScriptedBackend()


@pytest.fixture
async def client(backend: ScriptedBackend) -> AsyncIterator[httpx.AsyncClient]:
    async with client_over(backend) as http:
        yield http


async def test_the_answer_of_the_backend_is_the_body(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/rewrites", json={"demonstrations": [ROW, ROW]})
    assert response.status_code == 200
    assert response.json() == {"data": [ROW, ROW], "model": "scripted"}


async def test_a_full_house_turns_away_and_says_when_to_come_back(
    client: httpx.AsyncClient, backend: ScriptedBackend
) -> None:
    backend.go.clear()
    first = asyncio.create_task(client.post("/v1/rewrites", json={"demonstrations": [ROW] * 4}))
    await backend.started.wait()
    second = await client.post("/v1/rewrites", json={"demonstrations": [ROW] * 2})
    assert second.status_code == 429
    assert second.headers["retry-after"] == "7"
    assert error_of(second)["type"] == "rate_limit_error"
    backend.go.set()
    assert (await first).status_code == 200
    assert (await client.post("/v1/rewrites", json={"demonstrations": [ROW] * 2})).status_code == 200


async def test_a_request_that_a_full_house_turns_away_costs_no_rows(backend: ScriptedBackend) -> None:
    backend.go.clear()
    limits = LIMITS.model_copy(update={"rows_per_minute": 8})
    async with client_over(backend, limits=limits) as client:
        first = asyncio.create_task(client.post("/v1/rewrites", json={"demonstrations": [ROW] * 4}))
        await backend.started.wait()
        for _ in range(3):
            refused = await client.post("/v1/rewrites", json={"demonstrations": [ROW] * 4})
            assert (refused.status_code, error_of(refused)["code"]) == (429, "queue_full")
        backend.go.set()
        assert (await first).status_code == 200
        assert (await client.post("/v1/rewrites", json={"demonstrations": [ROW] * 4})).status_code == 200
        refused = await client.post("/v1/rewrites", json={"demonstrations": [ROW] * 4})
        assert error_of(refused)["code"] == "rows_per_minute"


async def test_a_request_that_takes_too_long_is_cancelled(backend: ScriptedBackend) -> None:
    backend.go.clear()
    async with client_over(backend, limits=LIMITS.model_copy(update={"request_timeout_s": 0.05})) as client:
        response = await client.post("/v1/rewrites", json={"demonstrations": [ROW]})
    assert response.status_code == 504
    assert error_of(response)["code"] == "work_timeout"
    assert backend.cancelled.is_set()


async def test_the_work_of_a_client_that_went_away_is_cancelled(backend: ScriptedBackend) -> None:
    backend.go.clear()
    app = app_over(backend)
    incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    body = json.dumps({"demonstrations": [ROW]}).encode()
    incoming.put_nowait({"type": "http.request", "body": body, "more_body": False})
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/rewrites",
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")],
    }
    request = asyncio.create_task(app(scope, incoming.get, send))
    await backend.started.wait()
    incoming.put_nowait({"type": "http.disconnect"})
    await request
    assert backend.cancelled.is_set()
    assert app.state.admission.rows == 0
    counted = backend.metrics.render(Snapshot(0, 1)).decode()
    assert 'rewright_http_request_seconds_count{method="POST",route="/v1/rewrites",status="none"} 1.0' in counted
    assert "4xx" not in counted


async def test_an_engine_that_is_gone_is_503_with_retry_after(
    client: httpx.AsyncClient, backend: ScriptedBackend
) -> None:
    backend.error = EngineClosedError("the engine is starting")
    for response in (await client.post("/v1/rewrites", json={"demonstrations": [ROW]}), await client.get("/readyz")):
        assert response.status_code == 503
        assert response.headers["retry-after"] == "7"
        assert error_of(response)["message"] == "the engine is starting"


async def test_a_model_of_the_gate_that_is_not_there_is_told(
    client: httpx.AsyncClient, backend: ScriptedBackend
) -> None:
    backend.error = ModelError("embedding model 'x' cannot be loaded")
    response = await client.post("/v1/rewrites", json={"demonstrations": [ROW]})
    assert (response.status_code, response.headers["retry-after"]) == (503, "7")
    assert error_of(response)["message"] == "embedding model 'x' cannot be loaded"
    assert error_of(response)["code"] == "model_unavailable"


async def test_ready_says_which_model_answers(client: httpx.AsyncClient) -> None:
    response = await client.get("/readyz")
    assert response.json() == {"status": "ready", "model": "scripted", "max_length": 128, "queue_rows": 0}


async def test_after_closing_no_work_is_taken_and_nothing_is_ready(backend: ScriptedBackend) -> None:
    app = app_over(backend)
    app.state.admission.close()
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        responses = [await client.post("/v1/rewrites", json={"demonstrations": [ROW]}), await client.get("/readyz")]
        assert (await client.get("/healthz")).status_code == 200
    assert [error_of(response)["code"] for response in responses] == ["shutting_down", "shutting_down"]


async def test_a_defect_is_500_and_tells_no_secret(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.error = RuntimeError("the password is hunter2")
    response = await client.post("/v1/rewrites", json={"demonstrations": [ROW]})
    assert response.status_code == 500
    assert "hunter2" not in response.text
    assert error_of(response)["code"] == "internal_error"


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/nothing", 404), ("GET", "/v1/rewrites", 405)])
async def test_unknown_paths_and_methods_have_the_same_shape(
    client: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    response = await client.request(method, path)
    assert response.status_code == status
    assert path in error_of(response)["message"]


@pytest.mark.parametrize("header", [None, "Bearer wrong-wrong-wrong-wrong", "Basic correct-correct-correct"])
async def test_without_a_known_key_nothing_is_read(
    backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch, header: str | None
) -> None:
    monkeypatch.setenv("REWRIGHT_API_KEYS", "other-other-other, correct-correct-correct")
    async with client_over(backend, Keys.from_environment()) as client:
        headers = {"Authorization": header} if header else {}
        refused = await post_rewrites(client, b"not json", **headers)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert error_of(refused)["type"] == "authentication_error"
        allowed = await client.post(
            "/v1/rewrites",
            json={"demonstrations": [ROW]},
            headers={"Authorization": "Bearer correct-correct-correct"},
        )
        assert allowed.status_code == 200


async def test_without_keys_a_name_that_is_not_this_machine_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.get("/healthz", headers={"Host": "rebound.example:8000"})
    assert response.status_code == 400
    assert error_of(response)["code"] == "host_not_allowed"


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:8000"])
async def test_without_keys_every_loopback_name_is_served(client: httpx.AsyncClient, host: str) -> None:
    assert (await client.get("/healthz", headers={"Host": host})).status_code == 200


def test_an_application_for_others_without_keys_is_not_built(backend: ScriptedBackend) -> None:
    settings = ServerSettings(host="0.0.0.0")
    with pytest.raises(SettingsError, match="no API keys are set"):
        create_app(backend, settings, Keys(), DurableWork(settings))


@pytest.mark.parametrize("origin", ["https://elsewhere.example", "null", "http://127.0.0.1.elsewhere.example:8000"])
async def test_without_keys_a_page_from_elsewhere_changes_nothing(client: httpx.AsyncClient, origin: str) -> None:
    body = {"demonstrations": [ROW]}
    refused = await client.post("/v1/rewrites", json=body, headers={"Origin": origin})
    assert refused.status_code == 400
    assert error_of(refused)["code"] == "origin_not_allowed"
    allowed = await client.post("/v1/rewrites", json=body, headers={"Origin": "http://localhost:8000"})
    assert allowed.status_code == 200


async def test_every_answer_has_security_headers_and_none_opens_to_other_origins(client: httpx.AsyncClient) -> None:
    for path in ("/", "/docs", "/healthz", "/nothing"):
        headers = (await client.get(path, headers={"Origin": "https://elsewhere.example"})).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert "access-control-allow-origin" not in headers


async def test_the_page_links_the_description(client: httpx.AsyncClient) -> None:
    response = await client.get("/")
    assert response.headers["content-type"].startswith("text/html")
    assert 'href="docs"' in response.text
