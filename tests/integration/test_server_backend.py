"""Requests answered by the agent: the real chat format and gate over a scripted engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.assembly import build_gate, open_chat
from agent.models import ModelFiles
from agent.settings import GateSettings, RewriteSettings, Step
from server.adapters import AdapterStore
from server.backend import AgentBackend, override_settings, override_steps
from server.exceptions import UnknownNameError
from server.metrics import Snapshot
from server.schemas import MismatchBody, MismatchResponse, RewritesBody, RewritesResponse, SamplingBody
from tests.scripted_engine import ScriptedEngine

ROW = {"id": "a", "question": "Mira has 3 apples and buys 4. How many?", "answer": "She has 3+4=7\n#### 7"}
REPLY = "Mira has 3 + 4 = 7 apples. The answer is \\boxed{7}."


@dataclass(frozen=True)
class Bench:
    engine: ScriptedEngine
    backend: AgentBackend


@pytest.fixture
async def bench(model_files: ModelFiles, tmp_path: Path) -> AsyncIterator[Bench]:
    chat = open_chat(model_files)
    engine = ScriptedEngine(chat, REPLY)
    settings = RewriteSettings(strategy="solve", seed=1)
    for version in ("1", "3"):
        (tmp_path / "math" / version).mkdir(parents=True)
    store = AdapterStore(tmp_path, "math@3")
    backend = AgentBackend(engine, chat, build_gate(engine, chat, GateSettings()), settings, store)
    yield Bench(engine, backend)
    await backend.aclose()


async def test_a_feasible_reply_becomes_the_target(bench: Bench) -> None:
    answer = await bench.backend.rewrite(RewritesBody(demonstrations=[ROW]))
    RewritesResponse.model_validate(answer, strict=True)
    (row,) = answer["data"]
    assert row["status"] == "self_solved"
    assert row["completion"] == [{"role": "assistant", "content": REPLY}]
    assert row["mismatch"]["target"]["nll"] == 1.0
    assert row["mismatch"]["expert"]["nll"] == 2.0
    assert answer["model"] == "scripted"


async def test_rows_that_cannot_be_used_keep_their_place(bench: Bench) -> None:
    rows = [7, ROW, {"question": "x"}, ROW | {"id": "b", "question": "long " * 5000}, ROW | {"id": "c", "task": "no"}]
    data = (await bench.backend.rewrite(RewritesBody(demonstrations=rows)))["data"]
    assert [row["status"] for row in data] == ["error", "self_solved", "error", "error", "error"]
    assert [row["error"]["line"] for row in data if row["error"]] == [1, 3, 4, 5]
    assert "4096" in data[3]["error"]["message"]
    assert "task" in data[4]["error"]["message"]


async def test_usage_is_the_sum_over_rows(bench: Bench) -> None:
    async def usage(rows: list[object]) -> dict[str, int]:
        answer = await bench.backend.rewrite(RewritesBody(demonstrations=rows))
        return {name: int(tokens) for name, tokens in answer["usage"].items()}

    one = await usage([ROW])
    assert one["prompt_tokens"] > 0
    assert one["completion_tokens"] > 0
    assert one["scored_tokens"] > 0
    assert await usage([ROW, ROW | {"id": "b"}, 3]) == {name: 2 * tokens for name, tokens in one.items()}


async def test_what_was_done_is_counted_as_it_is_told(bench: Bench) -> None:
    body = RewritesBody(demonstrations=[ROW, 3, ROW | {"id": "b", "answer": "She has 3+5=8\n#### 8"}])
    answer = await bench.backend.rewrite(body)
    assert [row["status"] for row in answer["data"]] == ["self_solved", "error", "fallback"]
    refused = answer["data"][2]["gate"]["checks"][-1]["name"]
    lines = bench.backend.metrics.render(Snapshot(0, 1)).decode().splitlines()
    for status, proposer in (("self_solved", "solve"), ("error", "expert"), ("fallback", "expert")):
        assert f'rewright_rows_total{{proposer="{proposer}",status="{status}"}} 1.0' in lines
    for kind in ("prompt", "completion", "scored"):
        assert f'rewright_tokens_total{{kind="{kind}"}} {answer["usage"][f"{kind}_tokens"]:.1f}' in lines
    # Equal candidates of an attempt are one; each temperature is an attempt.
    assert f'rewright_gate_failures_total{{check="{refused}"}} {answer["data"][2]["attempts"]}.0' in lines


async def test_sampling_of_the_request_reaches_the_engine(bench: Bench) -> None:
    sampling = SamplingBody(temperature=0.25, top_p=0.5, max_tokens=99, samples=3)
    await bench.backend.rewrite(RewritesBody(demonstrations=[ROW], strategy="rewrite", sampling=sampling))
    ((used, samples, adapter),) = bench.engine.sampled
    assert (used.temperature, used.top_p, used.max_tokens) == (0.25, 0.5, 99)
    assert samples == 3
    assert adapter == "math@3"


async def test_an_unknown_strategy_is_refused_and_the_known_ones_are_named(bench: Bench) -> None:
    with pytest.raises(UnknownNameError, match=r"'x'.*default.*hint.*rewrite.*solve") as raised:
        await bench.backend.rewrite(RewritesBody(demonstrations=[ROW], strategy="x"))
    assert raised.value.param == "strategy"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("math@2", r"'math' has no version 2; there are 1, 3"),
        ("maths", "unknown adapter 'maths'; there are math"),
        ("math", "no active version; activate one of 1, 3, or ask for one as 'math@3'"),
        ("../math@1", "unknown adapter"),
    ],
)
async def test_an_adapter_that_is_not_there_is_refused_and_what_there_is_is_named(
    bench: Bench, asked: str, said: str
) -> None:
    with pytest.raises(UnknownNameError, match=said) as raised:
        await bench.backend.rewrite(RewritesBody(demonstrations=[ROW], adapter=asked))
    assert raised.value.param == "adapter"
    assert bench.engine.sampled == []


async def test_a_request_may_name_another_version_than_the_default(bench: Bench) -> None:
    await bench.backend.rewrite(RewritesBody(demonstrations=[ROW], strategy="rewrite", adapter="math@1"))
    assert {adapter for _, _, adapter in bench.engine.sampled} == {"math@1"}


async def test_surprisal_of_every_row_that_has_one(bench: Bench) -> None:
    too_long = ROW | {"id": "b", "question": "long " * 5000}
    answer = await bench.backend.mismatch(MismatchBody(demonstrations=[ROW, None, too_long]))
    MismatchResponse.model_validate(answer, strict=True)
    scored, unreadable, refused = answer["data"]
    assert {token["nats"] for token in scored["tokens"]} == {2.0}
    assert scored["mismatch"] == {"nll": 2.0, "p95": 2.0, "tokens": len(scored["tokens"])}
    assert unreadable["error"] == {"line": 2, "field": None, "message": "a row must be a JSON object, got null"}
    assert refused["error"]["line"] == 3
    assert refused["tokens"] == []


def test_what_a_request_leaves_out_stays_as_configured() -> None:
    settings = RewriteSettings(top_p=0.9, seed=5)
    assert override_settings(settings, SamplingBody()) == settings
    assert override_settings(settings, SamplingBody(seed=0)).seed == 0
    strategy = (Step(proposer="solve", temperatures=(0.1, 0.2), samples=2), Step(proposer="hint"))
    assert override_steps(strategy, SamplingBody()) == strategy
    assert [step.temperatures for step in override_steps(strategy, SamplingBody(temperature=0))] == [(0.0,), (0.0,)]
