"""The examples of the OpenAPI description are valid, and what the service would answer."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from pydantic import BaseModel

from agent.demonstrations import BadRow
from agent.intake import read_json_rows
from agent.mismatch import summarise
from server.examples import MISMATCH_ANSWER, MISMATCH_REQUESTS
from server.schemas import (
    ActivateBody,
    ActivateResponse,
    AdaptersResponse,
    ErrorResponse,
    MismatchBody,
    MismatchResponse,
    RewritesBody,
    RewritesResponse,
)
from tests.scripted_backend import ScriptedBackend, client_over


@pytest.fixture
async def backend() -> ScriptedBackend:
    return ScriptedBackend()


@pytest.fixture
async def client(backend: ScriptedBackend) -> AsyncIterator[httpx.AsyncClient]:
    async with client_over(backend) as http:
        yield http


def test_the_mismatch_example_answers_its_own_request() -> None:
    (request,) = (example["value"] for example in MISMATCH_REQUESTS.values())
    rows = list(read_json_rows(request["demonstrations"]))
    assert [answer["id"] for answer in MISMATCH_ANSWER["data"]] == [row.id for row in rows]
    for row, answer in zip(rows, MISMATCH_ANSWER["data"], strict=True):
        if isinstance(row, BadRow):
            assert answer["error"] == {"line": row.line, "field": row.field, "message": row.message}
        else:
            assert "".join(token["text"] for token in answer["tokens"]).startswith(row.expert)
            nats = [token["nats"] for token in answer["tokens"]]
            assert answer["mismatch"] == pytest.approx(summarise(nats).as_dict())


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
