"""The backend beside the event loop: folders of adapters may lie on a slow share."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from agent.chat import ChatFormat
from agent.gate import Gate
from agent.settings import GateSettings, RewriteSettings
from server.adapters import AdapterStore
from server.backend import AgentBackend
from server.schemas import RewriteOptions, RewritesBody
from tests.scripted_engine import ScriptedEngine
from tests.tiny_chat import tiny_tokenizer


async def test_the_folder_of_adapters_is_read_by_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("1", "2"):
        (tmp_path / "math" / version).mkdir(parents=True)
    store, readers = AdapterStore(tmp_path, "math"), set[threading.Thread]()
    versions = store.versions

    def noted(name: str) -> list[int]:
        readers.add(threading.current_thread())
        return versions(name)

    monkeypatch.setattr(store, "versions", noted)
    chat = ChatFormat(tiny_tokenizer())
    backend = AgentBackend(ScriptedEngine(chat, "Plum"), chat, Gate(GateSettings()), RewriteSettings(), store)
    assert await backend.check_options(RewriteOptions()) == "math@2"
    row = {"question": "What is 1 + 2 ?", "answer": "#### 3"}
    (record,) = (await backend.rewrite(RewritesBody(demonstrations=[row], strategy="solve")))["data"]
    assert record["model"] == "scripted"
    assert (await backend.list_adapters())["data"][0]["active"] == 2
    assert readers
    assert threading.main_thread() not in readers
    await backend.aclose()
