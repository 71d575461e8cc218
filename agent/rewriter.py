"""One demonstration in, one record out: propose, check, and keep the feasible candidate nearest to the base model.

The steps of a strategy are tried in order; the first attempt with a feasible candidate decides. A candidate must
pass the gate and be less surprising to the base model than the expert, or there would be no reason to prefer it.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from agent.chat import ChatFormat
from agent.demonstrations import Demonstration
from agent.engine import Completion, Engine, Sampling
from agent.engine.limits import room_for_new_tokens
from agent.exceptions import (
    ChatError,
    EngineCrashError,
    EngineMemoryError,
    GateError,
    MismatchError,
    PromptTooLongError,
)
from agent.gate import Gate, task_of
from agent.mismatch import nats_of, summarise
from agent.prompts import proposal_prompt
from agent.records import Check, Mismatch, Proposer, Record, Status, Verdict
from agent.search import Grown, grow
from agent.settings import ProposerName, RewriteSettings, Step
from agent.strategies import Strategy
from agent.tokenise import demonstration_ids, require_room, tokenised
from agent.usage import Usage


@dataclass(frozen=True, slots=True)
class Rewritten:
    """The record of one demonstration and what it cost.

    `refused_by` has the deciding check of every candidate that was refused.
    """

    record: Record
    usage: Usage
    refused_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A candidate with the gate's verdict, and its mismatch once it is feasible."""

    text: str
    verdict: Verdict
    mismatch: Mismatch | None = None


class Rewriter:
    """Rewrites demonstrations; safe to call for many of them concurrently.

    Args:
        engine: samples and scores.
        chat: the chat format of the engine's model.
        gate: decides which candidates may be kept.
        strategy: the steps to try.
        settings: sampling limits and the seed.
        adapter: loaded adapter for the `rewrite` proposer, None for the base model.
    """

    def __init__(
        self,
        engine: Engine,
        chat: ChatFormat,
        gate: Gate,
        strategy: Strategy,
        settings: RewriteSettings,
        adapter: str | None = None,
    ) -> None:
        self._engine, self._chat, self._gate = engine, chat, gate
        self._strategy, self._settings, self._adapter = strategy, settings, adapter

    async def aclose(self) -> None:
        """Stop the gate's processes; the engine stays, it belongs to the caller."""
        await self._gate.aclose()

    async def rewrite(self, demonstration: Demonstration) -> Rewritten:
        """The record of `demonstration`.

        A row that cannot be handled (too long, refused by the chat template, no gate for it, out of memory, it kills
        the engine, its mismatch is no number) becomes a record with status `error` that keeps the expert; failures of
        the engine itself propagate.
        """
        job = _Job(self, demonstration)
        try:
            record = await job.run()
        except (
            ChatError,
            PromptTooLongError,
            EngineMemoryError,
            EngineCrashError,
            GateError,
            MismatchError,
        ) as error:
            record = job.record("error", "expert", demonstration.expert, error=str(error))
        return Rewritten(record, job.usage, tuple(job.refused_by))


class _Job:
    """The state of one demonstration on its way through the strategy."""

    def __init__(self, rewriter: Rewriter, demonstration: Demonstration) -> None:
        self._engine, self._chat, self._gate = rewriter._engine, rewriter._chat, rewriter._gate
        self._strategy, self._settings, self._adapter = rewriter._strategy, rewriter._settings, rewriter._adapter
        self._demonstration = demonstration
        self._plain_ids: list[int] = []
        self._attempts = 0
        self._expert: Mismatch | None = None
        self._expert_tokens = 0
        self._refused: Verdict | None = None
        self.refused_by: list[str] = []
        self.usage = Usage()

    async def run(self) -> Record:
        demonstration = self._demonstration
        texts = [*(turn.content for turn in demonstration.prompt), demonstration.expert]
        if demonstration.reference_answer is not None:  # proposals have it too
            texts.append(demonstration.reference_answer)
        require_room(self._chat, self._engine.info, texts)
        task = task_of(demonstration)
        self._plain_ids, expert_ids = await demonstration_ids(
            self._chat, self._engine.info, demonstration.prompt, demonstration.expert
        )
        self._expert = await self._mismatch(expert_ids)
        self._expert_tokens = self._expert.tokens
        for step in self._strategy:
            room = self._engine.info.max_length - self._max_tokens
            prompt_ids = await tokenised(
                partial(proposal_ids, self._chat, step.proposer, demonstration, task, room),
                texts,
            )
            if prompt_ids is None:
                continue
            if (chosen := await self._climb(step, prompt_ids)) is not None:
                status: Status = "self_solved" if step.proposer == "solve" else "rewritten"
                return self.record(status, step.proposer, chosen.text, gate=chosen.verdict, mismatch=chosen.mismatch)
        return self.record("fallback", "expert", demonstration.expert, gate=self._refused, mismatch=self._expert)

    @property
    def _max_tokens(self) -> int:
        return token_limit(self._settings, self._expert_tokens)

    async def _climb(self, step: Step, prompt_ids: Sequence[int]) -> _Candidate | None:
        """Attempts of one step up its temperature ladder, until one has an acceptable candidate."""
        for temperature in step.temperatures:
            self._attempts += 1
            sampling = Sampling(
                temperature=temperature,
                top_p=self._settings.top_p,
                max_tokens=min(self._max_tokens, room_for_new_tokens(self._engine.info, prompt_ids)),
                seed=self._seed(),
            )
            completions = await self._draw(step, prompt_ids, sampling)
            if (chosen := await self._choose(completions)) is not None:
                return chosen
        return None

    async def _draw(self, step: Step, prompt_ids: Sequence[int], sampling: Sampling) -> list[Completion]:
        """The candidates of one attempt: drawn whole, or each grown sentence by sentence."""
        if step.choices == 1:
            adapter = self._adapter_of(step.proposer)
            completions = await self._engine.generate(prompt_ids, sampling, step.samples, adapter)
            self.usage += Usage(len(prompt_ids), sum(len(c.ids) for c in completions))
            return completions
        grown = await asyncio.gather(
            *(self._grow(step, prompt_ids, sampling.part(number)) for number in range(step.samples))
        )
        for one in grown:
            self.usage += one.usage
        return [one.completion for one in grown]

    async def _grow(self, step: Step, prompt_ids: Sequence[int], sampling: Sampling) -> Grown:
        return await grow(
            self._engine,
            self._chat,
            prompt_ids,
            self._plain_ids,
            sampling,
            step.choices,
            lambda beginning: self._gate.may_pass(self._demonstration, beginning),
            self._adapter_of(step.proposer),
        )

    def _adapter_of(self, proposer: Proposer) -> str | None:
        return self._adapter if proposer == "rewrite" else None

    async def _choose(self, completions: Sequence[Completion]) -> _Candidate | None:
        """The acceptable candidate with the lowest mismatch; remembers why the last one was refused."""
        # Of equal texts the last one counts: one that is finished, where there is one.
        cut_off_first = sorted(completions, key=lambda c: c.finish_reason == "stop")
        distinct = {c.text.strip(): c for c in cut_off_first}
        candidates = await asyncio.gather(*(self._examine(text, c) for text, c in distinct.items()))
        refused = [c for c in candidates if not c.verdict.passed]
        accepted = [c for c in candidates if c.verdict.passed and c.mismatch is not None]
        if refused:
            self._refused = refused[-1].verdict
        self.refused_by += [c.verdict.failed_check.name for c in refused if c.verdict.failed_check]
        return min(accepted, key=lambda c: c.mismatch.nll if c.mismatch else 0.0, default=None)

    async def _examine(self, text: str, completion: Completion) -> _Candidate:
        verdict = await self._gate.check(self._demonstration, text, finished=completion.finish_reason == "stop")
        if not verdict.passed:
            return _Candidate(text, verdict)
        mismatch = await self._mismatch(self._chat.completion_ids(text))
        assert self._expert is not None
        nearer = mismatch.nll < self._expert.nll
        detail = f"{mismatch.nll:.3f} {'<' if nearer else '>='} {self._expert.nll:.3f} nats per token"
        return _Candidate(text, _with_check(verdict, Check("mismatch", nearer, detail)), mismatch)

    async def _mismatch(self, ids: Sequence[int]) -> Mismatch:
        self.usage += Usage(scored_tokens=len(ids))
        return summarise(nats_of(await self._engine.score(self._plain_ids, ids)))

    def _seed(self) -> int | None:
        """Depends on the row and the attempt alone, so that order and concurrency do not change the draw."""
        if self._settings.seed is None:
            return None
        return zlib.crc32(f"{self._settings.seed}/{self._demonstration.id}/{self._attempts}".encode())

    def record(
        self,
        status: Status,
        proposer: Proposer,
        target: str,
        *,
        gate: Verdict | None = None,
        mismatch: Mismatch | None = None,
        error: str | None = None,
    ) -> Record:
        return Record(
            demonstration=self._demonstration,
            status=status,
            proposer=proposer,
            target=target,
            attempts=self._attempts,
            gate=gate,
            expert_mismatch=self._expert,
            target_mismatch=mismatch,
            adapter=self._adapter_of(proposer),
            model=self._engine.info.model,
            error=error,
        )


def token_limit(settings: RewriteSettings, expert_tokens: int) -> int:
    """New tokens that a candidate may have."""
    return settings.max_tokens or 64 + 3 * expert_tokens // 2


def proposal_ids(
    chat: ChatFormat, proposer: ProposerName, demonstration: Demonstration, task: str, room: int
) -> list[int] | None:
    """Token ids of a proposer's prompt, or None when it lacks what it needs.

    Worked examples are left out where they do not fit into `room` tokens; without them the prompt may still be longer.
    """
    for with_examples in (True, False):
        prompt = proposal_prompt(proposer, demonstration, task, with_examples=with_examples)
        if prompt is None:
            return None
        ids = chat.prompt_ids(prompt)
        if len(ids) <= room:
            break
    return ids


def _with_check(verdict: Verdict, check: Check) -> Verdict:
    return replace(verdict, passed=verdict.passed and check.passed, checks=(*verdict.checks, check))
