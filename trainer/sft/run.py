"""Fine-tuning from request to written model.

`OUT/training` holds what an interrupted run goes on from: checkpoints, history, and what the base model made of the
tokens that are weighted. The loop itself is TRL's (`trainer.sft.trainer`).
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModelForCausalLM
from transformers.utils import logging

from agent.assembly import open_chat
from agent.chat import ChatFormat
from agent.engine.loading import (
    context_length,
    keep_freed_memory,
    load_config,
    load_model,
    pick_device,
    pick_dtype,
    usable_cores,
)
from agent.engine.lora_linear import use_lora_linear
from agent.models import ModelFiles, resolve_model, tokenizer_sha256
from agent.weights import weights_sha256
from trainer.agreement import check_agreement
from trainer.checkpoints import last_checkpoint, remove_unfinished_checkpoints, step_of
from trainer.devices import with_dtype
from trainer.exceptions import TrainingDataError, TrainingSettingsError
from trainer.folder import TOKENIZER, check_source, claim_as, only_training, open_folder, process_count
from trainer.history import History
from trainer.lora import seeded_lora
from trainer.publish import DataOfTraining
from trainer.report import Kind, StepReport
from trainer.request import SftRequest
from trainer.sft.data import SftData, SftRow, count_tokens, load_sft_data
from trainer.sft.losses import INITIAL, mean_loss, row_losses, write_losses
from trainer.sft.publish import SftCard, write_model
from trainer.sft.settings import WITHOUT_EFFECT
from trainer.sft.trainer import DownstreamTrainer, sft_config, steps_of
from trainer.sft.weights import BaseTokens, ask, base_tokens, is_weighted, row_weights


def run_sft(
    request: SftRequest,
    *,
    resume: bool,
    on_report: Callable[[StepReport], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Path:
    """Fine-tune, and write the model; returns its folder.

    Blocks for as long as it takes. Interrupted, it goes on with `resume`.

    Args:
        request: what is to be trained, on what, and where the model goes.
        resume: go on from the last whole checkpoint of `request.output`; killed before its first, begin again.
        on_report: called after each step, and with the loss before the first and after the last.
        on_note: called with what a person should know of the data, a sentence each.

    Raises:
        TrainingSettingsError: the output exists and is not to be resumed, or the settings do not fit together.
        FolderInUseError: another fine-tuning works in it.
        TrainingDataError, InputFileError: the data cannot be trained on.
        CheckpointError: there is nothing to resume, or it belongs to another request or other data.
        ModelError: the base model cannot be had, or is not supported.
        DivergedError: a loss or gradient is not finite; names the rows.
        PublishError: the model cannot be written.
    """
    folder = request.output / "training"
    check_output(request, folder, resume)
    with only_training(request.output, folder):
        return _tune(request, folder, resume, on_report or (lambda _: None), on_note or (lambda _: None))


def _tune(
    request: SftRequest,
    folder: Path,
    resume: bool,
    on_report: Callable[[StepReport], None],
    on_note: Callable[[str], None],
) -> Path:
    files = resolve_model(request.model)
    chat = open_chat(files)
    context = context_length(load_config(files.path), request.engine)
    max_length = min(request.sft.max_length or context, context)
    data = load_sft_data(request.source, chat, max_length=max_length, limit=request.limit)
    if request.sft.weights.kind != "none" and not any(is_weighted(request.sft.weights, row) for row in data.rows):
        data.notes.append(
            'every row has an accepted rewrite, so sft.weights changes nothing; apply_to = "all" weights every row'
        )
    for note in data.notes:
        on_note(note)
    revision = weights_sha256(files.path)
    claim_as(folder, _described(request, data, revision, tokenizer_sha256(files.path)))
    run = _Run(request, folder, data, chat, files, revision, on_report)
    try:
        run.train(resume)
        return run.write()
    finally:
        run.close()


def check_output(request: SftRequest, folder: Path, resume: bool) -> None:
    """What can be refused before anything is loaded. Raises as `run_sft`."""
    check_agreement(request, process_count())
    if request.output.is_file():
        raise TrainingSettingsError(f"{request.output} is a file; the model is written to a folder")
    if not resume and request.output.is_dir() and (others := _other_files(request.output)):
        raise TrainingSettingsError(
            f"{request.output} holds {', '.join(others[:3])} already; choose another output, or pass --resume to go on "
            "with a fine-tuning of the same settings"
        )
    check_source(request.source)
    open_folder(request.output, folder, resume)


def _other_files(output: Path) -> list[str]:
    return sorted(path.name for path in output.iterdir() if path.name != "training" and not path.name.startswith("."))


class _Run:
    """The parts of one fine-tuning."""

    def __init__(
        self,
        request: SftRequest,
        folder: Path,
        data: SftData,
        chat: ChatFormat,
        files: ModelFiles,
        revision: str,
        on_report: Callable[[StepReport], None],
    ) -> None:
        settings = request.sft
        self._request, self._settings, self._folder, self._data = request, settings, folder, data
        self._chat, self._files, self._revision, self._on_report = chat, files, revision, on_report
        self._history = History(folder / "history.jsonl")
        processes = process_count()
        self._steps = steps_of(settings, len(data.rows), processes)
        device = pick_device(request.engine.device)
        compute = pick_dtype(request.engine.dtype, device)
        full = settings.method == "full"
        config = sft_config(
            settings,
            folder,
            self._steps,
            processes,
            use_cpu=device.type == "cpu",
            autocast=full and compute == torch.bfloat16,
        )
        model = _load(request, files, torch.float32 if full else compute)
        rows = data.rows
        weighted = [row for row in rows if is_weighted(settings.weights, row)]
        self._owner = [revision, str(model.dtype)]
        cache, top_k = request.base_tokens or folder, settings.weights.entropy_top_k
        base = base_tokens(model, weighted, top_k, cache, self._owner) if weighted else []
        self._weights = row_weights(settings.weights, rows, base)
        if not any(bool(weights[:-1].any()) for weights in self._weights):
            raise TrainingDataError(
                f"{request.source}: sft.weights leaves nothing to train on but the ends of turns; "
                "raise sft.weights.mask_perplexity"
            )
        self._measured = _drawn(rows, settings.loss_rows, settings.seed)
        self._step_began = time.monotonic()
        self._trainer = DownstreamTrainer(
            _with_adapter(model, request) if not full else model.requires_grad_(True),
            chat.tokenizer,
            settings,
            config,
            rows,
            self._weights,
            base=_frozen_copy(model, compute) if full and settings.kl_weight else None,
            on_log=self._log,
        )
        self._is_main = self._trainer.accelerator.is_main_process

    def train(self, resume: bool) -> None:
        """The loop, from the start or from the last checkpoint."""
        checkpoint = last_checkpoint(self._folder, self._steps) if resume else None
        if self._is_main:
            remove_unfinished_checkpoints(self._folder)
            self._history.rewind(step_of(checkpoint) if checkpoint else -1)
        if checkpoint is None:
            self._measure(0)
        self._step_began = time.monotonic()
        if checkpoint is not None and step_of(checkpoint) == self._steps:
            self._trainer.take_weights(checkpoint)
        else:
            self._trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    def write(self) -> Path:
        """Write the model; processes other than the first only name the output."""
        self._measure(self._steps)
        if not self._is_main:
            return self._request.output
        records = self._history.records()
        losses = [record.metrics["nll"] for record in records if record.kind == "eval"]
        steps = [record.metrics for record in records if record.kind == "train"]
        tokens = count_tokens(self._data.rows)
        tokens["without_weight"] = sum(int((weights == 0).sum()) for weights in self._weights)
        card = SftCard(
            name=self._request.output.name,
            base_model=self._files.name,
            base_revision=self._revision,
            data=DataOfTraining(self._request.source.name, len(self._data.rows), self._data.sha256),
            statuses=self._data.statuses,
            left_out=self._data.left_out,
            tokens=tokens,
            trained_tokens=round(sum(step["completion_tokens"] for step in steps)),
            steps=self._steps,
            seconds=sum(step["seconds"] for step in steps),
            loss_rows=len(self._measured),
            initial_loss=losses[0],
            final_loss=losses[-1],
            notes=self._data.notes,
            settings=_published_settings(self._request),
        )
        write_model(self._model, self._chat.tokenizer, self._request.output, card)
        return self._request.output

    def close(self) -> None:
        """Close the history's files."""
        self._history.close()

    @property
    def _model(self) -> Any:
        """The trained model itself, without what Accelerate wraps around it, autocasting included."""
        return self._trainer.accelerator.unwrap_model(self._trainer.model, keep_fp32_wrapper=False)

    def _measure(self, step: int) -> None:
        """The loss before the first and after the last update."""
        said: Iterable[BaseTokens] = ask(self._model, self._measured)
        if step == 0 and (shared := self._request.base_tokens):  # the frozen base still: asked once for all trainings
            said = base_tokens(self._model, self._measured, None, shared, self._owner)
        if self._is_main:
            losses = row_losses(self._measured, said)
            metrics = {"nll": mean_loss(losses)}
            if step == 0:
                write_losses(self._folder / INITIAL, losses)
            self._history.append(step, "eval", metrics)
            self._report(step, "eval", metrics)
        self._trainer.accelerator.wait_for_everyone()

    def _log(self, step: int, logs: dict[str, float]) -> None:
        if "loss" not in logs:
            return  # the summary of the whole run
        now = time.monotonic()
        names = ("loss", "nll", "kl", "grad_norm", "learning_rate", "completion_tokens")
        metrics = {name: float(logs[name]) for name in names if logs.get(name) is not None}
        metrics["seconds"], self._step_began = now - self._step_began, now
        if self._is_main:
            self._history.append(step, "train", metrics)
            self._report(step, "train", metrics)

    def _report(self, step: int, kind: Kind, metrics: dict[str, float]) -> None:
        self._on_report(StepReport(step, self._steps, kind, metrics))


def _load(request: SftRequest, files: ModelFiles, dtype: torch.dtype) -> Any:
    torch.set_num_threads(request.engine.threads or usable_cores())
    keep_freed_memory()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # of weights being loaded
    name = "bfloat16" if dtype == torch.bfloat16 else "float32"
    return load_model(files.path, request.engine.model_copy(update={"dtype": name}))


def _with_adapter(model: Any, request: SftRequest) -> PeftModelForCausalLM:
    try:
        return PeftModelForCausalLM(model, use_lora_linear(seeded_lora(request.sft.lora, request.sft.seed)))
    except ValueError as error:
        raise TrainingSettingsError(f"sft.lora fits no layer of the model: {error}") from error


def _frozen_copy(model: Any, dtype: torch.dtype) -> Any:
    return copy.deepcopy(model).to(dtype).eval().requires_grad_(False)


def _drawn(rows: list[SftRow], count: int, seed: int) -> list[SftRow]:
    """All rows where they are few, else `count` of them, in order."""
    if len(rows) <= count:
        return rows
    return [rows[i] for i in sorted(random.Random(f"{seed}/loss").sample(range(len(rows)), count))]


def _published_settings(request: SftRequest) -> dict[str, Any]:
    """What decides how the model came out, and no folder of this machine."""
    engine = {"dtype", "device", "max_length"}
    return request.model_dump(mode="json", include={"engine": engine, "sft": True, "limit": True})


def _described(request: SftRequest, data: SftData, revision: str, tokenizer: str) -> dict[str, Any]:
    """What decides how the next step comes out.

    `revision` and `tokenizer` are hashes of the base model's weights, and of its tokenizer and chat template.
    """
    free = set(WITHOUT_EFFECT)
    if request.sft.schedule == "constant_with_warmup" and not request.sft.warmup:
        free |= {"steps", "epochs"}
    return {
        "data": data.sha256,
        TOKENIZER: tokenizer,
        "weights of the base model": revision,
        "dtype": with_dtype(request.engine).dtype,
        "model": request.model.model_dump(mode="json"),
        "sft": request.sft.model_dump(mode="json", exclude=free),
    }
