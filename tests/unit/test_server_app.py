"""The application over a scripted backend: limits, errors, disconnects, headers. Real HTTP is in tests/e2e."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel

from agent.engine import EngineInfo
from agent.exceptions import EngineClosedError, ModelError, SettingsError
from server.app import create_app
from server.auth import Keys
from server.bodies import BodyRoom
from server.examples import ADAPTERS_ANSWER
from server.exceptions import ConflictError
from server.metrics import EngineCount, Metrics, Snapshot
from server.schemas import (
    ActivateBody,
    ActivateResponse,
    AdaptersResponse,
    ErrorResponse,
    MismatchBody,
    MismatchResponse,
    RewritesBody,
    RewritesResponse,
    SamplingBody,
)
from server.settings import LimitSettings, ServerSettings
from server.work import DurableWork
from tests.absurd import absurd_bodies
from tests.asgi import client_to

ROW = {"question": "1 + 1?", "answer": "2"}
LIMITS = LimitSettings(rows=4, body_bytes=4096, queue_rows=5, request_timeout_s=5, body_timeout_s=1, retry_after_s=7)


class ScriptedBackend:
    """Echoes what it is asked; waits for `go` first; raises `error` instead when there is one."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.error: Exception | None = None
        self.metrics = Metrics()
        self.tracer = None

    async def rewrite(self, body: RewritesBody) -> dict[str, Any]:
        return await self._answer(body.demonstrations)

    async def mismatch(self, body: MismatchBody) -> dict[str, Any]:
        return await self._answer(body.demonstrations)

    async def list_adapters(self) -> dict[str, Any]:
        return ADAPTERS_ANSWER

    async def activate_adapter(self, name: str, version: int) -> dict[str, Any]:
        if self.error:
            raise self.error
        return {"name": name, "active": version, "previous": None}

    async def engines(self) -> EngineCount:
        await self.ping()
        return EngineCount(answering=1, started=2)

    def active_adapters(self) -> dict[str, int]:
        return {"math": 3}

    async def ping(self) -> EngineInfo:
        if self.error:
            raise self.error
        return EngineInfo("scripted", 128)

    async def _answer(self, rows: list[Any]) -> dict[str, Any]:
        self.started.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if self.error:
            raise self.error
        return {"data": rows, "model": "scripted"}


@pytest.fixture
async def backend() -> ScriptedBackend:
    return ScriptedBackend()


@pytest.fixture
async def client(backend: ScriptedBackend) -> AsyncIterator[httpx.AsyncClient]:
    async with _client(backend) as http:
        yield http


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Services keep their state here."""
    monkeypatch.setenv("REWRIGHT_HOME", str(tmp_path))


def _app(backend: ScriptedBackend, keys: Keys | None = None, limits: LimitSettings = LIMITS) -> FastAPI:
    settings = ServerSettings(limits=limits)
    return create_app(backend, settings, keys or Keys(), DurableWork(settings))


def _client(backend: ScriptedBackend, keys: Keys | None = None, limits: LimitSettings = LIMITS) -> httpx.AsyncClient:
    return client_to(_app(backend, keys, limits), "http://127.0.0.1:8000")


def _error(response: httpx.Response) -> dict[str, Any]:
    """The error of a response, after checking its shape."""
    body = response.json()
    ErrorResponse.model_validate(body, strict=True)
    assert response.headers["content-type"] == "application/json"
    return dict(body["error"])


async def _post(client: httpx.AsyncClient, content: bytes, **headers: str) -> httpx.Response:
    return await client.post("/v1/rewrites", content=content, headers={"Content-Type": "application/json"} | headers)


async def test_the_answer_of_the_backend_is_the_body(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/rewrites", json={"demonstrations": [ROW, ROW]})
    assert response.status_code == 200
    assert response.json() == {"data": [ROW, ROW], "model": "scripted"}


async def test_malformed_json_is_answered_with_its_line_and_column(client: httpx.AsyncClient) -> None:
    response = await _post(client, b'{"demonstrations":\n [1,\n  2,,]}')
    assert response.status_code == 400
    error = _error(response)
    assert error["code"] == "invalid_json"
    assert error["line"] == 3
    assert "column 5" in error["message"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"demonstrations": [NaN]}', "NaN"),
        (b'{"demonstrations": [1e999]}', "infinities"),
        (b'{"demonstrations": ["\\ud800"]}', "\\ud800"),
        (b'{"demonstrations": [' + b"9" * 3000 + b"]}", "demonstrations[0]: an integer does not fit 64 bits"),
        (b"[" * 1500, "64 levels"),
        (b'{"demonstrations": ["\xff"]}', "not UTF-8"),
        (b"", "Expecting value"),
    ],
)
async def test_what_is_not_strict_json_is_refused(client: httpx.AsyncClient, content: bytes, said: str) -> None:
    response = await _post(client, content)
    assert response.status_code == 400
    assert said in _error(response)["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "demonstrations"),
        ({"demonstrations": []}, "demonstrations"),
        ({"demonstrations": "rows"}, "demonstrations"),
        ({"demonstrations": [ROW], "sampling": {"top_p": 2}}, "sampling.top_p"),
        ({"demonstrations": [ROW], "sampling": {"samples": "4"}}, "sampling.samples"),
        ({"demonstrations": [ROW], "stratgey": "solve"}, "stratgey"),
    ],
)
async def test_an_invalid_field_is_answered_with_its_name(
    client: httpx.AsyncClient, body: dict[str, Any], param: str
) -> None:
    response = await client.post("/v1/rewrites", json=body)
    assert response.status_code == 422
    error = _error(response)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(("name", "sampling"), list(absurd_bodies(SamplingBody, {"max_tokens": 4})))
async def test_absurd_sampling_is_refused_by_its_name_and_reaches_no_engine(
    client: httpx.AsyncClient, backend: ScriptedBackend, name: str, sampling: str
) -> None:
    response = await _post(client, f'{{"demonstrations": [{{}}], "sampling": {sampling}}}'.encode())
    assert response.status_code in (400, 422)
    error = _error(response)
    assert str(error["param"]).startswith(f"sampling.{name}")
    assert str(error["message"]).startswith(f"sampling.{name}")
    assert not backend.started.is_set()


@pytest.mark.parametrize("sampling", ["null", "1", "true", '"hot"', "[]", "[{}]", "NaN", '{"top_k": 1}', '{"": 1}'])
async def test_what_is_no_sampling_is_refused(
    client: httpx.AsyncClient, backend: ScriptedBackend, sampling: str
) -> None:
    response = await _post(client, f'{{"demonstrations": [{{}}], "sampling": {sampling}}}'.encode())
    assert response.status_code in (400, 422)
    assert str(_error(response)["param"]).startswith("sampling")
    assert not backend.started.is_set()


async def test_a_body_that_is_no_object_is_invalid(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/rewrites", json=[1, 2])
    assert response.status_code == 422
    assert _error(response)["param"] is None


async def test_another_media_type_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/rewrites", content=b"{}", headers={"Content-Type": "text/plain"})
    assert response.status_code == 415
    assert "application/json" in _error(response)["message"]


async def test_a_declared_length_beyond_the_limit_is_refused_before_the_body_is_read(
    client: httpx.AsyncClient,
) -> None:
    response = await _post(client, b"{}", **{"Content-Length": "4097"})
    assert response.status_code == 413
    assert _error(response)["code"] == "body_too_large"


async def test_a_chunked_body_is_cut_off_at_the_limit(client: httpx.AsyncClient) -> None:
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1024
            yield b" " * 1024

    response = await client.post("/v1/rewrites", content=chunks(), headers={"Content-Type": "application/json"})
    assert response.status_code == 413
    assert sent == 5 * 1024


async def test_a_length_that_lies_does_not_let_more_in(client: httpx.AsyncClient) -> None:
    response = await _post(client, b" " * 5000, **{"Content-Length": "10"})
    assert response.status_code == 413


async def test_a_body_that_never_ends_times_out(backend: ScriptedBackend) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(60)

    limits = LIMITS.model_copy(update={"body_timeout_s": 0.05})
    async with _client(backend, limits=limits) as client:
        response = await client.post("/v1/rewrites", content=chunks(), headers={"Content-Type": "application/json"})
    assert response.status_code == 408
    assert _error(response)["code"] == "body_timeout"


async def test_bodies_that_come_have_a_bound_in_all_by_what_they_declare(
    backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.bodies._BODIES_AT_ONCE", 2)
    begun, go = asyncio.Semaphore(0), asyncio.Event()
    body = json.dumps({"demonstrations": [ROW]}).encode()
    other = {"Content-Length": f"{0:020}{LIMITS.body_bytes - 1}"}

    async def chunks() -> AsyncIterator[bytes]:
        begun.release()
        await go.wait()
        yield body

    async with _client(backend, limits=LIMITS.model_copy(update={"body_timeout_s": 60.0})) as client:
        json_body = {"Content-Type": "application/json"}
        slow = [
            asyncio.create_task(client.post("/v1/rewrites", content=chunks(), headers=json_body | length))
            for length in ({}, other)
        ]
        for _ in slow:
            await begun.acquire()
        fits = await _post(client, b"1")  # the one byte that is left
        refused = await _post(client, body)
        too_long = await _post(client, body, **{"Content-Length": "4097"})
        go.set()
        taken = [(await post).status_code for post in slow]
        after = await _post(client, body)
    assert fits.status_code == 422
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "7")
    assert _error(refused)["code"] == "too_many_bodies"
    assert (too_long.status_code, taken, after.status_code) == (413, [200, 200], 200)


@pytest.mark.parametrize("value", [b"[]", b"{}", b'""', b"0"])
async def test_a_body_of_more_values_than_its_demonstrations_could_have_is_refused(
    backend: ScriptedBackend, value: bytes
) -> None:
    async with _client(backend, limits=LIMITS.model_copy(update={"body_bytes": 2**20})) as client:
        response = await _post(client, b'{"demonstrations": [' + b",".join([value] * 5000) + b"]}")
    assert response.status_code == 413
    assert _error(response)["code"] == "too_many_values"


async def test_commas_and_brackets_of_a_text_are_no_values(backend: ScriptedBackend) -> None:
    row = {"question": '[1, {2, "3"}], ' * 5000, "answer": "2"}
    async with _client(backend, limits=LIMITS.model_copy(update={"body_bytes": 2**20})) as client:
        response = await client.post("/v1/rewrites", json={"demonstrations": [row]})
    assert response.status_code == 200


async def test_a_body_has_its_room_until_it_is_counted_as_demonstrations(
    backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.bodies._BODIES_AT_ONCE", 1)
    app = _app(backend)
    room = app.state.body_room
    left: list[int] = []

    def admit(rows: int) -> AbstractContextManager[None]:
        left.append(room._left)
        return nullcontext()

    monkeypatch.setattr(app.state.admission, "admit", admit)
    monkeypatch.setattr(backend, "rewrite", lambda body: _note(left, room))
    async with client_to(app, "http://127.0.0.1:8000") as client:
        response = await client.post("/v1/rewrites", json={"demonstrations": [ROW]})
        refused = await client.post("/v1/rewrites", json={"demonstrations": []})
    assert (response.status_code, refused.status_code) == (200, 422)
    length = int(response.request.headers["content-length"])
    assert left == [LIMITS.body_bytes - length, LIMITS.body_bytes]
    assert room._left == LIMITS.body_bytes


async def _note(left: list[int], room: BodyRoom) -> dict[str, Any]:
    left.append(room._left)
    return {}


async def test_too_many_demonstrations_are_refused(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/mismatch", json={"demonstrations": [ROW] * 5})
    assert response.status_code == 413
    assert _error(response)["param"] == "demonstrations"


async def test_a_full_house_turns_away_and_says_when_to_come_back(
    client: httpx.AsyncClient, backend: ScriptedBackend
) -> None:
    backend.go.clear()
    first = asyncio.create_task(client.post("/v1/rewrites", json={"demonstrations": [ROW] * 4}))
    await backend.started.wait()
    second = await client.post("/v1/rewrites", json={"demonstrations": [ROW] * 2})
    assert second.status_code == 429
    assert second.headers["retry-after"] == "7"
    assert _error(second)["type"] == "rate_limit_error"
    backend.go.set()
    assert (await first).status_code == 200
    assert (await client.post("/v1/rewrites", json={"demonstrations": [ROW] * 2})).status_code == 200


async def test_a_request_that_a_full_house_turns_away_costs_no_rows(backend: ScriptedBackend) -> None:
    backend.go.clear()
    limits = LIMITS.model_copy(update={"rows_per_minute": 8})
    async with _client(backend, limits=limits) as client:
        first = asyncio.create_task(client.post("/v1/rewrites", json={"demonstrations": [ROW] * 4}))
        await backend.started.wait()
        for _ in range(3):
            refused = await client.post("/v1/rewrites", json={"demonstrations": [ROW] * 4})
            assert (refused.status_code, _error(refused)["code"]) == (429, "queue_full")
        backend.go.set()
        assert (await first).status_code == 200
        assert (await client.post("/v1/rewrites", json={"demonstrations": [ROW] * 4})).status_code == 200
        refused = await client.post("/v1/rewrites", json={"demonstrations": [ROW] * 4})
        assert _error(refused)["code"] == "rows_per_minute"


async def test_a_request_that_takes_too_long_is_cancelled(backend: ScriptedBackend) -> None:
    backend.go.clear()
    async with _client(backend, limits=LIMITS.model_copy(update={"request_timeout_s": 0.05})) as client:
        response = await client.post("/v1/rewrites", json={"demonstrations": [ROW]})
    assert response.status_code == 504
    assert _error(response)["code"] == "work_timeout"
    assert backend.cancelled.is_set()


async def test_the_work_of_a_client_that_went_away_is_cancelled(backend: ScriptedBackend) -> None:
    backend.go.clear()
    app = _app(backend)
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
        assert _error(response)["message"] == "the engine is starting"


async def test_a_model_of_the_gate_that_is_not_there_is_told(
    client: httpx.AsyncClient, backend: ScriptedBackend
) -> None:
    backend.error = ModelError("embedding model 'x' cannot be loaded")
    response = await client.post("/v1/rewrites", json={"demonstrations": [ROW]})
    assert (response.status_code, response.headers["retry-after"]) == (503, "7")
    assert _error(response)["message"] == "embedding model 'x' cannot be loaded"
    assert _error(response)["code"] == "model_unavailable"


async def test_ready_says_which_model_answers(client: httpx.AsyncClient) -> None:
    response = await client.get("/readyz")
    assert response.json() == {"status": "ready", "model": "scripted", "max_length": 128, "queue_rows": 0}


async def test_after_closing_no_work_is_taken_and_nothing_is_ready(backend: ScriptedBackend) -> None:
    app = _app(backend)
    app.state.admission.close()
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        responses = [await client.post("/v1/rewrites", json={"demonstrations": [ROW]}), await client.get("/readyz")]
        assert (await client.get("/healthz")).status_code == 200
    assert [_error(response)["code"] for response in responses] == ["shutting_down", "shutting_down"]


async def test_a_defect_is_500_and_tells_no_secret(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.error = RuntimeError("the password is hunter2")
    response = await client.post("/v1/rewrites", json={"demonstrations": [ROW]})
    assert response.status_code == 500
    assert "hunter2" not in response.text
    assert _error(response)["code"] == "internal_error"


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/nothing", 404), ("GET", "/v1/rewrites", 405)])
async def test_unknown_paths_and_methods_have_the_same_shape(
    client: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    response = await client.request(method, path)
    assert response.status_code == status
    assert path in _error(response)["message"]


@pytest.mark.parametrize("header", [None, "Bearer wrong-wrong-wrong-wrong", "Basic correct-correct-correct"])
async def test_without_a_known_key_nothing_is_read(
    backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch, header: str | None
) -> None:
    monkeypatch.setenv("REWRIGHT_API_KEYS", "other-other-other, correct-correct-correct")
    async with _client(backend, Keys.from_environment()) as client:
        headers = {"Authorization": header} if header else {}
        refused = await _post(client, b"not json", **headers)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert _error(refused)["type"] == "authentication_error"
        allowed = await client.post(
            "/v1/rewrites",
            json={"demonstrations": [ROW]},
            headers={"Authorization": "Bearer correct-correct-correct"},
        )
        assert allowed.status_code == 200


async def test_without_keys_a_name_that_is_not_this_machine_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.get("/healthz", headers={"Host": "rebound.example:8000"})
    assert response.status_code == 400
    assert _error(response)["code"] == "host_not_allowed"


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
    assert _error(refused)["code"] == "origin_not_allowed"
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


async def test_every_example_of_the_description_is_valid(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    bodies: dict[str, type[BaseModel]] = {"/v1/rewrites": RewritesBody, "/v1/mismatch": MismatchBody}
    answers: dict[str, type[BaseModel]] = {"/v1/rewrites": RewritesResponse, "/v1/mismatch": MismatchResponse}
    for path, model in bodies.items():
        operation = paths[path]["post"]
        for example in operation["requestBody"]["content"]["application/json"]["examples"].values():
            model.model_validate(example["value"])
        answers[path].model_validate(operation["responses"]["200"]["content"]["application/json"]["example"])
        errors = {status: r for status, r in operation["responses"].items() if status != "200"}
        assert set(errors) == {
            "400",
            "401",
            "403",
            "404",
            "408",
            "409",
            "413",
            "415",
            "422",
            "429",
            "500",
            "503",
            "504",
        }
        for response in errors.values():
            ErrorResponse.model_validate(response["content"]["application/json"]["example"])


async def test_the_examples_of_the_adapter_routes_are_valid(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    listing, activation = paths["/v1/adapters"]["get"], paths["/v1/adapters/{name}/activate"]["post"]
    for example in activation["requestBody"]["content"]["application/json"]["examples"].values():
        ActivateBody.model_validate(example["value"])
    AdaptersResponse.model_validate(listing["responses"]["200"]["content"]["application/json"]["example"])
    ActivateResponse.model_validate(activation["responses"]["200"]["content"]["application/json"]["example"])
    assert "409" in activation["responses"]


async def test_an_adapter_is_activated_by_name_and_number(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    response = await client.post("/v1/adapters/math/activate", json={"version": 3})
    assert response.json() == {"name": "math", "active": 3, "previous": None}
    backend.error = ConflictError("it is broken", code="adapter_refused", param="version")
    refused = await client.post("/v1/adapters/math/activate", json={"version": 3})
    assert refused.status_code == 409
    assert _error(refused)["code"] == "adapter_refused"


@pytest.mark.parametrize(
    ("name", "version", "param"),
    [
        ("math", 0, "version"),
        ("math", "3", "version"),
        ("math", True, "version"),
        ("math", 10**9, "version"),
        ("math", None, "version"),
        (".hidden", 1, "name"),
        ("a b", 1, "name"),
        ("m%C3%A4th", 1, "name"),
        ("x" * 101, 1, "name"),
        ("math%0A", 1, "name"),
    ],
)
async def test_a_name_or_version_that_none_can_have_is_refused(
    client: httpx.AsyncClient, name: str, version: object, param: str
) -> None:
    response = await client.post(f"/v1/adapters/{name}/activate", json={"version": version})
    assert response.status_code == 422
    assert _error(response)["param"] == param


@pytest.mark.parametrize("name", ["..%2F..", "%2Fetc", "../math"])
async def test_a_path_is_no_name(client: httpx.AsyncClient, name: str) -> None:
    assert (await client.post(f"/v1/adapters/{name}/activate", json={"version": 1})).status_code == 404


async def test_adapters_are_behind_the_keys(backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWRIGHT_API_KEYS", "correct-correct-correct")
    async with _client(backend, Keys.from_environment()) as client:
        assert (await client.get("/v1/adapters")).status_code == 401
        assert (await client.post("/v1/adapters/math/activate", json={"version": 1})).status_code == 401
        headers = {"Authorization": "Bearer correct-correct-correct"}
        assert (await client.get("/v1/adapters", headers=headers)).json() == ADAPTERS_ANSWER
