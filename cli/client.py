"""Work sent to a running service: batches of demonstrations over HTTP, retried, with local ids and sources kept.

Not here: order and concurrency of batches (`agent.pipeline.map_in_order`).
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from types import TracebackType
from typing import Any

import httpx

from agent.demonstrations import BadRow, Demonstration
from agent.early import EarlyRows
from agent.pipeline import map_in_order
from agent.records import COLUMNS, error_row, is_row
from agent.strict_json import JsonValueError, check_json_value, parse_json
from agent.usage import Usage
from cli.console import say
from cli.exceptions import RefusedError, ServiceError, UsageError

Row = Demonstration | BadRow

BATCH_ROWS = 16
_BATCH_BYTES = 2 * 2**20
_REQUESTS = 4  # in flight: enough to keep the engine's batches full while answers travel
_BUSY_PATIENCE_S = 900.0
_LONGEST_WAIT_S = 30.0
# Longer than a service allows itself for a request, unless it is set otherwise: it knows when to give up.
_SILENCE_S = 3600.0
_TOLD_S = 60.0  # a failure that comes again within this time is the same one, and was said
_FATAL = (401, 403, 404, 409)
_BUSY = (429, 502, 503, 504)
_SLOW = (408, 425)  # the client's fault as HTTP has it, and another time it may do better
# What Ray's proxy answers, as text, while the application is not there yet, or not any more.
_AWAY = (404, 500)
_TOKENS = ("prompt_tokens", "completion_tokens", "scored_tokens")


class RewriteClient:
    """A connection to one service.

    Args:
        url: base address, `http://127.0.0.1:8000`.
        key: bearer key, None for a service without keys.
        options: further fields of each request (`strategy`, `adapter`, `sampling`).
        patience_s: how long an unreachable service is tried again.

    Raises:
        UsageError: the address is none.
    """

    def __init__(self, url: str, key: str | None, options: dict[str, Any], *, patience_s: float) -> None:
        headers = {"Content-Type": "application/json", **bearer(key)}
        timeout = httpx.Timeout(30.0, read=_SILENCE_S)
        self._http = httpx.AsyncClient(base_url=service_address(url), headers=headers, timeout=timeout)
        self._url = url
        self._options = dict(options)
        self._patience_s = patience_s
        self._told: dict[str, float] = {}

    async def __aenter__(self) -> RewriteClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def ready(self) -> str:
        """Wait until the service is ready and return the name of its model. Raises ServiceError."""
        answer = await self._request("GET", "/readyz", None)
        if answer.status_code != 200:
            raise refusal(self._url, answer)
        return str(answered_object(self._url, answer).get("model"))

    async def pin_adapter(self) -> str | None:
        """Have all requests name the version of the adapter that they would get now, whatever becomes active later.

        Returns it as records name it, None for the base model alone. Raises ServiceError.
        """
        asked = self._options.get("adapter")
        if asked is None or "@" not in asked:
            answer = await self._request("GET", "/v1/adapters", None)
            if answer.status_code != 200:
                raise refusal(self._url, answer)
            asked = _version_of(asked, answered_object(self._url, answer))
        if asked is not None:
            self._options["adapter"] = asked
        return asked

    async def rewrite(self, demonstrations: list[Demonstration], *, model: str) -> tuple[list[dict[str, Any]], Usage]:
        """Output rows of `demonstrations`, as the local rewriter would write them.

        Where the service refuses a batch, or has no time for it, its halves are sent: one bad row fails alone.

        Raises:
            ServiceError: the service cannot be reached, fails, or refuses what is not about a row.
            UsageError: it refuses an option.
        """
        if not demonstrations:
            return [], Usage()
        body = {"demonstrations": [_as_row(d) for d in demonstrations], **self._options}
        answer = await self._request("POST", "/v1/rewrites", body)
        if answer.status_code == 200:
            return self._records(answer, demonstrations)
        failed = refusal(self._url, answer)
        # A defect that is about one row only it answers with an error row.
        if answer.is_server_error and not _took_too_long(answer):
            raise ServiceError(f"{failed}; with an output file, --resume goes on once that is mended")
        if _about_options(answer, self._options):
            raise UsageError(str(failed))
        if answer.status_code in _FATAL or answer.is_redirect:
            raise failed
        if len(demonstrations) == 1:
            only = demonstrations[0]
            bad = BadRow(only.id, only.line or 0, str(failed), source=only.source)
            return [error_row(bad, model)], Usage()
        middle = len(demonstrations) // 2
        left, left_usage = await self.rewrite(demonstrations[:middle], model=model)
        right, right_usage = await self.rewrite(demonstrations[middle:], model=model)
        return left + right, left_usage + right_usage

    async def _request(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        """The first answer that is not about being busy or away. Raises ServiceError when patience ends."""
        content = json.dumps(body) if body else None
        pauses = Pauses(self._told)
        while True:
            try:
                answer = await self._http.request(method, path, content=content)
            except httpx.RequestError as error:
                pause = pauses.next(unreachable(self._url, error), self._patience_s)
            else:
                if not may_come_later(answer) or _took_too_long(answer):
                    return answer
                patience_s = _BUSY_PATIENCE_S if answer.status_code in _BUSY else self._patience_s
                pause = pauses.next(refusal(self._url, answer), patience_s, retry_after(answer))
            await asyncio.sleep(pause)

    def _records(
        self, answer: httpx.Response, demonstrations: list[Demonstration]
    ) -> tuple[list[dict[str, Any]], Usage]:
        content = answered_object(self._url, answer)
        records, usage = content.get("data"), content.get("usage")
        if not isinstance(records, list) or not isinstance(usage, dict):
            raise ServiceError(f"{self._url} answered without data and usage: is it this service, and this version?")
        if [r.get("id") if isinstance(r, dict) else None for r in records] != [d.id for d in demonstrations]:
            raise ServiceError(f"{self._url} answered with other rows than it was sent")
        if missing := {name for record in records for name in COLUMNS - record.keys()}:
            raise ServiceError(
                f"{self._url} answered with rows without {', '.join(sorted(missing))}: is it this version?"
            )
        if not all(map(is_row, records)):
            raise ServiceError(f"{self._url} answered with rows that are none: is it this version?")
        if not all(isinstance(usage.get(name, 0), int) for name in _TOKENS):
            raise ServiceError(f"{self._url} answered with token counts that are no numbers: is it this version?")
        for record, demonstration in zip(records, demonstrations, strict=True):
            record["source"] = demonstration.source
            if record.get("error"):
                record["error"]["line"] = demonstration.line
        return records, Usage(*(usage.get(name, 0) for name in _TOKENS))


class Pauses:
    """Between tries of one request: each twice as long as the last, or as long as the service asks for.

    Args:
        told: when each failure was last seen, of all requests of a client: what stays the same is said once.
    """

    def __init__(self, told: dict[str, float]) -> None:
        self._told = told
        self._failing_since: float | None = None
        self._wait = 0.5

    def next(self, failure: ServiceError, patience_s: float, asked_s: float = 0.0) -> float:
        """Seconds until the next try; says why there is a pause.

        Args:
            failure: of the last one.
            patience_s: since the first failure, in all.
            asked_s: what the service asks for.

        Raises:
            ServiceError: patience has ended; it is `failure`.
        """
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        left = self._failing_since + patience_s - now
        if left <= 0:
            raise failure
        if now - self._told.get(str(failure), -_TOLD_S) >= _TOLD_S:
            say(f"{failure}; trying again for {left:.0f} s")
        self._told[str(failure)] = now
        pause = min(max(self._wait, asked_s), left)
        self._wait = min(2 * self._wait, _LONGEST_WAIT_S)
        return pause


def api_key() -> str | None:
    """The key that this user shows services; None for none."""
    return os.environ.get("REWRIGHT_API_KEY")


def answered_object(url: str, answer: httpx.Response) -> dict[str, Any]:
    """The JSON object that the service at `url` answered with. Raises ServiceError when it is none."""
    try:
        content = parse_json(answer.content.decode())
        check_json_value(content)
    except (UnicodeDecodeError, JsonValueError) as error:
        raise ServiceError(f"{url} answered something that is not JSON") from error
    if not isinstance(content, dict):
        raise ServiceError(f"{url} answered JSON that is not an object")
    return content


def refusal(url: str, answer: httpx.Response) -> ServiceError:
    """What an answer that is no success says, as an error to raise: RefusedError where it would be the same again."""
    message = error_fields(answer).get("message") or answer.reason_phrase
    for_good = answer.is_client_error and answer.status_code not in _SLOW and not may_come_later(answer)
    return (RefusedError if for_good else ServiceError)(f"{url} answered {answer.status_code}: {message}")


def may_come_later(answer: httpx.Response) -> bool:
    """Whether the same request makes sense again: the service is busy, starting or being replaced."""
    return answer.status_code in _BUSY or (answer.status_code in _AWAY and not error_fields(answer))


def unreachable(url: str, error: httpx.RequestError) -> ServiceError:
    """That nothing, or nothing whole, came from the service at `url`, as an error to raise."""
    return ServiceError(f"{url} cannot be reached: {str(error) or type(error).__name__}")


def service_address(url: str) -> httpx.URL:
    """The base address of a service. Raises UsageError for what is no http address."""
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UsageError(f"--url {url!r} is no address: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.host:
        raise UsageError(f"--url {url!r} is no http address, as http://127.0.0.1:8000 is one")
    return parts


def bearer(key: str | None) -> dict[str, str]:
    """The header that shows `key`, none without one. Raises UsageError for a key that cannot travel in a header."""
    if key and not (key.isascii() and key.isprintable()):
        raise UsageError("REWRIGHT_API_KEY has characters that no key has: copy it anew")
    return {"Authorization": f"Bearer {key}"} if key else {}


async def rewrite_rows_remotely(
    client: RewriteClient, rows: Iterable[Row], *, model: str, early: EarlyRows | None = None
) -> AsyncGenerator[tuple[dict[str, Any], Usage], None]:
    """As `agent.pipeline.rewrite_rows`, with the work done by the service.

    The tokens of a whole batch are reported with its first row.
    """

    async def one(batch: list[Row]) -> list[tuple[dict[str, Any], Usage]]:
        results = {row.id: error_row(row, model) for row in batch if isinstance(row, BadRow)}
        if early:
            results |= {row.id: finished for row in batch if (finished := early.find(row))}
        asked = [row for row in batch if isinstance(row, Demonstration) and row.id not in results]
        records, usage = await client.rewrite(asked, model=model)
        for record in records:
            results[record["id"]] = record
            if early:
                early.keep(record)
        return [(results[row.id], Usage() if i else usage) for i, row in enumerate(batch)]

    async with aclosing(map_in_order(one, _batches(rows), _REQUESTS)) as batches:
        async for results in batches:
            for result in results:
                yield result


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Runs of rows, bounded in number and in bytes."""
    batch: list[Row] = []
    size = 0
    for row in rows:
        needed = len(json.dumps(_as_row(row))) if isinstance(row, Demonstration) else 0
        if batch and (len(batch) == BATCH_ROWS or size + needed > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += needed
    if batch:
        yield batch


def _as_row(demonstration: Demonstration) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": demonstration.id,
        "prompt": [{"role": m.role, "content": m.content} for m in demonstration.prompt],
        "completion": demonstration.expert,
    }
    if demonstration.reference_answer is not None:
        row["reference_answer"] = demonstration.reference_answer
    if demonstration.task is not None:
        row["task"] = demonstration.task
    return row


def _version_of(asked: str | None, listed: dict[str, Any]) -> str | None:
    """The adapter that `asked` means now, by the body of `GET /v1/adapters`: `name@version` of a published one.

    What has no active version stays as it is: the service says so of the first request.
    """
    adapters, default = listed.get("data"), listed.get("default")
    if not isinstance(adapters, list) or not isinstance(default, str | None):
        raise ServiceError("the service's list of adapters is none: is it this service, and this version?")
    if asked is None or asked == default:
        return default
    active = {a.get("name"): a.get("active") for a in adapters if isinstance(a, dict)}.get(asked)
    return asked if active is None else f"{asked}@{active}"


def _took_too_long(answer: httpx.Response) -> bool:
    """Whether the service has stopped work at its own limit: the same again would end the same way."""
    return answer.status_code == 504 and error_fields(answer).get("code") == "work_timeout"


def _about_options(answer: httpx.Response, options: dict[str, Any]) -> bool:
    param = str(error_fields(answer).get("param") or "")
    return param.split(".")[0] in options


def error_fields(answer: httpx.Response) -> dict[str, Any]:
    """The error of an answer, empty where it has none of the service's shape."""
    try:
        fields = answer.json()["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def retry_after(answer: httpx.Response) -> float:
    """Seconds the service asks to wait, 0 where it does not say."""
    text = answer.headers.get("Retry-After", "")
    return min(float(text), 300.0) if text.isdecimal() else 0.0
