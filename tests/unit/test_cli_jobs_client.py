"""The client of files and jobs, over connections that break."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.exceptions import ServiceError
from cli.jobs_client import JobsClient

Answer = Callable[[httpx.Request], httpx.Response]


class Broken(httpx.SyncByteStream):
    """Bytes, after which the connection is lost."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __iter__(self) -> Iterator[bytes]:
        yield self._content
        raise httpx.ReadError("the connection is lost")


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were waited, by a clock that only waiting moves."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    monkeypatch.setattr("time.monotonic", lambda: 1.0 + sum(waited))
    return waited


def client(answer: Answer, patience_s: float = 60.0) -> JobsClient:
    made = JobsClient("http://127.0.0.1:9", None, patience_s=patience_s)
    made._http = httpx.Client(transport=httpx.MockTransport(answer), base_url="http://127.0.0.1:9")
    return made


def events(*streams: httpx.Response | None) -> Answer:
    """Answers for the events of a job that ends when all is told; None is a service that is away."""
    left = list(streams)

    def answer(request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith("/events"):
            return httpx.Response(200, json={"id": "job_1", "status": "in_progress" if left else "completed"})
        if (stream := left.pop(0)) is None:
            raise httpx.ConnectError("refused")
        return stream

    return answer


def test_a_service_that_shows_signs_of_life_is_followed_however_often_its_streams_break() -> None:
    counts: list[dict[str, Any]] = []
    told = b'id: 1\nevent: progress\ndata: {"completed": 2}\n\n'
    beat = b": still here\n\n"
    streams = [httpx.Response(200, stream=Broken(text)) for text in (b"", beat, b"", beat, told, b"")]
    job = client(events(*streams, httpx.Response(200)), 1.5).watch("job_1", counts.append)
    assert (job["status"], counts) == ("completed", [{"completed": 2}])


def test_a_service_that_stays_away_is_given_up(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ServiceError, match="the job goes on without"):
        client(events(None, None, None, None), 2.5).watch("job_1", lambda _: None)
    said = " ".join(capsys.readouterr().err.split())
    assert said == "http://127.0.0.1:9 cannot be reached: refused; the job goes on; trying for 2 s"


@pytest.mark.parametrize("status", [404, 500, 503])
def test_a_job_is_followed_over_what_a_proxy_says_while_the_service_is_being_replaced(status: int) -> None:
    away = httpx.Response(status, text="Path '/v1/jobs/job_1' not found. See /-/routes for available routes.")
    answers = [away, away, httpx.Response(200, json={"id": "job_1", "status": "in_progress"}), httpx.Response(200)]
    answers.append(httpx.Response(200, json={"id": "job_1", "status": "completed"}))
    assert client(lambda _: answers.pop(0)).watch("job_1", lambda _: None)["status"] == "completed"
    assert answers == []


def test_a_job_that_the_service_does_not_know_is_not_waited_for() -> None:
    unknown = httpx.Response(404, json={"error": {"message": "there is no such job", "code": "unknown_job"}})
    with pytest.raises(ServiceError, match="answered 404: there is no such job"):
        client(lambda _: unknown).watch("job_1", lambda _: None)


def test_a_download_is_begun_again_until_it_is_whole(tmp_path: Path, pauses: list[float]) -> None:
    answers = [
        httpx.Response(429, headers={"Retry-After": "7"}),
        httpx.Response(503),
        httpx.Response(200, stream=Broken(b"half")),
        httpx.Response(200, content=b"whole"),
    ]
    client(lambda _: answers.pop(0)).save("file_1", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"whole"
    assert pauses == [7.0, 1.0, 2.0]


@pytest.mark.parametrize("what", ["upload", "save"])
def test_a_connection_that_is_lost_after_a_long_while_is_tried_again(
    tmp_path: Path, pauses: list[float], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = [None, httpx.Response(200, json={"id": "file_1"})]

    def answer(request: httpx.Request) -> httpx.Response:
        if (found := answers.pop(0)) is None:
            pauses.append(600.0)
            raise httpx.ReadError("lost")
        return found

    (tmp_path / "file").write_text("rows")
    made = client(answer)
    made.upload(tmp_path / "file") if what == "upload" else made.save("file_1", tmp_path / "file")
    assert answers == []
    assert "cannot be reached: lost; trying again for 60 s" in " ".join(capsys.readouterr().err.split())


def test_patience_with_a_download_ends_and_leaves_no_file(tmp_path: Path, pauses: list[float]) -> None:
    with pytest.raises(ServiceError, match="answered 503"):
        client(lambda _: httpx.Response(503), 2.0).save("file_1", tmp_path / "out")
    assert pauses == [0.5, 1.0, 0.5]
    assert not (tmp_path / "out").exists()
    answer = httpx.Response(404, json={"error": {"message": "there is no file"}})
    with pytest.raises(ServiceError, match="answered 404: there is no file"):
        client(lambda _: answer).save("file_1", tmp_path / "out")
