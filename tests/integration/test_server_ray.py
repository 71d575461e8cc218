"""The service as it is run: the command line, local Ray, Ray Serve, the embedded model. One start for all tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from agent.models import ModelFiles
from server.ports import free_port
from server.schemas import MismatchResponse, RewritesResponse
from tests.waiting import wait_until

QUEUE_ROWS = 8
SETTINGS = {
    "REWRIGHT_ENGINE__THREADS": "1",
    "REWRIGHT_SERVER__DRAIN_TIMEOUT_S": "1200",
    "REWRIGHT_SERVER__LIMITS__ROWS": str(QUEUE_ROWS),
    "REWRIGHT_SERVER__LIMITS__QUEUE_ROWS": str(QUEUE_ROWS),
    "REWRIGHT_SERVER__LIMITS__BODY_BYTES": "65536",
    "REWRIGHT_SERVER__LIMITS__RETRY_AFTER_S": "3",
}
APPLES = {"id": "apples", "question": "Mira has 3 apples and buys 4. How many?", "answer": "3+4=<<3+4=7>>7\n#### 7"}
QUICK = {"temperature": 0.7, "samples": 2, "max_tokens": 24, "seed": 0}
PATIENCE_S = 1200.0


@dataclass(frozen=True)
class Service:
    """A running service."""

    process: subprocess.Popen[bytes]
    http: httpx.Client
    log: Path

    def rewrite(self, rows: list[Any], **sampling: Any) -> httpx.Response:
        body = {"demonstrations": rows, "strategy": "solve", "sampling": QUICK | sampling}
        return self.http.post("/v1/rewrites", json=body)

    def rows_in_work(self) -> int:
        answer = self.http.get("/readyz")
        return int(answer.json()["queue_rows"]) if answer.status_code == 200 else -1

    def processes(self, title: str) -> list[psutil.Process]:
        """Its Ray processes whose title starts so."""
        return [p for p in psutil.Process(self.process.pid).children(recursive=True) if title in " ".join(p.cmdline())]


@pytest.fixture(scope="module")
def service(model_files: ModelFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    log = tmp_path_factory.mktemp("service") / "log"
    port = free_port()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", "serve", "--port", str(port)],
            env=os.environ | SETTINGS,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S, trust_env=False)
    running = Service(process, http, log)
    try:
        wait_until(lambda: b"ready at" in log.read_bytes() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield running
    finally:
        http.close()
        if process.poll() is None:
            process.terminate()
            process.wait(PATIENCE_S)


def test_the_time_from_start_to_first_answer_is_reported(service: Service) -> None:
    ready = next(line for line in service.log.read_text().splitlines() if "ready at" in line)
    assert service.http.base_url.netloc.decode() in ready
    assert " after " in ready


def test_ready_names_the_model_behind_the_handle(service: Service) -> None:
    answer = service.http.get("/readyz")
    assert answer.json() == {"status": "ready", "model": "smollm2-135m", "max_length": 8192, "queue_rows": 0}


def test_every_demonstration_gets_a_record_in_order_and_a_bad_one_says_where(service: Service) -> None:
    rows = [APPLES, {"question": "no answer"}, APPLES, {"messages": [{"role": "user", "content": "x"}]}]
    answer = service.rewrite(rows)
    assert answer.status_code == 200
    RewritesResponse.model_validate(answer.json(), strict=True)
    first, unanswered, duplicate, unfinished = answer.json()["data"]
    assert first["id"] == "apples"
    assert first["status"] in ("self_solved", "fallback")
    assert first["mismatch"]["expert"]["tokens"] > 0
    assert first["source"] == APPLES
    assert [unanswered["error"]["line"], duplicate["error"]["line"], unfinished["error"]["line"]] == [2, 3, 4]
    assert unanswered["error"]["field"] == "answer"
    assert duplicate["error"]["field"] == "id"
    assert answer.json()["usage"]["completion_tokens"] > 0


def test_surprisal_comes_token_by_token_and_adds_up(service: Service) -> None:
    too_long = {"question": "word " * 9000, "answer": "x"}
    answer = service.http.post("/v1/mismatch", json={"demonstrations": [APPLES, too_long]})
    assert answer.status_code == 200
    MismatchResponse.model_validate(answer.json(), strict=True)
    apples, refused = answer.json()["data"]
    nats = [token["nats"] for token in apples["tokens"]]
    assert apples["mismatch"]["tokens"] == len(nats)
    assert apples["mismatch"]["nll"] == pytest.approx(sum(nats) / len(nats), abs=1e-5)
    assert "".join(token["text"] for token in apples["tokens"]) == "3+4=7\n#### 7<|im_end|>"
    # Raised in the engine's process, it arrives as this row's error.
    assert "8192" in refused["error"]["message"]
    assert refused["error"]["line"] == 2


def test_the_same_seed_gives_the_same_rewrite(service: Service) -> None:
    first, second = (service.rewrite([APPLES]).json()["data"] for _ in range(2))
    assert first == second


def test_a_chunked_body_is_cut_off_behind_the_proxy(service: Service) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(64):
            yield b" " * 4096

    answer = service.http.post("/v1/rewrites", content=chunks(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"


def test_an_upload_without_end_is_refused_behind_the_proxy_and_one_with_its_length_is_taken(service: Service) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(64):
            yield b'{"question": "1 + 1?", "answer": "2"}\n'

    raw = {"Content-Type": "application/x-ndjson"}
    endless = service.http.post("/v1/files", content=chunks(), headers=raw)
    assert (endless.status_code, endless.json()["error"]["code"]) == (411, "length_required")
    whole = service.http.post("/v1/files", content=b"".join(chunks()), headers=raw)
    assert (whole.status_code, whole.json()["rows"]) == (200, 64)


def test_a_full_house_answers_429_with_retry_after(service: Service) -> None:
    with ThreadPoolExecutor() as pool:
        busy = pool.submit(service.rewrite, [APPLES | {"id": str(i)} for i in range(QUEUE_ROWS)])
        wait_until(lambda: service.rows_in_work() == QUEUE_ROWS)
        refused = service.rewrite([APPLES])
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "3"
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert busy.result().status_code == 200


def test_work_ends_when_its_client_goes_away(service: Service) -> None:
    rows = [APPLES | {"id": str(i)} for i in range(QUEUE_ROWS)]
    body = {"demonstrations": rows, "sampling": {"samples": 64, "max_tokens": 400}}  # many times our patience
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(service.http.base_url.join("/v1/rewrites"), json=body, timeout=2.0)
    wait_until(lambda: service.rows_in_work() == 0)
    assert service.rewrite([APPLES]).status_code == 200


def test_a_dead_engine_is_replaced_loses_nothing_and_is_not_called_ready(service: Service) -> None:
    with ThreadPoolExecutor() as pool:
        in_flight = pool.submit(service.rewrite, [APPLES], max_tokens=48)
        wait_until(lambda: service.rows_in_work() == 1)
        (engine,) = service.processes("ServeReplica:rewright:engine")
        engine.kill()
        engine.wait()
        refused = service.http.get("/readyz")
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "engine_unavailable"
        assert refused.headers["retry-after"] == "3"
        assert service.http.get("/healthz").status_code == 200
        wait_until(lambda: service.http.get("/readyz").status_code == 200)
        answer = in_flight.result()
    assert answer.status_code == 200
    assert answer.json()["data"][0]["status"] in ("self_solved", "fallback")
    (replacement,) = service.processes("ServeReplica:rewright:engine")
    assert replacement.pid != engine.pid


def test_nothing_of_ray_can_be_reached_from_another_machine_without_its_token(service: Service) -> None:
    environments = [process.environ() for process in service.processes("raylet/raylet")]
    assert environments
    for environment in environments:
        assert environment["RAY_AUTH_MODE"] == "token"
        assert len(environment["RAY_AUTH_TOKEN"]) == 64


def test_shutting_down_finishes_what_is_in_flight_and_leaves_nothing_behind(service: Service) -> None:
    """The last test of this service: nothing of it runs after it."""
    left = psutil.Process(service.process.pid).children(recursive=True)
    with ThreadPoolExecutor() as pool:
        in_flight = pool.submit(service.rewrite, [APPLES], max_tokens=48)
        wait_until(lambda: service.rows_in_work() == 1)
        service.process.send_signal(signal.SIGTERM)
        wait_until(lambda: b"shutting down" in service.log.read_bytes())
        answer = in_flight.result()
    assert answer.status_code == 200
    assert answer.json()["data"][0]["id"] == "apples"
    assert service.process.wait(PATIENCE_S) == 0
    _, alive = psutil.wait_procs(left, timeout=PATIENCE_S)
    assert alive == []


def test_a_port_that_a_process_of_ray_takes_first_is_one_clear_line(model_files: ModelFiles) -> None:
    command = [sys.executable, "-m", "cli.main", "serve", "--port", "52365"]  # where Ray's agent of a node listens
    ended = subprocess.run(command, env=os.environ | SETTINGS, capture_output=True, text=True, timeout=PATIENCE_S)
    assert ended.returncode == 3
    assert ended.stderr.strip().splitlines()[-1].startswith("error: Ray Serve does not listen on 127.0.0.1:52365: ")
    assert "Traceback" not in ended.stderr
