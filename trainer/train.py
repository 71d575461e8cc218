"""Training of the rewriting agent from request to published adapter.

`OUT/training` holds what a training needs to go on (checkpoints, history, samples, the best adapter so far); the
published versions lie beside it as `OUT/1`, `OUT/2`. Not here: what happens at each step (`trainer.loop`).
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.assembly import build_gate, open_chat
from agent.engine.loading import context_length, load_config
from agent.models import ModelFiles, resolve_model, tokenizer_sha256
from agent.weights import weights_sha256
from trainer.checkpoints import checkpoints
from trainer.curves import draw_curves
from trainer.data import TrainingData, fits_in, load_training_data
from trainer.folder import check_output, claim, is_first_process, only_training
from trainer.loop import Training
from trainer.policy import open_policy
from trainer.publish import AdapterCard, DataOfTraining, publish, published_before
from trainer.report import StepReport
from trainer.request import TrainingRequest
from trainer.warm_start import require_candidates


def run_training(
    request: TrainingRequest,
    *,
    resume: bool,
    on_report: Callable[[StepReport], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Path:
    """Train, and publish the adapter that did best on the held-out rows; returns its folder.

    Blocks for as long as it takes. Interrupted, it goes on with `resume`.

    Args:
        request: what is to be trained, and where.
        resume: go on from the last whole checkpoint of `request.output`; where a training was begun and killed
            before its first, begin again.
        on_report: called after each step and each evaluation.
        on_note: called with what a person should know of the data and of what is published, a sentence each.

    Raises:
        TrainingSettingsError: the output exists and is not to be resumed, or the settings do not fit together.
        FolderInUseError: another training works in it.
        TrainingDataError, InputFileError: the demonstrations cannot be trained on.
        CheckpointError: there is nothing to resume, or it belongs to another request or other data.
        ModelError: the base model cannot be had, or is not supported.
    """
    folder = request.output / "training"
    check_output(request, folder, resume)
    with only_training(request.output, folder):
        return _train(request, folder, resume, on_report or (lambda _: None), on_note or (lambda _: None))


def _train(
    request: TrainingRequest,
    folder: Path,
    resume: bool,
    on_report: Callable[[StepReport], None],
    on_note: Callable[[str], None],
) -> Path:
    files = resolve_model(request.model)
    chat = open_chat(files)
    data = load_training_data(
        request.source,
        fits_in(context_length(load_config(files.path), request.engine), chat, request.rewrite),
        limit=request.limit,
        eval_rows=request.train.eval_rows,
        seed=request.train.seed,
    )
    for note in data.notes if is_first_process() else ():
        on_note(note)
    warm = request.train.warm_start.file
    if warm is not None and not checkpoints(folder):
        require_candidates(warm)
    base = weights_sha256(files.path)
    claim(folder, request, data, base, tokenizer_sha256(files.path))
    with asyncio.Runner() as runner, open_policy(runner, files, chat, request, folder) as policy:
        gate = build_gate(policy.engine, chat, request.gate)
        training = Training(request, folder, data, chat, policy, gate, base, runner, on_report)
        try:
            training.run(resume)
            return _publish_best(training, request, data, files, base, on_note)
        finally:
            training.close()
            runner.run(gate.aclose())


def _publish_best(
    training: Training,
    request: TrainingRequest,
    data: TrainingData,
    files: ModelFiles,
    base: str,
    on_note: Callable[[str], None],
) -> Path:
    """Publish the best adapter as the next version, unless the newest is the same.

    Processes other than the first only name the output.
    """
    if not training.is_main:
        return request.output
    best, records = training.best, training.history.records()
    if not best.step:
        warm = request.train.warm_start.file is not None
        published = "the warm start" if warm else "the base model's own behaviour"
        on_note(f"no later step did better on the held-out rows: published is {published}")
    draw_curves(records, best.path / "curves.png")
    shutil.copyfile(training.samples.path, best.path / "samples.md")
    card = AdapterCard(
        name=request.output.name,
        base_model=files.name,
        base_commit=files.revision,
        base_revision=base,
        data=DataOfTraining(file=request.source.name, rows=data.rows, sha256=data.sha256),
        left_out=data.left_out,
        tasks=data.tasks,
        settings=_without_paths(request),
        reward=request.train.reward.preset,
        curves=[{"step": record.step, **record.metrics} for record in records if record.kind == "eval"],
        held_out={name: value for name, value in best.metrics.items() if name != "step"},
        step=best.step,
    )
    return published_before(best.path, request.output, card) or publish(best.path, request.output, card)


def _without_paths(request: TrainingRequest) -> dict[str, Any]:
    """The settings as they are published: no folder of this machine."""
    settings = request.model_dump(mode="json", exclude={"kind", "source", "output", "model"})
    if request.train.warm_start.file is not None:
        settings["train"]["warm_start"]["file"] = request.train.warm_start.file.name
    text_model = Path(request.gate.text_model)
    if text_model.is_dir():
        settings["gate"]["text_model"] = text_model.name
    return settings
