"""Bodies of requests: what is refused and how, and that those that come together have a bound."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import httpx
import pytest

from server.bodies import BodyRoom
from server.schemas import SamplingBody
from tests.absurd import absurd_bodies
from tests.asgi import client_to, error_of
from tests.scripted_backend import LIMITS, ROW, ScriptedBackend, app_over, client_over, post_rewrites


@pytest.fixture
async def backend() -> ScriptedBackend:
    return ScriptedBackend()


@pytest.fixture
async def client(backend: ScriptedBackend) -> AsyncIterator[httpx.AsyncClient]:
    async with client_over(backend) as http:
        yield http


async def test_malformed_json_is_answered_with_its_line_and_column(client: httpx.AsyncClient) -> None:
    response = await post_rewrites(client, b'{"demonstrations":\n [1,\n  2,,]}')
    assert response.status_code == 400
    error = error_of(response)
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
    response = await post_rewrites(client, content)
    assert response.status_code == 400
    assert said in error_of(response)["message"]


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
    error = error_of(response)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(("name", "sampling"), list(absurd_bodies(SamplingBody, {"max_tokens": 4})))
async def test_absurd_sampling_is_refused_by_its_name_and_reaches_no_engine(
    client: httpx.AsyncClient, backend: ScriptedBackend, name: str, sampling: str
) -> None:
    response = await post_rewrites(client, f'{{"demonstrations": [{{}}], "sampling": {sampling}}}'.encode())
    assert response.status_code in (400, 422)
    error = error_of(response)
    assert str(error["param"]).startswith(f"sampling.{name}")
    assert str(error["message"]).startswith(f"sampling.{name}")
    assert not backend.started.is_set()


@pytest.mark.parametrize("sampling", ["null", "1", "true", '"hot"', "[]", "[{}]", "NaN", '{"top_k": 1}', '{"": 1}'])
async def test_what_is_no_sampling_is_refused(
    client: httpx.AsyncClient, backend: ScriptedBackend, sampling: str
) -> None:
    response = await post_rewrites(client, f'{{"demonstrations": [{{}}], "sampling": {sampling}}}'.encode())
    assert response.status_code in (400, 422)
    assert str(error_of(response)["param"]).startswith("sampling")
    assert not backend.started.is_set()


async def test_a_body_that_is_no_object_is_invalid(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/rewrites", json=[1, 2])
    assert response.status_code == 422
    assert error_of(response)["param"] is None


async def test_another_media_type_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/rewrites", content=b"{}", headers={"Content-Type": "text/plain"})
    assert response.status_code == 415
    assert "application/json" in error_of(response)["message"]


async def test_a_declared_length_beyond_the_limit_is_refused_before_the_body_is_read(
    client: httpx.AsyncClient,
) -> None:
    response = await post_rewrites(client, b"{}", **{"Content-Length": "4097"})
    assert response.status_code == 413
    assert error_of(response)["code"] == "body_too_large"


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
    response = await post_rewrites(client, b" " * 5000, **{"Content-Length": "10"})
    assert response.status_code == 413


async def test_a_body_that_never_ends_times_out(backend: ScriptedBackend) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(60)

    limits = LIMITS.model_copy(update={"body_timeout_s": 0.05})
    async with client_over(backend, limits=limits) as client:
        response = await client.post("/v1/rewrites", content=chunks(), headers={"Content-Type": "application/json"})
    assert response.status_code == 408
    assert error_of(response)["code"] == "body_timeout"


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

    async with client_over(backend, limits=LIMITS.model_copy(update={"body_timeout_s": 60.0})) as client:
        json_body = {"Content-Type": "application/json"}
        slow = [
            asyncio.create_task(client.post("/v1/rewrites", content=chunks(), headers=json_body | length))
            for length in ({}, other)
        ]
        for _ in slow:
            await begun.acquire()
        fits = await post_rewrites(client, b"1")  # the one byte that is left
        refused = await post_rewrites(client, body)
        too_long = await post_rewrites(client, body, **{"Content-Length": "4097"})
        go.set()
        taken = [(await post).status_code for post in slow]
        after = await post_rewrites(client, body)
    assert fits.status_code == 422
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "7")
    assert error_of(refused)["code"] == "too_many_bodies"
    assert (too_long.status_code, taken, after.status_code) == (413, [200, 200], 200)


@pytest.mark.parametrize("value", [b"[]", b"{}", b'""', b"0"])
async def test_a_body_of_more_values_than_its_demonstrations_could_have_is_refused(
    backend: ScriptedBackend, value: bytes
) -> None:
    async with client_over(backend, limits=LIMITS.model_copy(update={"body_bytes": 2**20})) as client:
        response = await post_rewrites(client, b'{"demonstrations": [' + b",".join([value] * 5000) + b"]}")
    assert response.status_code == 413
    assert error_of(response)["code"] == "too_many_values"


async def test_commas_and_brackets_of_a_text_are_no_values(backend: ScriptedBackend) -> None:
    row = {"question": '[1, {2, "3"}], ' * 5000, "answer": "2"}
    async with client_over(backend, limits=LIMITS.model_copy(update={"body_bytes": 2**20})) as client:
        response = await client.post("/v1/rewrites", json={"demonstrations": [row]})
    assert response.status_code == 200


async def test_a_body_has_its_room_until_it_is_counted_as_demonstrations(
    backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.bodies._BODIES_AT_ONCE", 1)
    app = app_over(backend)
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
    assert error_of(response)["param"] == "demonstrations"
