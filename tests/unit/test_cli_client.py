"""The client of the service, against a real HTTP server that misbehaves on purpose."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.server import ServerState

from agent.demonstrations import BadRow, Demonstration, Message
from agent.early import EarlyRows
from agent.exceptions import ResumeError
from agent.records import error_row
from cli import client as client_module
from cli.client import Pauses, RewriteClient, refusal, rewrite_rows_remotely
from cli.exceptions import ServiceError, UsageError
from cli.output import Job
from cli.rewrite import rewrite_there
from cli.settings import Given, load_settings
from server.settings import LimitSettings

Answer = Callable[[list[dict[str, Any]]], Response]


class Service:
    """Answers `POST /v1/rewrites` with the next of `answers`, then with records."""

    def __init__(self) -> None:
        self.url = ""
        self.answers: list[Answer] = []
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.adapters: object = {"data": [], "default": None}

    async def rewrites(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.keys.append(request.headers.get("authorization"))
        answer = self.answers.pop(0) if self.answers else records
        return answer(body["demonstrations"])

    async def ready(self, request: Request) -> Response:
        return self.answers.pop(0)([]) if self.answers else JSONResponse({"status": "ready", "model": "tiny"})

    async def listing(self, request: Request) -> Response:
        return JSONResponse(self.adapters)


def records(rows: list[dict[str, Any]]) -> Response:
    whole = error_row(BadRow("", 1, ""), "tiny") | {"status": "rewritten", "error": None}
    data = [whole | {"id": row["id"], "source": row} for row in rows]
    usage = {"prompt_tokens": 5, "completion_tokens": len(rows), "scored_tokens": 2}
    return JSONResponse({"data": data, "usage": usage, "model": "tiny"})


def refuse(
    status: int, message: str = "no", *, param: str | None = None, code: str = "", retry_after: str | None = None
) -> Answer:
    headers = {"Retry-After": retry_after} if retry_after else {}
    return lambda rows: JSONResponse({"error": {"message": message, "param": param, "code": code}}, status, headers)


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    service = Service()
    routes = [
        Route("/v1/rewrites", service.rewrites, methods=["POST"]),
        Route("/v1/adapters", service.listing),
        Route("/readyz", service.ready),
    ]
    config = uvicorn.Config(Starlette(routes=routes), log_level="warning", lifespan="off")
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(  # `uvicorn.Server` takes a fifth of a second to end
        lambda: config.http_protocol_class(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    service.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield service
    server.close()
    for connection in list(state.connections):
        connection.shutdown()


def of_the_proxy(status: int) -> Answer:
    return lambda rows: PlainTextResponse("Path '/v1' not found. See /-/routes for available routes.", status)


async def test_a_proxy_that_knows_no_routes_yet_is_asked_again(service: Service):
    service.answers = [of_the_proxy(404), of_the_proxy(404)]
    async with RewriteClient(service.url, None, {}, patience_s=5) as client:
        assert await client.ready() == "tiny"
    assert not service.answers


async def test_an_address_that_never_knows_the_route_is_not_this_service(service: Service):
    service.answers = [of_the_proxy(404)] * 100
    async with RewriteClient(service.url, None, {}, patience_s=0.6) as client:
        with pytest.raises(ServiceError, match="answered 404"):
            await client.ready()


@pytest.mark.parametrize("status", [404, 500])
async def test_rows_are_sent_again_when_a_proxy_answers_for_a_service_that_is_being_replaced(
    service: Service, status: int
) -> None:
    service.answers = [of_the_proxy(status)]
    async with RewriteClient(service.url, None, {}, patience_s=5) as client:
        answered, _ = await client.rewrite(rows(1), model="tiny")
    assert [row["status"] for row in answered] == ["rewritten"]


def rows(count: int) -> list[Demonstration]:
    return [
        Demonstration(f"row-{i}", (Message("user", f"{i}?"),), str(i), source={"n": i}, line=i) for i in range(count)
    ]


async def send(
    service: Service, demonstrations: list[Demonstration], options: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    async with RewriteClient(service.url, None, options or {}, patience_s=0.0) as client:
        return (await client.rewrite(demonstrations, model="tiny"))[0]


async def test_rows_come_back_with_their_own_source(service: Service) -> None:
    assert [(r["id"], r["source"]) for r in await send(service, rows(2))] == [("row-0", {"n": 0}), ("row-1", {"n": 1})]


async def test_a_demonstration_is_sent_with_everything_that_decides(service: Service) -> None:
    await send(service, [Demonstration("a", (Message("user", "?"),), "x", "42", "math")], {"strategy": "hint"})
    row = {"id": "a", "prompt": [{"role": "user", "content": "?"}], "completion": "x"}
    assert service.bodies == [
        {"demonstrations": [row | {"reference_answer": "42", "task": "math"}], "strategy": "hint"}
    ]


async def test_the_key_is_sent_as_a_bearer(service: Service) -> None:
    async with RewriteClient(service.url, "secret", {}, patience_s=0.0) as client:
        await client.rewrite(rows(1), model="tiny")
    assert service.keys == ["Bearer secret"]


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_a_busy_service_is_asked_again(service: Service, status: int) -> None:
    service.answers = [refuse(status)]
    assert [r["status"] for r in await send(service, rows(1))] == ["rewritten"]
    assert len(service.bodies) == 2


async def test_a_batch_that_the_service_has_no_time_for_is_halved(service: Service) -> None:
    service.answers = [refuse(504, code="work_timeout")]
    assert [r["status"] for r in await send(service, rows(4))] == ["rewritten"] * 4
    assert [len(body["demonstrations"]) for body in service.bodies] == [4, 2, 2]


async def test_the_service_says_how_long_to_wait(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    service.answers = [refuse(429, retry_after="7"), refuse(429)]
    monkeypatch.setattr(client_module.asyncio, "sleep", noted)
    await send(service, rows(1))
    assert [p for p in pauses if p >= 0.5] == [7.0, 1.0]


async def test_patience_with_a_busy_service_ends(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_BUSY_PATIENCE_S", 0.0)
    service.answers = [refuse(503, "starting")]
    with pytest.raises(ServiceError, match="answered 503: starting"):
        await send(service, rows(1))


def test_patience_is_counted_from_the_first_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(client_module.time, "monotonic", lambda: now)
    pauses = Pauses({})
    now = 100.0  # so long the first try went well
    assert pauses.next(ServiceError("lost"), 60.0) == 0.5
    now = 159.9
    assert pauses.next(ServiceError("lost"), 60.0) == pytest.approx(0.1)
    now = 160.0
    with pytest.raises(ServiceError, match="lost"):
        pauses.next(ServiceError("lost"), 60.0)


def test_a_failure_is_said_once_before_the_first_pause(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(client_module.time, "monotonic", lambda: now)
    told: dict[str, float] = {}
    one, other = Pauses(told), Pauses(told)
    for _ in range(20):
        for pauses in (one, other):
            pauses.next(ServiceError("http://h answered 503: starting"), 900.0)
        now += 30.0
    assert capsys.readouterr().err == "http://h answered 503: starting; trying again for 900 s\n"
    now += 60.0
    Pauses(told).next(ServiceError("http://h answered 503: starting"), 900.0)
    assert capsys.readouterr().err.count("starting") == 1, "another time is another failure"


async def test_a_service_may_be_silent_for_longer_than_a_request_may_take(service: Service) -> None:
    async with RewriteClient(service.url, None, {}, patience_s=0.0) as client:
        silence_s = client._http.timeout.read
    assert silence_s is not None
    assert silence_s > LimitSettings().request_timeout_s


@pytest.mark.parametrize("status", [500, 501])
async def test_a_service_that_fails_ends_the_work_and_makes_no_row_an_error(service: Service, status: int) -> None:
    service.answers = [refuse(status, "its log says why")] * 10
    with pytest.raises(ServiceError, match=f"answered {status}: its log says why; .* --resume goes on"):
        await send(service, rows(4))
    assert len(service.bodies) == 1


MATH = {"name": "math", "active": 3, "versions": []}


@pytest.mark.parametrize(
    ("asked", "listed", "pinned"),
    [
        (None, {"data": [], "default": None}, None),
        (None, {"data": [MATH], "default": "math@3"}, "math@3"),
        ("math", {"data": [MATH], "default": None}, "math@3"),
        ("math@2", {}, "math@2"),
        ("math", {"data": [MATH], "default": "math"}, "math"),
        ("poems", {"data": [MATH, {"name": "poems", "active": None}], "default": "math@3"}, "poems"),
        ("magic", {"data": [MATH], "default": "math@3"}, "magic"),
    ],
)
async def test_every_request_names_the_version_of_the_adapter(
    service: Service, asked: str | None, listed: dict[str, Any], pinned: str | None
) -> None:
    service.adapters = listed
    async with RewriteClient(service.url, None, {"adapter": asked} if asked else {}, patience_s=0.0) as client:
        assert await client.pin_adapter() == pinned
        service.adapters = {"data": [MATH | {"active": 4}], "default": "math@4"}
        await client.rewrite(rows(1), model="tiny")
    assert service.bodies[0].get("adapter") == pinned


async def test_a_list_of_adapters_that_is_none_ends_the_work(service: Service) -> None:
    for service.adapters in ({}, {"data": {}, "default": None}, {"data": [], "default": 5}):
        async with RewriteClient(service.url, None, {"adapter": "math"}, patience_s=0.0) as client:
            with pytest.raises(ServiceError, match="list of adapters is none"):
                await client.pin_adapter()


async def test_a_run_is_not_resumed_with_a_version_that_became_active_since(service: Service, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"question": "1?", "answer": "1"}\n{"question": "2?", "answer": "2"}\n')
    out = tmp_path / "out.jsonl"
    settings = load_settings(None, {}, [Given.by_flag("rewrite.adapter", "--adapter", "math")])
    service.adapters = {"data": [MATH], "default": None}
    await rewrite_there(settings, Job(tmp_path / "in.jsonl", out), service.url, None, 0.0)
    assert service.bodies[0]["adapter"] == "math@3"
    before = out.read_text()
    again = Job(tmp_path / "in.jsonl", out, resume=True)
    service.adapters = {"data": [MATH | {"active": 4}], "default": None}
    with pytest.raises(ResumeError, match="adapter was 'math@3' and is now 'math@4'"):
        await rewrite_there(settings, again, service.url, None, 0.0)
    settings = load_settings(None, {}, [Given.by_flag("rewrite.adapter", "--adapter", "math@3")])
    assert (await rewrite_there(settings, again, service.url, None, 0.0)).rows == 2
    assert (out.read_text(), len(service.bodies)) == (before, 1)


async def test_a_row_that_the_service_refuses_fails_alone(service: Service) -> None:
    def second_is_bad(sent: list[dict[str, Any]]) -> Response:
        if any(row["id"] == "row-1" for row in sent):
            return refuse(422, "too deep", param="demonstrations[0]")(sent)
        return records(sent)

    service.answers = [second_is_bad] * 10
    answered = await send(service, rows(4))
    assert [(r["id"], r["status"]) for r in answered] == [
        ("row-0", "rewritten"),
        ("row-1", "error"),
        ("row-2", "rewritten"),
        ("row-3", "rewritten"),
    ]
    assert answered[1]["error"] == {"line": 1, "field": None, "message": f"{service.url} answered 422: too deep"}
    assert (answered[1]["model"], answered[1]["source"]) == ("tiny", {"n": 1})


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (refuse(401, "a key is needed"), "answered 401: a key is needed"),
        (lambda rows: PlainTextResponse("hello"), "something that is not JSON"),
        (lambda rows: JSONResponse([]), "JSON that is not an object"),
        (lambda rows: JSONResponse({}), "without data and usage"),
        (lambda rows: JSONResponse({"data": [], "usage": {}}), "other rows than it was sent"),
    ],
)
async def test_what_is_not_about_a_row_ends_the_work(service: Service, answer: Answer, message: str) -> None:
    service.answers = [answer]
    with pytest.raises(ServiceError, match=message):
        await send(service, rows(2), {"strategy": "x", "adapter": "x"})


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, 2),
        (401, 2),
        (403, 2),
        (404, 2),
        (409, 2),
        (413, 2),
        (422, 2),
        (408, 3),
        (425, 3),
        (429, 3),
        (500, 3),
        (503, 3),
    ],
)
def test_only_what_may_be_answered_another_time_is_a_failure(status: int, code: int) -> None:
    answer = httpx.Response(status, json={"error": {"message": "no"}})
    assert refusal("http://h", answer).exit_code == code


def test_what_a_proxy_answers_while_the_service_is_away_is_a_failure() -> None:
    assert refusal("http://h", httpx.Response(404, text="Path not found")).exit_code == 3


@pytest.mark.parametrize(("status", "option"), [(404, "adapter"), (422, "strategy")])
async def test_an_option_that_the_service_refuses_is_wrong_use(service: Service, status: int, option: str) -> None:
    service.answers = [refuse(status, "unknown x", param=option)]
    with pytest.raises(UsageError, match=f"answered {status}: unknown x"):
        await send(service, rows(2), {"strategy": "x", "adapter": "x"})
    assert len(service.bodies) == 1


async def test_the_name_of_the_model_is_asked_for(service: Service) -> None:
    service.answers = [refuse(503)]
    async with RewriteClient(service.url, None, {}, patience_s=0.0) as client:
        assert await client.ready() == "tiny"


async def test_batches_come_back_as_one_ordered_stream_with_bad_rows_in_place(service: Service) -> None:
    given: list[Demonstration | BadRow] = [*rows(40)]
    given[3] = BadRow("row-3", 3, "broken")
    async with RewriteClient(service.url, None, {}, patience_s=0.0) as client:
        results = [result async for result in rewrite_rows_remotely(client, given, model="tiny")]
    assert [row["id"] for row, _ in results] == [f"row-{i}" for i in range(40)]
    assert [row["id"] for row, _ in results if row["status"] == "error"] == ["row-3"]
    assert sum(usage.completion_tokens for _, usage in results) == 39
    assert sorted(len(body["demonstrations"]) for body in service.bodies) == [8, 15, 16]


async def test_rows_of_another_version_are_refused(service: Service) -> None:
    service.answers = [lambda sent: JSONResponse({"data": [{"id": row["id"]} for row in sent], "usage": {}})]
    with pytest.raises(ServiceError, match="answered with rows without adapter, attempts, completion, "):
        await send(service, rows(2))


@pytest.mark.parametrize(
    "change",
    [
        {"error": "boom", "status": "error"},
        {"error": {}, "status": "error"},
        {"error": None, "status": "error"},
        {"mismatch": None},
        {"mismatch": {}},
        {"mismatch": {"expert": "low", "target": None}},
        {"status": "banana"},
        {"proposer": ["rewrite"]},
    ],
    ids=str,
)
async def test_rows_of_another_shape_are_refused(service: Service, change: dict[str, Any]) -> None:
    def changed(sent: list[dict[str, Any]]) -> Response:
        answer = json.loads(bytes(records(sent).body))
        return JSONResponse({**answer, "data": [row | change for row in answer["data"]]})

    service.answers = [changed]
    with pytest.raises(ServiceError, match="rows that are none"):
        await send(service, rows(1))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"data": [{}, 5], "usage": {}}', "other rows than it was sent"),
        (b'{"data": [], "usage": NaN}', "not JSON"),
        (b'{"data": ["\\ud800"], "usage": {}}', "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 10_000, "not JSON"),
    ],
)
async def test_an_answer_that_is_none_ends_the_work(service: Service, body: bytes, message: str) -> None:
    service.answers = [lambda sent: Response(body, media_type="application/json")]
    with pytest.raises(ServiceError, match=message):
        await send(service, rows(1))


async def test_counts_of_tokens_are_numbers(service: Service) -> None:
    def changed(sent: list[dict[str, Any]]) -> Response:
        answer = json.loads(bytes(records(sent).body))
        return JSONResponse({**answer, "usage": {"prompt_tokens": "many"}})

    service.answers = [changed]
    with pytest.raises(ServiceError, match="token counts"):
        await send(service, rows(1))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Response(b"plain", headers={"Content-Encoding": "gzip"}), "cannot be reached: .*decompressing"),
        (Response(status_code=301, headers={"Location": "https://elsewhere/"}), "answered 301"),
    ],
    ids=["another encoding", "redirect"],
)
async def test_an_answer_of_another_service_ends_the_work(service: Service, answer: Response, message: str) -> None:
    service.answers = [lambda sent: answer]
    with pytest.raises(ServiceError, match=message):
        await send(service, rows(2))


@pytest.mark.parametrize("key", ["ключ", "a\nb", "a\x00b"])
def test_a_key_that_cannot_travel_is_wrong_use(key: str) -> None:
    with pytest.raises(UsageError, match="REWRIGHT_API_KEY"):
        RewriteClient("http://127.0.0.1:9", key, {}, patience_s=0.0)


async def test_rows_that_were_finished_before_are_not_sent_again(service: Service, tmp_path: Path) -> None:
    early = EarlyRows(tmp_path / "early.jsonl")
    early.open(resume=False)
    early.keep(error_row(BadRow("row-1", 1, "kept", source={"n": 1}), "tiny"))
    async with RewriteClient(service.url, None, {}, patience_s=0.0) as client:
        results = [row async for row, _ in rewrite_rows_remotely(client, rows(3), model="tiny", early=early)]
    assert [row["id"] for row in results] == ["row-0", "row-1", "row-2"]
    assert results[1]["error"]["message"] == "kept"
    assert [sent["id"] for sent in service.bodies[0]["demonstrations"]] == ["row-0", "row-2"]
    assert early.find(rows(3)[2]) is not None
    early.close()


async def test_large_rows_make_small_batches(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(json.dumps(client_module._as_row(rows(1)[0])))
    monkeypatch.setattr(client_module, "_BATCH_BYTES", 2 * size)
    async with RewriteClient(service.url, None, {}, patience_s=0.0) as client:
        results = [result async for result in rewrite_rows_remotely(client, rows(5), model="tiny")]
    assert len(results) == 5
    assert sorted(len(body["demonstrations"]) for body in service.bodies) == [1, 2, 2]
