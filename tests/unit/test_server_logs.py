"""What the log says of requests and of what fails: on one line, about whom, and without what is secret."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent.exceptions import SettingsError
from server.app import create_app
from server.auth import Keys
from server.logs import JsonLines, TextLines, about, set_up_logging
from server.settings import ServerSettings
from server.work import DurableWork
from tests.asgi import client_to
from tests.plain_backend import PlainBackend

EVIL = 'x\n2026-01-01T00:00:00.000Z ERROR all is lost\r\x1b[31m\u2028{"level": "error"}'


class Backend(PlainBackend):
    """Fails on every request with the text of a row in the message."""

    async def rewrite(self, body: Any) -> dict[str, Any]:
        raise RuntimeError(f"no idea what {body.demonstrations[0]} is")


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What the loggers of the service write, as JSON."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("rewright")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(before)


@pytest.fixture
def work(tmp_path: Path) -> DurableWork:
    return DurableWork(ServerSettings(state=str(tmp_path)))


@pytest.fixture
async def client(work: DurableWork) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(Backend(), ServerSettings(), Keys(), work)
    async with client_to(app) as http:
        yield http


def _parsed(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


async def test_a_request_is_one_line_with_its_id_and_that_of_its_key(
    client: httpx.AsyncClient, work: DurableWork, lines: io.StringIO
) -> None:
    key, text = work.keys.create("mine", ["rewrite"])
    headers = {"Authorization": f"Bearer {text}", "X-Request-ID": "trace-17.b"}
    response = await client.get("/v1/jobs/job_" + "0" * 24, headers=headers)
    assert response.headers["x-request-id"] == "trace-17.b"
    (line,) = _parsed(lines)
    assert line["request_id"] == "trace-17.b"
    assert (line["method"], line["route"], line["status"]) == ("GET", "/v1/jobs/{job_id}", 404)
    assert line["key"] == key.id
    assert line["ms"] >= 0
    assert text not in lines.getvalue()


@pytest.mark.parametrize("given", [None, "", "a b", "x" * 65, "-a", "a\tb", "rw_1\\n", "é"])
async def test_an_id_of_another_form_is_replaced(client: httpx.AsyncClient, given: str | None) -> None:
    headers = [(b"x-request-id", given.encode())] if given is not None else []
    made = (await client.get("/healthz", headers=headers)).headers["x-request-id"]
    assert made.startswith("req_")
    assert made != (await client.get("/healthz")).headers["x-request-id"]


async def test_two_ids_are_none(client: httpx.AsyncClient) -> None:
    response = await client.get("/healthz", headers=[(b"x-request-id", b"a"), (b"x-request-id", b"b")])
    assert response.headers["x-request-id"].startswith("req_")


async def test_behind_a_proxy_that_tells_the_id_only_another_one_is_told(work: DurableWork) -> None:
    transport = httpx.ASGITransport(create_app(Backend(), ServerSettings(), Keys(), work, proxied=True))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        safe = await client.get("/healthz", headers={"X-Request-ID": "a-1"})
        unsafe = await client.get("/healthz", headers={"X-Request-ID": "a 1"})
    assert "x-request-id" not in safe.headers
    assert unsafe.headers["x-request-id"].startswith("req_")


async def test_health_checks_are_not_told_and_refusals_are(client: httpx.AsyncClient, lines: io.StringIO) -> None:
    await client.get("/healthz")
    await client.get("/healthz", headers={"Host": "rebound.example"})
    (line,) = _parsed(lines)
    assert (line["route"], line["status"]) == ("unmatched", 400)


async def test_a_defect_is_told_with_its_place_and_without_the_row(
    client: httpx.AsyncClient, lines: io.StringIO
) -> None:
    response = await client.post("/v1/rewrites", json={"demonstrations": [{"question": EVIL, "answer": "hunter2"}]})
    assert response.status_code == 500
    assert response.headers["x-request-id"].startswith("req_")
    assert response.headers["x-content-type-options"] == "nosniff"
    defect, request = _parsed(lines)
    assert defect["request_id"] == request["request_id"] == response.headers["x-request-id"]
    assert defect["exception"][0] == "builtins.RuntimeError"
    assert any("test_server_logs.py" in place for place in defect["exception"])
    assert request["status"] == 500
    assert "hunter2" not in lines.getvalue()
    assert "all is lost" not in lines.getvalue()


def _record(message: str, *arguments: object, error: BaseException | None = None) -> logging.LogRecord:
    info = (type(error), error, error.__traceback__) if error else None
    return logging.LogRecord("rewright.server", logging.ERROR, "x.py", 1, message, arguments, info)


@pytest.mark.parametrize("formatter", [TextLines(), JsonLines()])
def test_what_a_client_names_stays_on_its_line(formatter: logging.Formatter) -> None:
    with about(job_id=EVIL):
        line = formatter.format(_record("row %s failed", EVIL))
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    assert "all is lost" in line


@pytest.mark.parametrize("formatter", [TextLines(), JsonLines()])
def test_a_key_is_blotted_out_wherever_it_is(formatter: logging.Formatter) -> None:
    secret = "s-_" * 14 + "x"
    with about(request_id=f"rw_0123456789ab_{secret}"):
        line = formatter.format(_record("sent rw_0123456789ab_%s", secret))
    assert secret not in line
    assert line.count("rw_0123456789ab_[hidden]") == 2


def test_what_an_exception_came_from_is_told_without_its_words() -> None:
    try:
        try:
            Path("/nowhere/of/mine").read_text()
        except OSError as error:
            raise ValueError(EVIL) from error
    except ValueError as error:
        line = TextLines().format(_record("it failed", error=error))
    first, *rest = line.splitlines()
    assert first.endswith("ERROR it failed")
    assert all(told.startswith("    ") for told in rest)
    assert rest[0].strip() == "builtins.ValueError"
    assert any("FileNotFoundError: No such file or directory" in told for told in rest)
    assert "all is lost" not in line


def test_tasks_of_a_job_say_which_and_others_do_not() -> None:
    with about(request_id="a"), about(job_id="job_1"):
        inner = json.loads(JsonLines().format(_record("x")))
    outer = json.loads(JsonLines().format(_record("x")))
    assert (inner["request_id"], inner["job_id"]) == ("a", "job_1")
    assert "job_id" not in outer


def test_lines_go_to_the_file_of_the_settings(tmp_path: Path) -> None:
    root, service = logging.getLogger(), logging.getLogger("rewright")
    before, level = list(root.handlers), service.level
    settings = ServerSettings(log_format="json", log_file=tmp_path / "service.log")
    try:
        set_up_logging(settings)
        set_up_logging(settings)
        logging.getLogger("rewright.server").info("here")
    finally:
        for handler in set(root.handlers) - set(before):
            root.removeHandler(handler)
            handler.close()
        service.setLevel(level)
    (line,) = (tmp_path / "service.log").read_text().splitlines()
    assert json.loads(line)["message"] == "here"
    with pytest.raises(SettingsError, match=r"server\.log_file"):
        set_up_logging(ServerSettings(log_file=tmp_path / "none" / "service.log"))
