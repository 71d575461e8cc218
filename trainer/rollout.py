"""Roll-outs: groups of rewrites, drawn, checked, scored and rewarded, in that order, for many demonstrations at once.

The same prompts, token limits and gate as in serving. Each stage runs for the whole batch before the next begins, so
that the engine has all there is to batch and the gate's processes do not take its cores.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Coroutine, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from agent.chat import ChatFormat
from agent.demonstrations import Demonstration
from agent.embeddings import Embedder
from agent.engine import Completion, Engine, Sampling
from agent.exceptions import EngineMemoryError, MismatchError
from agent.gate import Gate, task_of
from agent.mismatch import nats_of, summarise
from agent.records import Check, Mismatch, Verdict
from agent.reward import GroupReward, group_reward
from agent.rewriter import proposal_ids, token_limit
from agent.settings import RewardSettings, RewriteSettings
from trainer.exceptions import RolloutError

_T = TypeVar("_T")


@dataclass(slots=True)
class Rewrite:
    """One rewrite of a group, filled in stage by stage.

    Attributes:
        completion: what was drawn.
        verdict: the gate's.
        surprisals: nats per token of the base model, for feasible rewrites.
    """

    completion: Completion
    verdict: Verdict | None = None
    surprisals: list[float] | None = None

    @property
    def text(self) -> str:
        return self.completion.text.strip()

    @property
    def feasible(self) -> bool:
        return self.verdict is not None and self.verdict.passed

    @property
    def mismatch(self) -> Mismatch | None:
        return summarise(self.surprisals) if self.surprisals else None

    def refuse(self, check: Check) -> None:
        """Add a check that failed to what the gate has said."""
        checks = self.verdict.checks if self.verdict else ()
        self.verdict = Verdict(False, (*checks, check))


@dataclass(slots=True)
class RolloutGroup:
    """All rewrites of one demonstration.

    Attributes:
        expert: surprisals of the expert's target, nats per token; empty until scored.
        expert_tokens: the expert's length, tokens.
    """

    demonstration: Demonstration
    prompt_ids: list[int]
    expert_tokens: int
    rewrites: list[Rewrite]
    expert: list[float] = field(default_factory=list)
    reward: GroupReward = field(default_factory=lambda: GroupReward([], [], []))

    @property
    def pass_rate(self) -> float:
        return sum(rewrite.feasible for rewrite in self.rewrites) / len(self.rewrites)

    @property
    def has_signal(self) -> bool:
        """Whether the rewards differ, so that the group's advantages are not all zero."""
        return max(self.reward.reward) - min(self.reward.reward) > 1e-6


class RolloutWorker:
    """Makes groups.

    Args:
        engine: samples and scores.
        chat: the chat format of its model.
        gate: decides what is feasible.
        embedder: for the diversity term; None for `gate_only`, which has none.
        rewrite: token limits, nucleus and seed, as in serving.
        reward: the preset.
    """

    def __init__(
        self,
        engine: Engine,
        chat: ChatFormat,
        gate: Gate,
        embedder: Embedder | None,
        rewrite: RewriteSettings,
        reward: RewardSettings,
    ) -> None:
        self._engine, self._chat, self._gate, self._embedder = engine, chat, gate, embedder
        self._settings, self._reward = rewrite, reward
        self.seconds: dict[str, float] = {}

    async def groups(
        self,
        demonstrations: Sequence[Demonstration],
        *,
        samples: int,
        temperature: float,
        adapter: str | None,
        draw: str,
        before: Sequence[int] | None = None,
        score_experts: bool = False,
    ) -> list[RolloutGroup]:
        """A rewarded group for each demonstration, in order. A request that fails ends the others.

        Args:
            demonstrations: rows that fit the context.
            samples: rewrites of each.
            temperature: of the sampling.
            adapter: name of a loaded adapter, None for the base model.
            draw: another name draws other rewrites; the same one repeats them.
            before: how often each row came before in this draw, in any process: it gets other rewrites each time. None
                counts among `demonstrations`.
            score_experts: score every expert, not only those of groups with a feasible rewrite.

        Raises:
            RolloutError: the engine lacks the memory for a row.
            MismatchError: of `score_experts`, where the mismatch of an expert is no finite number.
            EngineClosedError: the engine has died.
        """
        self.seconds = {}
        if before is None:
            before = times_before(row.id for row in demonstrations)
        with self._timed("rollout"):
            groups = await _all(
                _of_row(row, self._draw(row, samples, temperature, adapter, f"{row.id}/{draw}/{times}"))
                for row, times in zip(demonstrations, before, strict=True)
            )
        await self.reward(groups, score_experts=score_experts)
        return groups

    async def reward(self, groups: Sequence[RolloutGroup], *, score_experts: bool = False) -> None:
        """Check, score and reward groups that hold completions alone, in place. Raises as `groups`."""
        with self._timed("gate"):
            await _all(_of_row(group.demonstration, self._check(group)) for group in groups)
        with self._timed("score"):
            await _all(_of_row(group.demonstration, self._score(group, expert=score_experts)) for group in groups)
            self._pay(groups)

    async def _draw(
        self, row: Demonstration, samples: int, temperature: float, adapter: str | None, name: str
    ) -> RolloutGroup:
        expert_tokens = len(self._chat.completion_ids(row.expert))
        limit = token_limit(self._settings, expert_tokens)
        room = self._engine.info.max_length - limit
        prompt_ids = proposal_ids(self._chat, "rewrite", row, task_of(row), room)
        assert prompt_ids is not None, "the rewrite proposer needs nothing but the expert"
        seed = zlib.crc32(f"{self._settings.seed}/{name}".encode())
        sampling = Sampling(temperature=temperature, top_p=self._settings.top_p, max_tokens=limit, seed=seed)
        completions = await self._engine.generate(prompt_ids, sampling, samples, adapter)
        return RolloutGroup(row, prompt_ids, expert_tokens, [Rewrite(completion) for completion in completions])

    async def _check(self, group: RolloutGroup) -> None:
        # At low temperature a group often holds the same rewrite more than once.
        seen = ((rewrite.text, rewrite.completion.finish_reason == "stop") for rewrite in group.rewrites)
        distinct = list(dict.fromkeys(seen))  # no set, whose order of strings is another in every process
        verdicts = await _all(
            self._gate.check(group.demonstration, text, finished=finished) for text, finished in distinct
        )
        known = dict(zip(distinct, verdicts, strict=True))
        for rewrite in group.rewrites:
            rewrite.verdict = known[rewrite.text, rewrite.completion.finish_reason == "stop"]

    async def _score(self, group: RolloutGroup, *, expert: bool) -> None:
        # For every preset, whether its reward reads them or not: trainings are laid side by side.
        feasible = [rewrite for rewrite in group.rewrites if rewrite.feasible]
        wanted = [group.demonstration.expert] if feasible or expert else []
        distinct = list(dict.fromkeys([*wanted, *(rewrite.text for rewrite in feasible)]))
        prompt_ids = self._chat.prompt_ids(group.demonstration.prompt)
        scored = await _all(self._engine.score(prompt_ids, self._chat.completion_ids(text)) for text in distinct)
        surprisals: dict[str, list[float]] = {}
        unscored: dict[str, str] = {}
        for text, logprobs in zip(distinct, scored, strict=True):
            try:
                surprisals[text] = nats_of(logprobs)
            except MismatchError as error:
                if expert and text == group.demonstration.expert:
                    raise MismatchError(f"row {group.demonstration.id}, of the expert: {error}") from error
                unscored[text] = str(error)
        group.expert = surprisals.get(group.demonstration.expert, [])
        for rewrite in feasible:
            # As in serving: no rewrite is kept that cannot be compared with its expert.
            if reason := unscored.get(group.demonstration.expert) or unscored.get(rewrite.text):
                rewrite.refuse(Check("mismatch", False, reason))
            else:
                rewrite.surprisals = surprisals[rewrite.text]

    def _pay(self, groups: Sequence[RolloutGroup]) -> None:
        """Reward groups whose rewrites are checked and scored; what is feasible of all of them is embedded at once."""
        texts = [[rewrite.text for rewrite in group.rewrites if rewrite.feasible] for group in groups]
        compared = list(dict.fromkeys(text for own in texts if len(own) > 1 for text in own))
        rows = dict(zip(compared, self._embedder.embed(compared), strict=True)) if self._embedder and compared else {}
        for group, own in zip(groups, texts, strict=True):
            embedded = np.stack([rows[text] for text in own]) if rows and len(own) > 1 else np.eye(len(own))
            group.reward = group_reward(
                self._reward,
                [rewrite.feasible for rewrite in group.rewrites],
                [rewrite.surprisals for rewrite in group.rewrites],
                group.expert,
                np.asarray(embedded, dtype=np.float32),
            )

    def _timed(self, stage: str) -> _Stopwatch:
        return _Stopwatch(self.seconds, stage)


def times_before(keys: Iterable[Hashable]) -> list[int]:
    """How often each key came before, in order."""
    seen: Counter[Hashable] = Counter()
    times = []
    for key in keys:
        times.append(seen[key])
        seen[key] += 1
    return times


async def _of_row(row: Demonstration, call: Awaitable[_T]) -> _T:
    """What `call` returns. Raises RolloutError, which names the row, where the engine lacks memory."""
    try:
        return await call
    except EngineMemoryError as error:
        raise RolloutError(
            f"row {row.id}: {error}. The training has ended; --resume goes on from its last checkpoint, where there is "
            "more memory"
        ) from error


async def _all(calls: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """What the calls return, in order. Where one fails, the others are over before its error is raised: nothing is
    left that the engine would have to finish before it closes."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


class _Stopwatch:
    """Adds the seconds spent inside to `into[stage]`."""

    def __init__(self, into: dict[str, float], stage: str) -> None:
        self._into, self._stage = into, stage

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._into[self._stage] = self._into.get(self._stage, 0.0) + time.perf_counter() - self._started
