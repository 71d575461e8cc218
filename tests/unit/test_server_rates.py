"""Limits of each key a minute, through the application and by a clock of the test's own."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from server.app import create_app
from server.auth import Keys
from server.exceptions import RateLimitError
from server.keys import Caller
from server.rates import Rates
from server.schemas import ErrorResponse
from server.settings import LimitSettings, ServerSettings
from server.work import DurableWork
from tests.plain_backend import PlainBackend

ROW = {"question": "1 + 1?", "answer": "2"}
FIRST, SECOND = (Caller("", frozenset(), name) for name in ("first", "second"))


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_minutes_worth_may_come_at_once_and_the_rest_as_the_bucket_fills() -> None:
    clock = Clock()
    rates = Rates(LimitSettings(requests_per_minute=6), clock)
    for _ in range(6):
        rates.take_request(FIRST)
    with pytest.raises(RateLimitError) as refused:
        rates.take_request(FIRST)
    assert refused.value.retry_after_s == 10
    rates.take_request(SECOND)
    clock.now += 9.9
    with pytest.raises(RateLimitError) as refused:
        rates.take_request(FIRST)
    assert refused.value.retry_after_s == 1
    clock.now += 0.2
    rates.take_request(FIRST)
    clock.now += 3600
    for _ in range(6):
        rates.take_request(FIRST)
    with pytest.raises(RateLimitError):
        rates.take_request(FIRST)


def test_whoever_waits_as_long_as_told_is_let_in() -> None:
    clock = Clock()
    rates = Rates(LimitSettings(rows=50, rows_per_minute=70), clock)
    rates.take_rows(FIRST, 50)
    with pytest.raises(RateLimitError) as refused:
        rates.take_rows(FIRST, 50)
    assert refused.value.retry_after_s is not None
    clock.now += refused.value.retry_after_s
    rates.take_rows(FIRST, 50)


def test_a_full_request_must_fit_a_minute() -> None:
    with pytest.raises(ValidationError, match="rows_per_minute"):
        LimitSettings(rows=10, rows_per_minute=9)


async def test_keys_of_both_kinds_have_limits_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWRIGHT_API_KEYS", "first-of-the-environment, second-of-the-environment")
    settings = ServerSettings(
        state=str(tmp_path), limits=LimitSettings(rows=3, requests_per_minute=4, rows_per_minute=5)
    )
    work = DurableWork(settings)
    keys = ["first-of-the-environment", "second-of-the-environment"]
    keys += [work.keys.create(name, ["rewrite"])[1] for name in ("a", "b")]
    app = create_app(PlainBackend(), settings, Keys.from_environment(), work)
    app.state.rates = Rates(settings.limits, Clock())
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        for key in keys:
            headers = {"Authorization": f"Bearer {key}"}
            body = {"demonstrations": [ROW] * 3}
            assert (await client.post("/v1/rewrites", json=body, headers=headers)).status_code == 200
            refused = await client.post("/v1/mismatch", json=body, headers=headers)
            assert refused.status_code == 429
            ErrorResponse.model_validate(refused.json(), strict=True)
            assert refused.json()["error"]["code"] == "rows_per_minute"
            assert refused.json()["error"]["type"] == "rate_limit_error"
            assert int(refused.headers["retry-after"]) == 12
            statuses = [(await client.get("/v1/jobs", headers=headers)).status_code for _ in range(3)]
            assert statuses == [200, 200, 429]
        for _ in range(6):  # who is nobody has no bucket to empty
            assert (await client.get("/v1/jobs")).status_code == 401
        assert (await client.get("/healthz")).status_code == 200
