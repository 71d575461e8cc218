"""Routes of adapters over a scripted backend: names, versions, and who may ask."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from server.auth import Keys
from server.examples import ADAPTERS_ANSWER
from server.exceptions import ConflictError
from tests.asgi import error_of
from tests.scripted_backend import ScriptedBackend, client_over


@pytest.fixture
async def backend() -> ScriptedBackend:
    return ScriptedBackend()


@pytest.fixture
async def client(backend: ScriptedBackend) -> AsyncIterator[httpx.AsyncClient]:
    async with client_over(backend) as http:
        yield http


async def test_an_adapter_is_activated_by_name_and_number(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    response = await client.post("/v1/adapters/math/activate", json={"version": 3})
    assert response.json() == {"name": "math", "active": 3, "previous": None}
    backend.error = ConflictError("it is broken", code="adapter_refused", param="version")
    refused = await client.post("/v1/adapters/math/activate", json={"version": 3})
    assert refused.status_code == 409
    assert error_of(refused)["code"] == "adapter_refused"


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
    assert error_of(response)["param"] == param


@pytest.mark.parametrize("name", ["..%2F..", "%2Fetc", "../math"])
async def test_a_path_is_no_name(client: httpx.AsyncClient, name: str) -> None:
    assert (await client.post(f"/v1/adapters/{name}/activate", json={"version": 1})).status_code == 404


async def test_adapters_are_behind_the_keys(backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWRIGHT_API_KEYS", "correct-correct-correct")
    async with client_over(backend, Keys.from_environment()) as client:
        assert (await client.get("/v1/adapters")).status_code == 401
        assert (await client.post("/v1/adapters/math/activate", json={"version": 1})).status_code == 401
        headers = {"Authorization": "Bearer correct-correct-correct"}
        assert (await client.get("/v1/adapters", headers=headers)).json() == ADAPTERS_ANSWER
