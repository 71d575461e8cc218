"""The steps of one training, and what happens between two updates: evaluation, the best adapter, checkpoints, history.

The loop itself is TRL's (`trainer.grpo`). Not here: opening what it needs, and publishing what comes of it
(`trainer.train`).
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from agent.chat import ChatFormat
from agent.embeddings import Embedder
from agent.gate import Gate
from agent.rewriter import token_limit
from trainer.best import BestAdapter
from trainer.checkpoints import STATE, last_checkpoint, remove_unfinished_checkpoints, step_of
from trainer.curriculum import Curriculum, span_of_step
from trainer.data import TrainingData, asked
from trainer.draws import Draws
from trainer.evaluation import evaluate
from trainer.folder import process_count
from trainer.grpo import RewriteTrainer
from trainer.history import History
from trainer.policy import Policy
from trainer.report import Kind, StepReport
from trainer.request import TrainingRequest
from trainer.rollout import RolloutGroup, RolloutWorker
from trainer.samples import SamplesFile, sample_of
from trainer.warm_start import read_warm_start, warm_start

_OF_THE_UPDATE = (
    *("loss", "grad_norm", "learning_rate", "kl", "entropy", "clip_ratio/high_mean", "clip_ratio/low_mean"),
    *("engine/difference", "engine/weight", "engine/cut"),
)


class Training:
    """The parts of one training, and what they do at each step.

    Args:
        request: what is to be trained.
        folder: of the training.
        data: its rows.
        chat: format of the base model.
        policy: what is trained.
        gate: decides what is feasible.
        base: SHA-256 of the base model's weights.
        runner: runs what is asynchronous.
        on_report: called after each step and each evaluation.

    Attributes:
        history: of its metrics.
        samples: for people to read.
        best: the adapter to publish.
        is_main: whether this process writes files.
    """

    def __init__(
        self,
        request: TrainingRequest,
        folder: Path,
        data: TrainingData,
        chat: ChatFormat,
        policy: Policy,
        gate: Gate,
        base: str,
        runner: asyncio.Runner,
        on_report: Callable[[StepReport], None],
    ) -> None:
        settings = request.train
        self._settings, self._folder, self._data, self._chat, self._gate = settings, folder, data, chat, gate
        self._policy, self._base, self._runner, self._on_report = policy, base, runner, on_report
        self._embedder = Embedder(request.gate.text_model)
        # The embedder is of use to every evaluation, but to no reward of the gate alone.
        rewarding = None if settings.reward.preset == "gate_only" else self._embedder
        self._worker = RolloutWorker(policy.engine, chat, gate, rewarding, request.rewrite, settings.reward)
        lengths = [len(row.expert) for row in data.train]
        span = span_of_step(len(lengths), settings.steps, settings.groups, settings.refills)
        planned = settings.steps * span
        self._curriculum = Curriculum(lengths, settings.seed, by_difficulty=settings.curriculum, planned=planned)
        self._draws = Draws(policy, self._worker, data.train, self._curriculum, settings, runner)
        self.history = History(folder / "history.jsonl")
        self.samples = SamplesFile(folder / "samples.md")
        self.best = BestAdapter(folder)
        self._pending: dict[str, float] = {}
        self._drawn_from = 0
        os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # of `rollout_func`; the version of TRL is pinned
        self._trainer = RewriteTrainer(
            policy.model,
            chat.tokenizer,
            settings,
            folder,
            collect=self._collect,
            state=lambda: {"curriculum": self._curriculum.state(), "best": self.best.metrics},
            measures_kl=self._is_sampled,
            on_log=self._log,
            callbacks=[_BetweenSteps(self._after_step, self._after_save)],
            stop_ids=chat.stop_ids,
            max_tokens=max(token_limit(request.rewrite, len(chat.completion_ids(row.expert))) for row in data.train),
            correct=policy.engine_is_apart,
            processes=process_count(),
        )
        self.is_main: bool = self._trainer.accelerator.is_main_process

    def run(self, resume: bool) -> None:
        """The loop, from the last checkpoint if there is one and `resume` asks for it, else from the start."""
        checkpoint = last_checkpoint(self._folder, self._settings.optimizer_steps) if resume else None
        if checkpoint is not None:
            state = json.loads((checkpoint / STATE).read_text())
            self._curriculum.restore(state["curriculum"])
            self.best.metrics = state["best"]
        step = step_of(checkpoint) if checkpoint else -1
        if self.is_main:
            remove_unfinished_checkpoints(self._folder)
            self.history.rewind(step)
            self.samples.rewind(step)
        if checkpoint is None:
            self._warm_start()
            self._evaluate(0)
        self._policy.hand_over()
        self._trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    def close(self) -> None:
        """Close the history's files."""
        self.history.close()

    def _warm_start(self) -> None:
        file = self._settings.warm_start.file
        if file is None:
            return
        rows = self._runner.run(
            read_warm_start(
                file,
                self._gate,
                self._chat,
                context=self._policy.engine.info.max_length,
                held_out={asked(row) for row in self._data.held_out},
            )
        )

        def report(step: int, steps: int, loss: float) -> None:
            self._on_report(StepReport(step, steps, "warm start", {"loss": loss}))

        self._policy.hand_over()
        if self._settings.optimizer.gradient_checkpointing:  # which transformers' loop turns on as it begins
            self._policy.model.gradient_checkpointing_enable()
        warm_start(
            self._policy.model, rows, self._settings, self._folder, self._base, is_main=self.is_main, on_step=report
        )
        self._trainer.accelerator.wait_for_everyone()

    # -- a step --------------------------------------------------------------------------------

    def _collect(self, step: int, count: int) -> list[RolloutGroup]:
        """`count` groups for this process, in the order of the updates that share them."""
        drawn = self._draws.draw(step, count)
        self._pending, self._drawn_from = drawn.metrics, drawn.policy_step
        self._write_samples(step, drawn.groups)
        self._policy.hand_over()
        chosen = drawn.groups[:count]
        updates = self._settings.optimizer.updates_per_rollout
        return [group for update in range(updates) for group in chosen[update::updates]]

    def _log(self, step: int, logs: dict[str, float]) -> None:
        if "loss" not in logs:
            return  # the summary of the whole run
        metrics = self._pending | {name: float(logs[name]) for name in _OF_THE_UPDATE if logs.get(name) is not None}
        metrics["staleness"] = step - 1 - self._drawn_from  # updates between the weights that drew and those updated
        self._pending = {}
        if self.is_main:
            self.history.append(step, "train", metrics)
            self._report(step, "train", metrics)

    def _is_sampled(self, step: int) -> bool:
        """Whether the groups of the update after `step` are among those that are looked at more closely."""
        return step // self._settings.optimizer.updates_per_rollout % self._settings.sample_every == 0

    def _write_samples(self, step: int, groups: list[RolloutGroup]) -> None:
        if self.is_main and self._is_sampled(step):
            self.samples.append(step, [sample_of(group) for group in groups[:3]])

    # -- between two steps ---------------------------------------------------------------------

    def _after_step(self, step: int) -> bool:
        """Evaluate when it is time to; returns whether a checkpoint is due."""
        generation, rest = divmod(step, self._settings.optimizer.updates_per_rollout)
        if rest:
            return False
        last = generation == self._settings.steps
        if last or generation % self._settings.eval_every == 0:
            self._evaluate(step)
            self._policy.hand_over()
        return last or generation % self._settings.save_every == 0

    def _evaluate(self, step: int) -> None:
        metrics = self._runner.run(self._measure_held_out(step))
        if self.is_main:
            self.history.append(step, "eval", metrics)
            self._report(step, "eval", metrics)
            self.best.consider(step, metrics, self._policy.model)
        self._trainer.accelerator.wait_for_everyone()

    async def _measure_held_out(self, step: int) -> dict[str, float]:
        version = await self._policy.publish(step)
        return await evaluate(
            self._worker,
            self._data.held_out,
            self._embedder,
            samples=self._settings.eval_samples,
            temperature=self._settings.temperature,
            adapter=version.adapter,
        )

    def _after_save(self) -> None:
        if self.is_main:
            self.best.forget_others()

    def _report(self, step: int, kind: Kind, metrics: dict[str, float]) -> None:
        self._on_report(StepReport(step, self._settings.optimizer_steps, kind, metrics))


class _BetweenSteps(TrainerCallback):
    """Calls `after_step` with the number of finished steps, saves when it says so, then calls `after_save`."""

    def __init__(self, after_step: Callable[[int], bool], after_save: Callable[[], None]) -> None:
        self._after_step, self._after_save = after_step, after_save

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        control.should_save = self._after_step(state.global_step)
        return control

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._after_save()
