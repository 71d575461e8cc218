"""The rows of a comparison and what they and a training cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agent.chat import ChatFormat
from agent.demonstrations import Demonstration
from agent.gate import Gate
from agent.intake import read_rows
from agent.pipeline import rewrite_rows
from agent.rewriter import Rewriter, Rewritten
from agent.settings import GateSettings, RewriteSettings, Step
from tests.scripted_engine import ScriptedEngine
from tests.tiny_chat import tiny_tokenizer
from trainer.compare.cost import Cost, DataCost, train_cost
from trainer.compare.rows import COSTS, ROWS, keep_accepted, open_costs, or_fallback, read_cost, sum_costs
from trainer.exceptions import TrainingDataError
from trainer.sft.data import load_sft_data


def test_success_only_rows_are_those_with_an_accepted_rewrite(tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    statuses = ["rewritten", "fallback", "error", "self_solved"]
    (tmp_path / "all" / ROWS).write_text("".join(f'{{"id": "{s}", "status": "{s}"}}\n' for s in statuses))
    keep_accepted(tmp_path / "all", tmp_path)
    assert [line.split('"')[3] for line in (tmp_path / ROWS).read_text().splitlines()] == ["rewritten", "self_solved"]
    (tmp_path / "all" / ROWS).write_text('{"id": "a", "status": "fallback"}\n')
    with pytest.raises(TrainingDataError, match="no row has an accepted rewrite"):
        keep_accepted(tmp_path / "all", tmp_path)


class Unhandling(Rewriter):
    """Has no room for one question, and a defect for another."""

    async def rewrite(self, demonstration: Demonstration) -> Rewritten:
        if demonstration.id == "defect":
            raise KeyError("a defect")
        return await super().rewrite(demonstration)


async def test_methods_that_rewrite_lose_no_question_that_plain_sft_trains_on(tmp_path: Path) -> None:
    chat = ChatFormat(tiny_tokenizer())
    engine = ScriptedEngine(chat, "It is 3", max_length=40)
    rewriter = Unhandling(engine, chat, Gate(GateSettings()), (Step(proposer="solve"),), RewriteSettings())
    source = tmp_path / "rows.jsonl"
    long = {"id": "long", "question": "What is 1 + 2 ?", "answer": f"{'2 ' * 30}#### 3"}
    source.write_text(
        f'{{"id": "defect", "question": "What is 1 + 2 ?", "answer": "It is 3"}}\n{json.dumps(long)}\nno json\n'
    )
    asked = list(read_rows(source))
    made = [row async for row, _ in rewrite_rows(rewriter, asked, model="m", concurrency=1)]
    assert [row["status"] for row in made] == ["error"] * 3
    rows = [or_fallback(row, one) for row, one in zip(made, asked, strict=True)]
    assert [row["status"] for row in rows] == ["fallback", "fallback", "error"]
    assert [bool(row["error"]["message"]) for row in rows] == [True] * 3
    (tmp_path / "made.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    data = [load_sft_data(file, chat, max_length=500) for file in (source, tmp_path / "made.jsonl")]
    plain, rewritten = ([(row.prompt_ids, row.completion_ids) for row in found.rows] for found in data)
    assert rewritten == plain
    assert data[1].statuses == {"fallback": 2}


def test_a_row_that_was_made_again_after_a_kill_costs_what_it_cost_last() -> None:
    def cost(row: str, tokens: int) -> str:
        return (
            f'{{"row": "{row}", "prompt_tokens": {tokens}, "completion_tokens": 1, "scored_tokens": 2, "seconds": 0.5}}'
        )

    found = sum_costs([cost("a", 10), cost("b", 20), cost("b", 30), '{"row": "c", "pro'])
    assert found == DataCost(prompt_tokens=40, completion_tokens=2, scored_tokens=4, seconds=1.0)
    assert found.rewriting_passes == 42


def test_a_cost_that_a_kill_cut_off_takes_no_other_with_it(tmp_path: Path) -> None:
    cost = '"prompt_tokens": 10, "completion_tokens": 1, "scored_tokens": 2, "seconds": 0.5}'
    (tmp_path / COSTS).write_text(f'{{"row": "a", {cost}\n{{"row": "b", "prom')
    with open_costs(tmp_path / COSTS) as file:
        file.write(f'{{"row": "b", {cost}\n')
    assert read_cost(tmp_path).prompt_tokens == 20


def card(kind: str = "none", apply_to: str = "all", kl: float = 0.0, dropped: int = 0) -> dict[str, Any]:
    return {
        "tokens": {"prompt": 300, "completion": 100, "without_weight": dropped},
        "trained_tokens": 50,
        "seconds": 2.5,
        "statuses": {"fallback": 1, "rewritten": 3},
        "settings": {"sft": {"weights": {"kind": kind, "apply_to": apply_to}, "kl_weight": kl}},
    }


def test_compute_counts_rewriting_scoring_and_updates_with_their_prompts() -> None:
    data = DataCost(prompt_tokens=10, completion_tokens=5, scored_tokens=7)
    plain, masked, fallback, anchored = (
        Cost(data=data, training=train_cost(found))
        for found in (card(), card("mask"), card("mask", "fallback"), card(kl=0.1))
    )
    assert (plain.before_training, plain.passes) == (22, 22 + 3 * 200)
    assert masked.passes - plain.passes == 400
    assert fallback.passes - plain.passes == 100
    assert anchored.passes - plain.passes == 200


def test_tokens_that_are_masked_out_are_processed_and_not_trained_on() -> None:
    masked, anchored = train_cost(card("mask", dropped=40)), train_cost(card("mask", kl=0.1, dropped=40))
    assert (masked.trained_tokens, masked.processed_tokens) == (30, 200)
    assert (anchored.trained_tokens, anchored.processed_tokens) == (50, 200)
