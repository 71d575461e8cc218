"""Which rows a step draws, and from which version of the adapter."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig

from agent.chat import ChatFormat
from agent.demonstrations import Demonstration, Message
from agent.engine.lora import LoraHost
from agent.gate import Gate
from agent.records import Verdict
from agent.settings import GateSettings, RewardSettings, RewriteSettings
from tests.scripted_engine import ScriptedEngine
from tests.tiny_chat import tiny_model, tiny_tokenizer
from trainer.curriculum import Curriculum
from trainer.draws import Draws
from trainer.policy import PublishedPolicy
from trainer.rollout import RolloutGroup, RolloutWorker
from trainer.settings import TrainSettings

ROWS = [Demonstration(f"row {n}", (Message("user", "What is 1 + 2 ?"),), "It is 3", "3", "math") for n in range(8)]
SETTINGS = TrainSettings.model_validate({"samples": 3, "refills": 1, "groups": 4})


@pytest.fixture
def engine() -> ScriptedEngine:
    """Writes nothing, which no gate passes: no group ever has a signal."""
    return ScriptedEngine(ChatFormat(tiny_tokenizer()), "")


@pytest.fixture
def draws(engine: ScriptedEngine, tmp_path: Path) -> Iterator[Draws]:
    torch.manual_seed(0)
    model = LoraHost(tiny_model()).add_trainable("policy", LoraConfig(r=2, target_modules=["q_proj"]))
    chat, gate, reward = ChatFormat(tiny_tokenizer()), Gate(GateSettings()), RewardSettings(preset="gate_only")
    worker = RolloutWorker(engine, chat, gate, None, RewriteSettings(), reward)
    curriculum = Curriculum([1] * len(ROWS), 0, by_difficulty=False, planned=1000)
    with asyncio.Runner() as runner:
        yield Draws(PublishedPolicy(engine, model, tmp_path), worker, ROWS, curriculum, SETTINGS, runner)
        runner.run(gate.aclose())


def test_each_step_draws_from_the_version_that_is_published_for_it(draws: Draws, engine: ScriptedEngine) -> None:
    for step in (0, 1, 2):
        engine.sampled.clear()
        assert draws.draw(step, 2).policy_step == step
        assert {adapter for _, _, adapter in engine.sampled} == {f"policy@{step}"}
        assert asyncio.run(engine.loaded()) == {f"policy@{step}"}


def test_groups_without_a_signal_are_replaced_as_often_as_refills_allow(draws: Draws, engine: ScriptedEngine) -> None:
    drawn = draws.draw(0, 2)
    assert [len(group.rewrites) for group in drawn.groups] == [3] * 4
    assert len({group.demonstration.id for group in drawn.groups}) == 4
    assert [n for _, n, _ in engine.sampled] == [3] * 4
    assert drawn.metrics["no_signal"] == 1
    assert {"seconds/rollout", "seconds/gate", "seconds/score"} <= drawn.metrics.keys()


def test_what_is_logged_is_of_the_groups_of_all_processes(draws: Draws, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, the other of which drew the same, and all of it passed."""
    passing = Verdict(True, ())

    def gathered(found: list[Any]) -> list[Any]:
        others = [
            replace(group, rewrites=[replace(rewrite, verdict=passing) for rewrite in group.rewrites])
            for group in found
            if isinstance(group, RolloutGroup)
        ]
        return [*found, *others]

    assert draws.draw(0, 2).metrics["pass_rate"] == 0
    monkeypatch.setattr("trainer.draws.gather_object", gathered)
    drawn = draws.draw(0, 2)
    assert {group.pass_rate for group in drawn.groups} == {0}
    assert drawn.metrics["pass_rate"] == 0.5


def test_a_row_that_two_processes_draw_gets_other_rewrites_in_each(
    draws: Draws, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step wants each row twice; the processes draw one after the other here."""
    settings = SETTINGS.model_copy(update={"refills": 0})

    def seeds(place: int, own: int, counts: list[int]) -> list[int | None]:
        engine.sampled.clear()
        draws._settings, draws._curriculum = settings, Curriculum([1] * len(ROWS), 0, by_difficulty=False, planned=1000)
        monkeypatch.setattr("trainer.draws.PartialState", lambda: SimpleNamespace(process_index=place))
        monkeypatch.setattr("trainer.draws.gather_object", lambda found: counts if found == [own] else found)
        draws.draw(0, own)
        return [sampling.seed for sampling, _, _ in engine.sampled]

    alone = seeds(0, 16, [16])
    assert len(set(alone)) == 16
    assert seeds(0, 8, [8, 8]) + seeds(1, 8, [8, 8]) == alone


def test_what_replaces_groups_without_a_signal_is_trained_on(draws: Draws, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the two first rows none has a signal, of the two that replace them the second."""
    monkeypatch.setattr(RolloutGroup, "has_signal", property(lambda group: group.demonstration.id == useful))
    order = Curriculum([1] * len(ROWS), 0, by_difficulty=False, planned=1000).take(4)
    useful = f"row {order[3]}"
    drawn = draws.draw(0, 2).groups
    assert [group.demonstration.id for group in drawn] == [f"row {order[n]}" for n in (3, 0, 1, 2)]


@pytest.fixture
def _all_have_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RolloutGroup, "has_signal", True)


@pytest.mark.usefixtures("_all_have_a_signal")
def test_what_a_step_has_in_reserve_is_passed_over_when_it_is_not_needed(draws: Draws) -> None:
    draws._settings = SETTINGS.model_copy(update={"groups": 1, "steps": len(ROWS) // 2})
    draws._curriculum = Curriculum(range(len(ROWS)), 0, by_difficulty=True, planned=len(ROWS))
    drawn = [draws.draw(step, 1).groups for step in range(4)]
    assert [group.demonstration.id for groups in drawn for group in groups] == ["row 0", "row 2", "row 4", "row 6"]


@pytest.mark.usefixtures("_all_have_a_signal")
def test_waiting_for_the_refill_of_another_process_costs_no_seconds_of_this_one(
    draws: Draws, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes, the other of which needs a row each time."""
    monkeypatch.setattr(
        "trainer.draws.gather_object", lambda found: [*found, 1] if found and isinstance(found[0], int) else found
    )
    metrics = draws.draw(0, 2).metrics
    assert metrics["seconds/rollout"] == draws._worker.seconds["rollout"]
