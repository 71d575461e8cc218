"""The examples of the OpenAPI description are what the service would answer."""

from __future__ import annotations

import pytest

from agent.demonstrations import BadRow
from agent.intake import read_json_rows
from agent.mismatch import summarise
from server.examples import MISMATCH_ANSWER, MISMATCH_REQUESTS


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
