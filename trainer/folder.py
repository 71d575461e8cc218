"""The folder of one training: what is refused before anything is loaded, and whose checkpoints it holds."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from agent.adapters import is_name
from agent.disk import write_whole
from agent.intake import on_hub, read_rows
from trainer.agreement import check_agreement
from trainer.checkpoints import checkpoints, last_checkpoint
from trainer.data import TrainingData
from trainer.devices import with_dtype
from trainer.exceptions import CheckpointError, TrainingDataError, TrainingSettingsError
from trainer.lock import alone_in
from trainer.request import TrainingRequest

TOKENIZER = "tokenizer or chat template"

_CLAIM = "request.json"


def process_count() -> int:
    """Data-parallel processes of this training, this one included."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this process is the one that writes and speaks."""
    return os.environ.get("RANK", "0") == "0"


def check_output(request: TrainingRequest, folder: Path, resume: bool) -> None:
    """What can be refused before anything is loaded. Raises TrainingSettingsError, what `check_source` raises, and
    CheckpointError as `open_folder` and `last_checkpoint` do.
    """
    if not is_name(request.output.name):
        raise TrainingSettingsError(
            f"{request.output}: the folder's name is the adapter's; use letters, digits, '.', '_' and '-'"
        )
    check_agreement(request, process_count())
    file = request.train.warm_start.file
    if file is not None and not checkpoints(folder) and not file.exists() and not on_hub(file):
        raise TrainingSettingsError(f"train.warm_start.file {file}: there is no such file")
    check_source(request.source)
    open_folder(request.output, folder, resume)
    if resume:
        last_checkpoint(folder, request.train.optimizer_steps)


def check_source(source: Path) -> None:
    """Read the first row, so that no folder is made for an input without one; what can be read once only is left.

    Raises:
        InputFileError: `source` cannot be read.
        TrainingDataError: it holds no rows.
    """
    if on_hub(source) or source.is_fifo():
        return
    if next(read_rows(source), None) is None:
        raise TrainingDataError(f"{source} holds no rows")


def open_folder(output: Path, folder: Path, resume: bool) -> None:
    """Make the folder that a training of `output` goes on from.

    Resumed where it was killed before its first checkpoint, a training begins again, with what its warm start has
    fitted.

    Raises:
        CheckpointError: there is nothing to resume.
        TrainingSettingsError: there is, and it was not asked for; or nothing can be written.
    """
    if resume and not checkpoints(folder) and not (folder / _CLAIM).exists():
        raise CheckpointError(f"{output}: there is no checkpoint to resume from; start without --resume")
    if not resume and checkpoints(folder):
        raise TrainingSettingsError(
            f"{output} holds an unfinished or finished training; pass --resume, or another output"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingSettingsError(f"{output} cannot be written: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise TrainingSettingsError(f"{output} cannot be written: permission denied")


def only_training(output: Path, folder: Path) -> AbstractContextManager[None]:
    """Within: no other training works in `folder`, which is there. The first process sees to that for all of its own.

    Raises:
        FolderInUseError: another training works in it.
        OSError: it cannot be written.
    """
    return alone_in(folder, output) if is_first_process() else nullcontext()


def claim(folder: Path, request: TrainingRequest, data: TrainingData, base: str, tokenizer: str) -> None:
    """Write down what is trained here, or compare with what was written. Raises as `claim_as`.

    Args:
        folder: of the training.
        request: what is trained.
        data: its rows.
        base: SHA-256 of the base model's weights.
        tokenizer: SHA-256 of the files of its tokenizer and chat template.
    """
    # What decides how the next step comes out; more steps may be asked for where they do not change the schedule. The
    # warm start is over when there is a checkpoint, and its rows may have come from wherever. Activations that are
    # computed anew are the same, and who runs out of memory must be able to ask for that.
    free: dict[str, Any] = {"save_every": True, "keep_checkpoints": True, "engine_memory": True}
    free |= {"warm_start": {"file"}, "optimizer": {"gradient_checkpointing"}}
    if request.train.optimizer.schedule == "constant_with_warmup":
        free["steps"] = True
    described = {
        "data": data.sha256,
        "weights of the base model": base,
        TOKENIZER: tokenizer,
        "engine": request.engine.kind,
        "dtype": with_dtype(request.engine).dtype,
        **request.model_dump(mode="json", include={"model", "gate", "rewrite"}),
        "train": request.train.model_dump(mode="json", exclude=free),
    }
    claim_as(folder, described)


def claim_as(folder: Path, described: Mapping[str, Any]) -> None:
    """Write down what decides how the steps of a training come out, or compare with what was written.

    Raises:
        CheckpointError: the checkpoints in `folder` were made otherwise; names the settings.
    """
    path = folder / _CLAIM
    if checkpoints(folder) and path.exists():
        if different := list(_differing(described, json.loads(path.read_text()))):
            raise CheckpointError(
                f"{folder}: the checkpoint was made with other {' and '.join(different)}; "
                "resume with the same settings and data, or choose another output"
            )
    elif is_first_process():
        write_whole(path, json.dumps(described, indent=2))


def _differing(described: Mapping[str, Any], known: Mapping[str, Any]) -> Iterator[str]:
    """Names of what differs, dotted; what an earlier version did not write down is taken as the same."""
    for name, value in described.items():
        before = known.get(name, value)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            yield from (f"{name}.{inner}" for inner in _differing(value, before))
        elif value != before:
            yield name
