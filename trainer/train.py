"""Training of the rewriting agent from request to published adapter.

`OUT/training` holds what a training needs to go on (checkpoints, history, samples, the best adapter so far); the
published versions lie beside it as `OUT/1`, `OUT/2`. The loop itself is TRL's (`trainer.grpo`).
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from peft import LoraConfig
from transformers import TrainerCallback, set_seed
from transformers.utils import logging

from agent.assembly import open_chat
from agent.chat import ChatFormat
from agent.demonstrations import Demonstration
from agent.embeddings import Embedder
from agent.engine.loading import context_length, load_config
from agent.engine.transformers_engine import TransformersEngine
from agent.gate import Gate
from agent.gate.reasoning import ReasoningJudge
from agent.models import ModelFiles, resolve_model
from agent.prompts import proposal_prompt
from agent.rewriter import token_limit
from agent.weights import weights_sha256
from trainer.checkpoints import STATE, checkpoints, remove_unfinished_checkpoints, step_of
from trainer.curriculum import Curriculum
from trainer.curves import draw_curves
from trainer.data import TrainingData, asked, load_training_data
from trainer.evaluation import evaluate
from trainer.folder import check_output, claim, process_count
from trainer.grpo import RewriteTrainer
from trainer.history import History
from trainer.metrics import rollout_metrics
from trainer.publish import AdapterCard, DataOfTraining, publish
from trainer.report import Kind, StepReport
from trainer.request import TrainingRequest
from trainer.rollout import RolloutGroup, RolloutWorker
from trainer.samples import SamplesFile, sample_of
from trainer.warm_start import read_warm_start, warm_start

POLICY = "policy"


def run_training(
    request: TrainingRequest, *, resume: bool, on_report: Callable[[StepReport], None] | None = None
) -> Path:
    """Train, and publish the adapter that did best on the held-out rows; returns its folder.

    Blocks for as long as it takes. Interrupted, it goes on with `resume`.

    Args:
        request: what is to be trained, and where.
        resume: go on from the last whole checkpoint of `request.output`.
        on_report: called after each step and each evaluation.

    Raises:
        TrainingSettingsError: the output exists and is not to be resumed, or the settings do not fit together.
        TrainingDataError, InputFileError: the demonstrations cannot be trained on.
        CheckpointError: there is nothing to resume, or it belongs to another request or other data.
        ModelError: the base model cannot be had, or is not supported.
    """
    folder = request.output / "training"
    check_output(request, folder, resume)
    gate = Gate(request.gate)
    files = resolve_model(request.model)
    chat = open_chat(files)
    data = load_training_data(
        request.source,
        gate,
        _fits(request, files, chat, gate),
        limit=request.limit,
        eval_rows=request.train.eval_rows,
        seed=request.train.seed,
    )
    claim(folder, request, data)
    with asyncio.Runner() as runner, _loaded_engine(runner, files, chat, request) as engine:
        if request.gate.reasoning:
            gate = Gate(request.gate, judge=ReasoningJudge(engine, chat, request.gate.reasoning_threshold))
        training = _Training(request, folder, data, chat, engine, gate, runner, on_report or (lambda _: None))
        try:
            training.run(resume)
            return training.publish(files)
        finally:
            training.close()
            runner.run(gate.aclose())


class _Training:
    """The parts of one training, and what happens between two updates."""

    def __init__(
        self,
        request: TrainingRequest,
        folder: Path,
        data: TrainingData,
        chat: ChatFormat,
        engine: TransformersEngine,
        gate: Gate,
        runner: asyncio.Runner,
        on_report: Callable[[StepReport], None],
    ) -> None:
        settings = request.train
        self._request, self._settings, self._folder, self._data = request, settings, folder, data
        self._engine, self._runner, self._on_report = engine, runner, on_report
        self._chat, self._gate = chat, gate
        self._embedder = Embedder(request.gate.text_model)
        self._worker = RolloutWorker(engine, chat, gate, self._embedder, request.rewrite, settings.reward)
        lengths = [len(row.expert) for row in data.train]
        self._curriculum = Curriculum(lengths, settings.seed, by_difficulty=settings.curriculum)
        self._history = History(folder / "history.jsonl")
        self._samples = SamplesFile(folder / "samples.md")
        self._best: dict[str, float] = {}
        self._pending: dict[str, float] = {}
        os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # of `rollout_func`; the version of TRL is pinned
        lora = settings.lora
        targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
        set_seed(settings.seed)  # of the adapter's first weights; TRL sets its own only after
        config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, task_type="CAUSAL_LM")
        self._trainer = RewriteTrainer(
            engine.add_trainable_adapter(POLICY, config),
            chat.tokenizer,
            settings,
            folder,
            collect=self._collect,
            state=lambda: {"curriculum": self._curriculum.state(), "best": self._best},
            on_log=self._log,
            callbacks=[_BetweenSteps(self._after_step, self._after_save)],
            stop_ids=chat.stop_ids,
            max_tokens=max(token_limit(request.rewrite, len(chat.completion_ids(row.expert))) for row in data.train),
            processes=process_count(),
        )
        self._is_main = self._trainer.accelerator.is_main_process

    def run(self, resume: bool) -> None:
        """The loop, from the start or from the last checkpoint."""
        checkpoint = checkpoints(self._folder)[-1] if resume else None
        if checkpoint is not None:
            state = json.loads((checkpoint / STATE).read_text())
            self._curriculum.restore(state["curriculum"])
            self._best = state["best"]
        step = step_of(checkpoint) if checkpoint else -1
        if self._is_main:
            remove_unfinished_checkpoints(self._folder)
            self._history.rewind(step)
            self._samples.rewind(step)
        if checkpoint is None:
            self._warm_start()
            self._evaluate(0)
        self._engine.hand_over(POLICY)
        self._trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    def _warm_start(self) -> None:
        file = self._settings.warm_start.file
        if file is None:
            return
        rows = self._runner.run(
            read_warm_start(
                file,
                self._gate,
                self._chat,
                context=self._engine.info.max_length,
                held_out={asked(row) for row in self._data.held_out},
            )
        )

        def report(step: int, steps: int, loss: float) -> None:
            self._on_report(StepReport(step, steps, "warm start", {"loss": loss}))

        self._engine.hand_over(POLICY)
        policy = self._trainer.accelerator.unwrap_model(self._trainer.model)
        warm_start(policy, rows, self._settings, self._folder, is_main=self._is_main, on_step=report)
        self._trainer.accelerator.wait_for_everyone()

    def publish(self, files: ModelFiles) -> Path:
        """Publish the best adapter so far as the next version; processes other than the first only name the output."""
        if not self._is_main:
            return self._request.output
        best = self._best_folder(int(self._best["step"]))
        records = self._history.records()
        draw_curves(records, best / "curves.png")
        shutil.copyfile(self._folder / "samples.md", best / "samples.md")
        card = AdapterCard(
            name=self._request.output.name,
            base_model=files.name,
            base_revision=weights_sha256(files.path),
            data=DataOfTraining(file=self._request.source.name, rows=self._data.rows, sha256=self._data.sha256),
            settings=_without_paths(self._request),
            reward=self._settings.reward.preset,
            curves=[{"step": r.step, **r.metrics} for r in records if r.kind == "eval"],
            held_out={name: value for name, value in self._best.items() if name != "step"},
            step=int(self._best["step"]),
        )
        return publish(best, self._request.output, card)

    def close(self) -> None:
        """Close the history's files."""
        self._history.close()

    # -- roll-outs -----------------------------------------------------------------------------

    def _collect(self, step: int, count: int) -> list[RolloutGroup]:
        """`count` groups for this process, those with a signal first.

        Groups whose rewards are all equal are replaced by further demonstrations, `refills` times at most (dynamic
        sampling, arXiv 2503.14476). Every process draws from the same queue and learns every pass rate.
        """
        useful: list[RolloutGroup] = []
        idle: list[RolloutGroup] = []
        seconds: dict[str, float] = {}
        for attempt in range(1 + self._settings.refills):
            rows = self._take(count - len(useful))
            if rows is None:
                break
            groups = self._roll_out([self._data.train[row] for row in rows], f"{step}/{attempt}")
            for name, value in self._worker.seconds.items():
                seconds[name] = seconds.get(name, 0.0) + value
            for row, rate in gather_object([(row, g.pass_rate) for row, g in zip(rows, groups, strict=True)]):
                self._curriculum.report(row, rate)
            useful += [group for group in groups if group.has_signal]
            idle += [group for group in groups if not group.has_signal]
        drawn = useful + idle
        self._pending = rollout_metrics(drawn) | {f"seconds/{name}": value for name, value in seconds.items()}
        self._write_samples(step, drawn)
        self._engine.hand_over(POLICY)
        chosen = drawn[:count]
        updates = self._settings.optimizer.updates_per_rollout
        return [group for update in range(updates) for group in chosen[update::updates]]

    def _take(self, count: int) -> list[int] | None:
        """This process's next rows; None when no process needs any."""
        counts: list[int] = gather_object([count])
        if not any(counts):
            return None
        rows = self._curriculum.take(sum(counts))
        first = sum(counts[: self._trainer.accelerator.process_index])
        return rows[first : first + count]

    def _roll_out(self, rows: list[Demonstration], draw: str) -> list[RolloutGroup]:
        if not rows:
            return []
        return self._runner.run(
            self._worker.groups(
                rows,
                samples=self._settings.samples,
                temperature=self._settings.temperature,
                adapter=POLICY,
                draw=draw,
            )
        )

    # -- between two steps ---------------------------------------------------------------------

    def _after_step(self, step: int) -> bool:
        """Evaluate when it is time to; returns whether a checkpoint is due."""
        generation, rest = divmod(step, self._settings.optimizer.updates_per_rollout)
        if rest:
            return False
        last = generation == self._settings.steps
        if last or generation % self._settings.eval_every == 0:
            self._evaluate(step)
            self._engine.hand_over(POLICY)
        return last or generation % self._settings.save_every == 0

    def _evaluate(self, step: int) -> None:
        if self._is_main:
            metrics = self._runner.run(
                evaluate(
                    self._worker,
                    self._data.held_out,
                    self._embedder,
                    samples=self._settings.eval_samples,
                    temperature=self._settings.temperature,
                    adapter=POLICY,
                )
            )
            self._history.append(step, "eval", metrics)
            self._report(step, "eval", metrics)
            if not self._best or metrics["score"] > self._best["score"]:
                self._best = {**metrics, "step": step}
                self._save_best(step)
        self._trainer.accelerator.wait_for_everyone()

    def _save_best(self, step: int) -> None:
        """Keep the adapter of `step`; the one before goes when no checkpoint needs it (`_after_save`)."""
        unfinished, best = self._folder / ".best-unfinished", self._best_folder(step)
        for leftover in (unfinished, best):
            shutil.rmtree(leftover, ignore_errors=True)
        self._trainer.accelerator.unwrap_model(self._trainer.model).save_pretrained(unfinished)
        unfinished.rename(best)

    def _best_folder(self, step: int) -> Path:
        return self._folder / f"best-{step}"

    def _after_save(self) -> None:
        """The newest checkpoint names the best adapter so far: others are not needed any more."""
        if self._is_main:
            for path in self._folder.glob("best-*"):
                if path != self._best_folder(int(self._best["step"])):
                    shutil.rmtree(path, ignore_errors=True)

    def _log(self, step: int, logs: dict[str, float]) -> None:
        if "loss" not in logs:
            return  # the summary of the whole run
        names = ("loss", "grad_norm", "learning_rate", "kl", "entropy", "clip_ratio/high_mean", "clip_ratio/low_mean")
        metrics = self._pending | {name: float(logs[name]) for name in names if logs.get(name) is not None}
        self._pending = {}
        if self._is_main:
            self._history.append(step, "train", metrics)
            self._report(step, "train", metrics)

    def _write_samples(self, step: int, groups: list[RolloutGroup]) -> None:
        generation = step // self._settings.optimizer.updates_per_rollout
        if self._is_main and generation % self._settings.sample_every == 0:
            self._samples.append(step, [sample_of(group) for group in groups[:3]])

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


@contextmanager
def _loaded_engine(
    runner: asyncio.Runner, files: ModelFiles, chat: ChatFormat, request: TrainingRequest
) -> Iterator[TransformersEngine]:
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # of weights being loaded
    engine = TransformersEngine(files.name, files.path, chat.tokenizer, chat.stop_ids, request.engine)
    try:
        yield engine
    finally:
        runner.run(engine.close())


def _fits(request: TrainingRequest, files: ModelFiles, chat: ChatFormat, gate: Gate) -> Callable[[Demonstration], bool]:
    """Whether prompt and longest rewrite of a row fit the context."""
    context = context_length(load_config(files.path), request.engine)

    def fits(row: Demonstration) -> bool:
        limit = token_limit(request.rewrite, len(chat.completion_ids(row.expert)))
        prompt = proposal_prompt("rewrite", row, gate.task_of(row), with_examples=False)
        return prompt is not None and len(chat.prompt_ids(prompt)) + limit <= context

    return fits


def _without_paths(request: TrainingRequest) -> dict[str, Any]:
    """The settings as they are published: no folder of this machine."""
    settings = request.model_dump(mode="json", exclude={"kind", "source", "output", "model"})
    if request.train.warm_start.file is not None:
        settings["train"]["warm_start"]["file"] = request.train.warm_start.file.name
    text_model = Path(request.gate.text_model)
    if text_model.is_dir():
        settings["gate"]["text_model"] = text_model.name
    return settings
