"""The dashboard asks only for what `/metrics` has, by labels that it has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.demonstrations import Demonstration, Message
from agent.records import Record
from agent.rewriter import Rewritten
from agent.usage import Usage
from server.app import create_app
from server.auth import Keys
from server.settings import ServerSettings
from server.work import DurableWork
from tests.plain_backend import PlainBackend

ROOT = Path(__file__).parents[2]
_SELECTOR = re.compile(r"\b((?:rewright|process)_\w+)(?:{([^}]*)})?")
_LABEL = re.compile(r'(\w+)=~?"([^"]*)"')
_BY = re.compile(r"by \(([^)]*)\)")
_WORDS = re.compile(r"{{(\w+)}}")


class Backend(PlainBackend):
    def active_adapters(self) -> dict[str, int]:
        return {"math": 3}


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return dict(json.loads((ROOT / "docker" / "grafana-dashboard.json").read_text()))


@pytest.fixture
async def exposed(tmp_path: Path) -> dict[str, dict[str, set[str]]]:
    """Labels with their values, by name of sample, of a service that has done a little of everything."""
    backend, settings = Backend(), ServerSettings(state=str(tmp_path))
    record = Record(
        Demonstration("a", (Message("user", "?"),), "!"), "rewritten", "hint", "!", 1, None, None, None, None, "m"
    )
    backend.metrics.count_rewritten(Rewritten(record, Usage(1, 1, 1), ("hygiene",)))
    transport = httpx.ASGITransport(create_app(backend, settings, Keys(), DurableWork(settings)))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        await client.get("/v1/jobs")
        text = (await client.get("/metrics")).text
    samples: dict[str, dict[str, set[str]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = samples.setdefault(sample.name, {"instance": set()})  # Prometheus adds that one
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    return samples


def _targets(dashboard: dict[str, Any]) -> list[dict[str, str]]:
    return [target for panel in dashboard["panels"] for target in panel["targets"]]


def test_every_metric_and_label_that_is_asked_for_is_exposed(
    dashboard: dict[str, Any], exposed: dict[str, dict[str, set[str]]]
) -> None:
    asked = 0
    variables = [v["query"]["query"] for v in dashboard["templating"]["list"] if v["type"] == "query"]
    queries = [(target["expr"], target["legendFormat"]) for target in _targets(dashboard)]
    for expression, legend in [*queries, *((query, "") for query in variables)]:
        selectors = _SELECTOR.findall(expression)
        assert selectors, expression
        for name, matchers in selectors:
            assert name in exposed, expression
            for label, pattern in _LABEL.findall(matchers):
                assert label in exposed[name], expression
                if label != "instance":
                    assert set(pattern.split("|")) <= exposed[name][label], expression
            grouped = {label for group in _BY.findall(expression) for label in group.split(", ")}
            assert grouped | set(_WORDS.findall(legend)) <= set(exposed[name]), expression
            asked += 1
    assert asked >= 15


def test_everything_that_the_service_itself_counts_is_shown(
    dashboard: dict[str, Any], exposed: dict[str, dict[str, set[str]]]
) -> None:
    shown = {name for target in _targets(dashboard) for name, _ in _SELECTOR.findall(target["expr"])}
    ours = {name for name in exposed if name.startswith("rewright_") and not name.endswith(("_created", "_sum"))}
    assert ours - shown == set()


def test_panels_do_not_overlap_and_have_ids_of_their_own(dashboard: dict[str, Any]) -> None:
    cells: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        own = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not own & cells, panel["title"]
        cells |= own
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
