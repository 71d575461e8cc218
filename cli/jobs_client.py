"""Files and jobs of a running service over HTTP: uploads, jobs, their events, downloads. Retried where that is safe."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx

from agent.disk import replacing
from cli.client import (
    Pauses,
    answered_object,
    bearer,
    may_come_later,
    refusal,
    retry_after,
    service_address,
    unreachable,
)
from cli.console import say
from cli.exceptions import ServiceError

_PAGE = 100
_CHUNK = 1 << 20
_UPLOAD_SILENCE_S = 900.0  # a busy service checks what it has before it takes more, and all of it before it answers
TERMINAL = ("completed", "failed", "cancelled")

T = TypeVar("T")


class _BusyError(ServiceError):
    """The service asks to come back, after so many seconds at least."""

    def __init__(self, refused: ServiceError, retry_after_s: float) -> None:
        super().__init__(str(refused))
        self.retry_after_s = retry_after_s


class JobsClient:
    """A connection to one service.

    Args:
        url: base address, `http://127.0.0.1:8000`.
        key: bearer key, None for a service without keys.
        patience_s: how long a service that is busy or cannot be reached is tried again.

    Raises:
        UsageError: the address is none.
    """

    def __init__(self, url: str, key: str | None, *, patience_s: float) -> None:
        # A stream of events is silent for 15 seconds at most.
        timeout = httpx.Timeout(60.0, connect=30.0)
        self._http = httpx.Client(base_url=service_address(url), headers=bearer(key), timeout=timeout)
        self._url, self._patience_s = url, patience_s
        self._told: dict[str, float] = {}

    def __enter__(self) -> JobsClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def upload(self, path: Path) -> dict[str, Any]:
        """Send a file. Raises ServiceError."""

        def content() -> Iterator[bytes]:
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    yield chunk

        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(path.stat().st_size)}
        query = {"filename": path.name}
        timeout = httpx.Timeout(_UPLOAD_SILENCE_S, connect=30.0)
        return self._json(
            lambda: self._http.post("/v1/files", params=query, content=content(), headers=headers, timeout=timeout)
        )

    def submit(
        self, file_id: str | None, params: dict[str, Any], kind: str = "rewrite", *, key: str | None = None
    ) -> dict[str, Any]:
        """Start a job; sent twice for want of an answer, or with the same `key`, it is one job. Raises ServiceError.

        `file_id` is None for an exam of benchmarks alone.
        """
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        body = {"kind": kind, "input_file": file_id, "params": params}
        return self._json(lambda: self._http.post("/v1/jobs", json=body, headers=headers))

    def jobs(self) -> Iterator[dict[str, Any]]:
        """All jobs, newest first. Raises ServiceError."""
        return self._all("/v1/jobs")

    def files(self) -> Iterator[dict[str, Any]]:
        """All files, newest first. Raises ServiceError."""
        return self._all("/v1/files")

    def uploads(self, content: str) -> list[dict[str, Any]]:
        """The uploads whose SHA-256 is `content`, newest first. Raises ServiceError."""
        return [file for file in self.files() if file["purpose"] == "input" and file["sha256"] == content]

    def job(self, job_id: str) -> dict[str, Any]:
        """One job. Raises ServiceError."""
        return self._json(lambda: self._http.get(f"/v1/jobs/{job_id}"))

    def cancel(self, job_id: str) -> dict[str, Any]:
        """End a job early. Raises ServiceError."""
        return self._json(lambda: self._http.post(f"/v1/jobs/{job_id}/cancel"))

    def watch(self, job_id: str, on_counts: Callable[[dict[str, int]], None]) -> dict[str, Any]:
        """Follow a job until it ends, over lost connections and restarts of the service; returns the job then.

        Args:
            job_id: of the job.
            on_counts: told the counts whenever they change.

        Raises:
            ServiceError: the service refuses, or stays away for longer than the client is patient.
        """
        last = ""
        failing_since: float | None = None
        told = False
        while True:
            try:
                for event in self._events(job_id, last):
                    failing_since, told = None, False
                    if event is not None:
                        last, kind, data = event
                        if kind == "progress":
                            on_counts(data)
            except httpx.RequestError as error:
                now = time.monotonic()
                if failing_since is None:  # many a stream breaks and goes on at once
                    failing_since = now
                elif now - failing_since > self._patience_s:
                    raise ServiceError(f"{self._url} cannot be reached any more; the job goes on without") from None
                elif not told:
                    told = True
                    say(f"{unreachable(self._url, error)}; the job goes on; trying for {self._patience_s:.0f} s")
                time.sleep(1)
                continue
            job = self.job(job_id)
            if job["status"] in TERMINAL:
                return job
            time.sleep(1)  # the service is going down, and will be back

    def download(self, file_id: str, write: Callable[[bytes], object]) -> None:
        """Hand the bytes of a file to `write`, in one try: it cannot take them back. Raises ServiceError."""
        try:
            self._fetch(file_id, write)
        except httpx.RequestError as error:
            raise unreachable(self._url, error) from error

    def save(self, file_id: str, path: Path) -> None:
        """Fetch a file to `path`, which is whole or not there. Raises ServiceError and OSError."""

        def fetch() -> None:
            with replacing(path) as unfinished, unfinished.open("wb") as file:
                self._fetch(file_id, file.write)

        self._patiently(fetch)

    def _fetch(self, file_id: str, write: Callable[[bytes], object]) -> None:
        with self._http.stream("GET", f"/v1/files/{file_id}/content") as answer:
            for chunk in self._accepted(answer).iter_bytes(_CHUNK):
                write(chunk)

    def _all(self, path: str) -> Iterator[dict[str, Any]]:
        query: dict[str, Any] = {"limit": _PAGE}
        while True:
            page = self._json(lambda: self._http.get(path, params=query))
            yield from page.get("data") or ()
            if not page.get("has_more"):
                return
            query["after"] = page["data"][-1]["id"]

    def _events(self, job_id: str, after: str) -> Iterator[tuple[str, str, dict[str, Any]] | None]:
        """Id, type and data of each event, None for any other sign of life; ends when the service closes the stream."""
        headers = {"Last-Event-ID": after} if after else {}
        number = kind = ""
        with self._http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as answer:
            if answer.status_code != httpx.codes.OK:
                answer.read()
                if may_come_later(answer):
                    return
            lines = self._accepted(answer).iter_lines()
            yield None
            for line in lines:
                name, _, value = line.partition(": ")
                if name == "id":
                    number = value
                elif name == "event":
                    kind = value
                elif name == "data":
                    try:
                        yield number, kind, json.loads(value)
                    except ValueError:
                        raise ServiceError(f"{self._url} sent an event that is not JSON") from None
                else:
                    yield None

    def _json(self, send: Callable[[], httpx.Response]) -> dict[str, Any]:
        """The answer of the first try that is not about being busy. Raises ServiceError when patience ends."""
        return self._patiently(lambda: answered_object(self._url, self._accepted(send())))

    def _accepted(self, answer: httpx.Response) -> httpx.Response:
        """An answer that is a success. Raises ServiceError for any other, with its text."""
        if answer.status_code == httpx.codes.OK:
            return answer
        answer.read()
        failure = refusal(self._url, answer)
        raise _BusyError(failure, retry_after(answer)) if may_come_later(answer) else failure

    def _patiently(self, work: Callable[[], T]) -> T:
        """The result of `work`, which is done again while the service is busy or cannot be reached."""
        pauses = Pauses(self._told)
        while True:
            try:
                return work()
            except httpx.RequestError as error:
                pause = pauses.next(unreachable(self._url, error), self._patience_s)
            except _BusyError as error:
                pause = pauses.next(error, self._patience_s, error.retry_after_s)
            time.sleep(pause)
