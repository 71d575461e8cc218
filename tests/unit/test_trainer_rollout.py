"""What becomes of drawn groups: in which order they are checked and scored, and what they are paid."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from agent.chat import ChatFormat
from agent.demonstrations import Demonstration, Message
from agent.engine import Completion, Sampling
from agent.exceptions import STOPPED, EngineMemoryError, MismatchError
from agent.records import Check, Verdict
from agent.settings import RewardSettings, RewriteSettings
from tests.scripted_engine import ScriptedEngine
from tests.tiny_chat import tiny_tokenizer
from trainer.exceptions import RolloutError
from trainer.metrics import rollout_metrics
from trainer.rollout import Rewrite, RolloutGroup, RolloutWorker

EXPERT = "It is 3"
WORDINGS = ["It is 1", "It is 2", "1 is 3", "2 is 3", "What is 3", "What is 1"]


class Listing(ScriptedEngine):
    """Says in which order it was asked to score what."""

    def __init__(self) -> None:
        super().__init__(ChatFormat(tiny_tokenizer()), WORDINGS[0])
        self.scored: list[list[int]] = []

    async def score(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], adapter: str | None = None
    ) -> list[float]:
        self.scored.append(list(completion_ids))
        return await super().score(prompt_ids, completion_ids, adapter)


class Gate:
    """Refuses what is written in capitals."""

    def __init__(self) -> None:
        self.checked: list[str] = []

    async def check(self, _: Demonstration, text: str, *, finished: bool) -> Verdict:
        self.checked.append(text)
        return Verdict(finished and not text.isupper(), (Check("hygiene", not text.isupper(), ""),))


class Embedder:
    """A vector a text: its number among `WORDINGS` as an angle."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        self.asked.append(list(texts))
        angles = [WORDINGS.index(text) / 4 for text in texts]
        return np.array([[np.cos(angle), np.sin(angle)] for angle in angles], dtype=np.float32)


class Room:
    """A worker with what it asks."""

    def __init__(self, preset: str, embedder: Embedder | None = None) -> None:
        self.engine, self.gate, self.embedder = Listing(), Gate(), embedder
        self.chat = ChatFormat(tiny_tokenizer())
        gate: Any = self.gate
        given: Any = embedder
        reward = RewardSettings.model_validate({"preset": preset})
        self.worker = RolloutWorker(self.engine, self.chat, gate, given, RewriteSettings(), reward)

    def group(self, *texts: str) -> RolloutGroup:
        row = Demonstration("row", (Message("user", "What is 1 + 2 ?"),), EXPERT, "3", "math")
        drawn = [Rewrite(Completion(self.chat.completion_ids(text), text, [], "stop")) for text in texts]
        return RolloutGroup(row, [1, 2], len(self.chat.completion_ids(EXPERT)), drawn)


async def test_checks_and_scores_are_asked_for_in_the_order_of_the_rewrites() -> None:
    room = Room("paper")
    await room.worker.reward([room.group(WORDINGS[1], *WORDINGS, WORDINGS[3], "NO")])
    expected = [WORDINGS[1], WORDINGS[0], *WORDINGS[2:]]
    assert room.gate.checked == [*expected, "NO"]
    assert room.engine.scored == [room.chat.completion_ids(text) for text in (EXPERT, *expected)]


async def test_a_group_in_which_nothing_passes_is_not_scored() -> None:
    room = Room("rewright")
    await room.worker.reward([room.group("NO", "NEVER")])
    assert room.engine.scored == []


async def test_the_gate_alone_pays_one_or_nothing_and_the_mismatch_is_known_all_the_same() -> None:
    room = Room("gate_only")
    groups = [room.group(WORDINGS[0], "NO", WORDINGS[1])]
    await room.worker.reward(groups)
    assert groups[0].reward.reward == [1.0, 0.0, 1.0]
    assert groups[0].reward.distance == groups[0].reward.diversity == [0.0] * 3
    metrics = rollout_metrics(groups)
    assert (metrics["mismatch"], metrics["expert_mismatch"]) == (1.5, 2.0)


async def test_all_groups_of_a_batch_are_embedded_at_once_and_paid_apart() -> None:
    embedder = Embedder()
    room = Room("paper", embedder)
    first, alone, second = (
        room.group(WORDINGS[0], "NO", WORDINGS[2]),
        room.group(WORDINGS[5], "NO"),
        room.group(WORDINGS[2], WORDINGS[3], WORDINGS[3]),
    )
    await room.worker.reward([first, alone, second])
    assert embedder.asked == [[WORDINGS[0], WORDINGS[2], WORDINGS[3]]]
    # With two rewrites each adds the whole distance; of three, two of which are alike, those two add nothing.
    far, near = (1 - np.cos(0.5)) / 2, (1 - np.cos(0.25)) / 2
    assert first.reward.diversity == pytest.approx([far, 0, far], abs=1e-6)
    assert alone.reward.diversity == [0, 0]
    assert second.reward.diversity == pytest.approx([near * 2 / 3, near * (2 / 3 - 1), near * (2 / 3 - 1)], abs=1e-6)


def unscorable(room: Room, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base model gives this text no probability."""
    score, ids = room.engine.score, room.chat.completion_ids(text)

    async def scored(prompt_ids: Sequence[int], completion_ids: Sequence[int], _: str | None = None) -> list[float]:
        logprobs = await score(prompt_ids, completion_ids)
        return [-math.inf, *logprobs[1:]] if list(completion_ids) == ids else logprobs

    monkeypatch.setattr(room.engine, "score", scored)


async def test_a_rewrite_whose_mismatch_is_no_number_fails_as_in_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room("rewright")
    unscorable(room, WORDINGS[1], monkeypatch)
    group = room.group(WORDINGS[0], WORDINGS[1])
    await room.worker.reward([group])
    assert [rewrite.feasible for rewrite in group.rewrites] == [True, False]
    assert group.reward.reward[0] > 1
    assert group.reward.reward[1] == 0
    metrics = rollout_metrics([group])
    assert (metrics["failed/mismatch"], metrics["mismatch"], metrics["expert_mismatch"]) == (0.5, 1.0, 2.0)


async def test_of_an_expert_whose_mismatch_is_no_number_no_rewrite_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room("rewright")
    unscorable(room, EXPERT, monkeypatch)
    group = room.group(WORDINGS[0], WORDINGS[1])
    await room.worker.reward([group])
    assert group.reward.reward == [0, 0]
    assert math.isnan(rollout_metrics([group])["expert_mismatch"])
    with pytest.raises(MismatchError, match="row row, of the expert: the base model's surprisal at token 1 of"):
        await room.worker.reward([room.group(WORDINGS[0])], score_experts=True)


async def test_a_row_that_lacks_memory_ends_the_others_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room("gate_only")
    waiting: list[str] = []

    async def generate(_: Sequence[int], sampling: Sampling, *__: object) -> list[Completion]:
        if not waiting:
            waiting.append("for ever")
            try:
                await asyncio.Event().wait()
            finally:
                waiting.append("no more")
        raise EngineMemoryError("the engine ran out of memory on this request; shorten it or lower n")

    monkeypatch.setattr(room.engine, "generate", generate)
    rows = [replace(room.group().demonstration, id=name) for name in ("long", "longer")]
    with pytest.raises(RolloutError, match=r"row longer: the engine ran out of memory .* --resume goes on") as caught:
        await room.worker.groups(rows, samples=2, temperature=1.0, adapter=None, draw="0")
    assert caught.value.exit_code == STOPPED
    assert waiting == ["for ever", "no more"]
    assert len(asyncio.all_tasks()) == 1, "of this test alone"
