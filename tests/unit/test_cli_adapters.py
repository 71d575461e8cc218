"""`rewright adapters`: what is listed and shown of published adapters, and what a service is asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from server.app import create_app
from server.auth import Keys
from server.exceptions import UnknownNameError
from server.metrics import Metrics
from server.settings import ServerSettings
from server.work import DurableWork
from tests.command_line import run_main

Run = Callable[..., tuple[int, str, str]]

CARD: dict[str, Any] = {
    "name": "math",
    "version": "1",
    "base_model": "tiny",
    "base_revision": "4b5a9c",
    "data": {"file": "train.jsonl", "rows": 128, "sha256": "0f3a"},
    "reward": "paper",
    "curves": [{"step": 0, "pass_rate": 0.25}],
    "held_out": {"pass_rate": 0.625, "mismatch": 0.875, "expert_mismatch": 1.5},
    "step": 20,
    "versions": {"torch": "2.13.0"},
    "created": "2026-01-02T03:04:05+00:00",
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs `rewright adapters` where two versions are published; returns exit code and both outputs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for version in ("1", "2"):
        publish(tmp_path / "adapters" / "math" / version, CARD | {"version": version})

    def rewright(*arguments: str) -> tuple[int, str, str]:
        code, out, err = run_main(monkeypatch, capsys, "adapters", *arguments)
        return code, " ".join(out.split()), err

    return rewright


def publish(folder: Path, card: object) -> None:
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").touch()
    (folder / "adapter_config.json").write_text('{"r": 8, "lora_alpha": 16}')
    (folder / "rewright.json").write_text(json.dumps(card))


def test_published_versions_are_listed_with_their_scores(run: Run) -> None:
    code, out, _ = run("list")
    assert code == 0
    for version in ("1", "2"):
        assert f"math@{version} │ tiny │ paper │ 0.625 │ 0.875 │ 1.500 │ 2026-01-02 03:04 │" in out


def test_the_list_as_json_holds_the_cards_and_where_they_lie(run: Run) -> None:
    _, out, _ = run("list", "adapters", "--json")
    first, second = json.loads(out)
    assert first == {"path": "adapters/math/1", **CARD}
    assert second["path"] == "adapters/math/2"


def test_a_broken_card_is_named_and_the_others_are_listed(run: Run, tmp_path: Path) -> None:
    publish(tmp_path / "adapters" / "broken" / "1", [])
    code, out, err = run("list", "--json")
    assert (code, len(json.loads(out))) == (0, 2)
    assert "left out: adapters/broken/1/rewright.json must hold a JSON object" in err


def test_a_card_from_elsewhere_may_lack_everything_but_its_names(run: Run, tmp_path: Path) -> None:
    odd = {"name": "odd", "version": "1", "base_model": "[bold]tiny", "held_out": {"pass_rate": "high"}, "data": 3}
    publish(tmp_path / "adapters" / "odd" / "1", odd)
    assert "odd@1 │ [bold]tiny │ │ │ │ │" in run("list")[1]
    assert run("show", "adapters/odd")[0] == 0


def test_a_missing_folder_is_wrong_use(run: Run) -> None:
    assert run("list", "none")[::2] == (2, "error: none: no such folder")


@pytest.mark.parametrize("path", ["adapters/math", "adapters/math@2", "adapters/math/2"])
def test_one_adapter_is_shown_by_any_of_its_names(run: Run, path: str) -> None:
    code, out, _ = run("show", path)
    assert code == 0
    assert out.startswith("math@2 ")
    for fact in ("folder │ adapters/math/2", "rank 8, alpha 16", "train.jsonl, 128 rows", "torch version │ 2.13.0"):
        assert fact in out
    assert "pass_rate │ 0.625" in out


def test_one_adapter_as_json_is_its_card(run: Run) -> None:
    _, out, _ = run("show", "adapters/math@1", "--json")
    assert json.loads(out) == {"path": "adapters/math/1", **CARD}


def test_an_adapter_without_a_card_cannot_be_shown(run: Run, tmp_path: Path) -> None:
    (tmp_path / "adapters" / "math" / "2" / "rewright.json").unlink()
    code, out, err = run("show", "adapters/math")
    assert (code, out) == (2, "")
    assert "adapters/math/2/rewright.json cannot be read: No such file" in err


def test_a_missing_command_shows_which_there_are(run: Run) -> None:
    code, _, err = run()
    assert code == 2
    assert "Commands:" in err


KEY = "key-of-the-adapters-service"


class Backend:
    """Knows two versions of one adapter; the rest of the service is real."""

    active = 1
    tracer = None

    def __init__(self) -> None:
        self.metrics = Metrics()

    async def list_adapters(self) -> dict[str, Any]:
        versions = [{"version": v, "base_model": "tiny", "loaded": v == self.active} for v in (1, 2)]
        return {"data": [{"name": "math", "active": self.active, "versions": versions}], "default": None}

    async def activate_adapter(self, name: str, version: int) -> dict[str, Any]:
        if version > 2:
            raise UnknownNameError("no version 3; there are 1, 2", code="unknown_version", param="version")
        previous, self.active = self.active, version
        return {"name": name, "active": version, "previous": previous}


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a service with a key, which is in the environment."""
    monkeypatch.setenv("REWRIGHT_API_KEYS", KEY)
    monkeypatch.setenv("REWRIGHT_API_KEY", KEY)
    settings = ServerSettings(state=str(tmp_path))
    app = create_app(Backend(), settings, Keys.from_environment(), DurableWork(settings))  # type: ignore[arg-type]
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_a_service_lists_its_adapters_and_switches_them(run: Run, url: str) -> None:
    code, out, err = run("list", "--url", url)
    assert code == 0
    assert "math@1 │ tiny │ active │ loaded │" in out
    assert "math@2 │ tiny │ │ │" in out
    assert "requests get none" in err
    assert "math@2 is active" in run("activate", "math", "2", "--url", f"{url}/")[2]
    assert json.loads(run("activate", "math", "1", "--url", url, "--json")[1])["previous"] == 2
    assert json.loads(run("list", "--url", url, "--json")[1])["data"][0]["active"] == 1


def test_what_a_service_refuses_is_said(run: Run, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = run("activate", "math", "3", "--url", url)
    assert (code, err) == (2, f"error: {url} answered 404: no version 3; there are 1, 2")
    monkeypatch.delenv("REWRIGHT_API_KEY")
    assert "answered 401" in run("list", "--url", url)[2]


@pytest.mark.parametrize(
    "arguments",
    [
        ("list", "adapters", "--url", "http://127.0.0.1:1"),
        ("list", "--url", "nowhere"),
        ("activate", "../math", "1", "--url", "http://127.0.0.1:1"),
        ("activate", "math", "0", "--url", "http://127.0.0.1:1"),
        ("activate", "math", "1"),
    ],
)
def test_arguments_that_make_no_sense_are_wrong_use(run: Run, arguments: tuple[str, ...]) -> None:
    assert run(*arguments)[0] == 2


def test_a_service_that_is_not_there_is_said(run: Run) -> None:
    code, _, err = run("list", "--url", "http://127.0.0.1:1")
    assert code == 3
    assert "cannot be reached" in err
