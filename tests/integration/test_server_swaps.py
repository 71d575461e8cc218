"""Adapters that are switched while requests run: the real backend, store and engine on a tiny random model."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
from peft.tuners.lora import LoraLayer

from agent.assembly import build_gate, open_chat, open_engine
from agent.engine import Sampling
from agent.exceptions import EngineClosedError
from agent.models import ModelFiles
from agent.settings import EngineSettings, GateSettings, RewriteSettings
from server.adapters import AdapterStore
from server.backend import AgentBackend
from server.exceptions import ConflictError, UnknownNameError
from server.hosting import HostedEngine, host_engine
from server.schemas import RewritesBody, SamplingBody
from tests.tiny import make_model, publish_lora

VERSIONS = 5
KEPT = 2
SWAPS, WARM_UP = 100, 10
ROW = {"question": "Mira has 3 apples and buys 4. How many?", "answer": "3+4=7\n#### 7"}
QUICK = SamplingBody(temperature=1.0, samples=2, max_tokens=8)


@dataclass(frozen=True)
class Bench:
    backend: AgentBackend
    engine: HostedEngine
    store: Path

    async def rewrite(self, adapter: str | None, rows: int = 1) -> list[dict[str, Any]]:
        demonstrations = [ROW | {"id": str(number)} for number in range(rows)]
        body = RewritesBody(demonstrations=demonstrations, strategy="rewrite", adapter=adapter, sampling=QUICK)
        return list((await self.backend.rewrite(body))["data"])

    async def activate(self, version: int) -> None:
        assert (await self.backend.activate_adapter("math", version))["active"] == version

    def peft_adapters(self) -> int:
        """LoRAs in the model's layers, as PEFT holds them."""
        model = self.engine._engine._adapters._model  # type: ignore[attr-defined]
        layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        assert layers
        return max(len(layer.lora_A) for layer in layers)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, model_files: ModelFiles) -> ModelFiles:
    return make_model(tmp_path_factory.mktemp("models") / "tiny", model_files)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny: ModelFiles) -> Path:
    folder = tmp_path_factory.mktemp("store")
    for version in range(1, VERSIONS + 1):
        publish_lora(folder, tiny, version)
    publish_lora(folder, tiny, 1, name="other", base_model="another-model")
    return folder


@pytest.fixture
async def bench(tiny: ModelFiles, store: Path) -> AsyncIterator[Bench]:
    (store / "math" / "active").unlink(missing_ok=True)
    adapters = AdapterStore(store, "math", tiny.name)
    engine = await host_engine(tiny, EngineSettings(threads=1, dtype="float32"), adapters, KEPT)
    chat = open_chat(tiny)
    backend = AgentBackend(
        engine, chat, build_gate(engine, chat, GateSettings()), RewriteSettings(concurrency=8), adapters
    )
    yield Bench(backend, engine, store)
    await backend.aclose()
    await engine.close()


async def test_a_hundred_swaps_under_load_lose_no_request_and_keep_no_adapter(bench: Bench) -> None:
    answered: list[str] = []
    one_more, done = asyncio.Event(), asyncio.Event()

    async def client(asked: str) -> None:
        while not done.is_set():
            (record,) = await bench.rewrite(asked)
            assert record["status"] != "error", record["error"]
            answered.append(asked)
            one_more.set()

    async def swap(times: int) -> None:
        for number in range(times):
            await bench.activate(1 + number % VERSIONS)
            one_more.clear()
            await one_more.wait()

    # The last one keeps a version busy that is seldom active.
    clients = [asyncio.create_task(client(asked)) for asked in ("math", "math@4")]
    await swap(WARM_UP)
    before = psutil.Process().memory_info().rss
    await swap(SWAPS)
    gc.collect()
    grown = psutil.Process().memory_info().rss - before
    done.set()
    await asyncio.gather(*clients)
    print(f"{SWAPS} swaps, {len(answered)} requests beside them, grown by {grown / 2**20:.1f} MiB")
    assert len(answered) >= SWAPS
    assert bench.peft_adapters() <= KEPT
    assert len(await bench.engine.loaded()) <= KEPT
    # A hundred adapters that stay would be a few hundred tensors in Python and PEFT each.
    assert grown < 64 * 2**20


async def test_a_request_finishes_on_the_version_with_which_it_began(bench: Bench) -> None:
    await bench.activate(1)
    running = asyncio.create_task(bench.rewrite("math", rows=6))
    await asyncio.sleep(0.05)
    for version in (2, 3, 4):  # more than are kept: the first version has to come back for the rows that wait
        await bench.activate(version)
    sampled = [record for record in await running if record["proposer"] == "rewrite"]
    assert {record["adapter"] for record in sampled} <= {"math@1"}
    assert {record["status"] for record in await running} <= {"rewritten", "fallback"}


async def test_each_version_writes_what_only_it_writes_and_going_back_brings_it_back(bench: Bench) -> None:
    engine = bench.engine

    async def greedy(adapter: str | None) -> list[int]:
        (completion,) = await engine.generate(list(range(40, 90)), Sampling(temperature=0, max_tokens=12), 1, adapter)
        return completion.ids

    written = {adapter: await greedy(adapter) for adapter in (None, "math@1", "math@2", "math@3")}
    assert len({tuple(ids) for ids in written.values()}) == 4
    for adapter in ("math@1", None, "math@3", "math@2"):
        assert await greedy(adapter) == written[adapter]


async def test_what_cannot_be_loaded_does_not_become_active(bench: Bench) -> None:
    await bench.activate(2)
    broken = bench.store / "math" / "6"
    broken.mkdir()
    try:
        with pytest.raises(ConflictError, match=r"^adapter math/6: adapter_model.safetensors is missing"):
            await bench.backend.activate_adapter("math", 6)
        with pytest.raises(ConflictError, match="trained on another-model"):
            await bench.backend.activate_adapter("other", 1)
        with pytest.raises(UnknownNameError, match="version 7"):
            await bench.backend.activate_adapter("math", 7)
        with pytest.raises(ConflictError, match="math/6"):
            await bench.rewrite("math@6")
    finally:
        broken.rmdir()
    (listed, other) = (await bench.backend.list_adapters())["data"]
    assert (listed["name"], listed["active"], other["active"]) == ("math", 2, None)
    assert {v["version"] for v in listed["versions"] if v["loaded"]} >= {2}
    assert (await bench.rewrite("math"))[0]["status"] != "error"


async def test_a_loading_that_nobody_waits_for_any_more_still_ends_whole(bench: Bench) -> None:
    for _ in range(5):
        waiting = asyncio.create_task(bench.rewrite("math@5"))
        await asyncio.sleep(0.002)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    assert (await bench.rewrite("math@5"))[0]["status"] != "error"


async def test_a_restart_keeps_what_is_active_and_loads_it_before_anybody_asks(
    bench: Bench, tiny: ModelFiles, store: Path
) -> None:
    await bench.activate(3)
    again = AdapterStore(store, "math", tiny.name)
    engine = await host_engine(tiny, EngineSettings(threads=1, dtype="float32"), again, KEPT)
    try:
        assert again.resolve(None) == "math@3"
        assert await engine.loaded() == {"math@3"}
    finally:
        await engine.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_an_engine_whose_loop_dies_says_so_to_all_that_wait(
    tiny: ModelFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await open_engine(tiny, EngineSettings(threads=1, dtype="float32"))

    def prefill(*_: object) -> None:
        raise ValueError("a defect")

    monkeypatch.setattr(engine._runner, "prefill", prefill)  # type: ignore[attr-defined]
    calls = [engine.generate([1, 2, number], Sampling()) for number in range(3)]
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(outcome, EngineClosedError)
        assert "ValueError: a defect" in str(outcome)
    await asyncio.to_thread(engine._worker.join)  # type: ignore[attr-defined]
    with pytest.raises(EngineClosedError):
        await engine.check()
    with pytest.raises(EngineClosedError):
        await engine.score([1], [2])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_an_engine_that_dies_while_scoring_says_so_too(tiny: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = await open_engine(tiny, EngineSettings(threads=1, dtype="float32"))

    def score(*_: object) -> None:
        raise ValueError("a defect")

    monkeypatch.setattr(engine._runner, "score", score)  # type: ignore[attr-defined]
    with pytest.raises(EngineClosedError, match="a defect"):
        await engine.score([1], [2])
