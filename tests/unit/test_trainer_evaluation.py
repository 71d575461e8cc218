"""Held-out rows are shared among the processes of a training, and measured together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from agent.chat import ChatFormat
from agent.demonstrations import Demonstration, Message
from agent.gate import Gate
from agent.settings import GateSettings, RewardSettings, RewriteSettings
from tests.scripted_engine import ScriptedEngine
from tests.tiny_chat import tiny_tokenizer
from trainer.evaluation import evaluate
from trainer.rollout import RolloutGroup, RolloutWorker

ROWS = [Demonstration(f"row {n}", (Message("user", "What is 1 + 2 ?"),), "It is 3", "3", "math") for n in range(5)]
EMBEDDER: Any = SimpleNamespace(embed=lambda texts: np.eye(len(texts)))


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
async def test_every_row_is_drawn_by_one_process_and_counted_once(
    processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat, gate = ChatFormat(tiny_tokenizer()), Gate(GateSettings())
    engine = ScriptedEngine(chat, "")
    worker = RolloutWorker(engine, chat, gate, None, RewriteSettings(), RewardSettings(preset="gate_only"))
    drawn: list[RolloutGroup] = []

    def gathered(own: list[RolloutGroup]) -> list[RolloutGroup]:
        drawn.extend(own)
        return drawn

    monkeypatch.setattr("trainer.evaluation.gather_object", gathered)
    for place in range(processes):
        process = SimpleNamespace(num_processes=processes, process_index=place)
        monkeypatch.setattr("trainer.evaluation.PartialState", lambda process=process: process)
        figures = await evaluate(worker, ROWS, EMBEDDER, samples=3, temperature=0.4, adapter=None)
    await gate.aclose()
    assert [group.demonstration.id for group in drawn] == [row.id for row in ROWS]
    assert len(engine.sampled) == len(ROWS)
    assert figures["expert_mismatch"] == figures["mismatch"] == 2
    assert figures["pass_rate"] == 0
