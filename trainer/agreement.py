"""What settings of a training must agree on: refused from the request alone, before it is submitted or begun.

Imports neither torch nor Ray, so that a client can ask. Not here: what is in the output's folder (`trainer.folder`).
"""

from __future__ import annotations

from trainer.exceptions import TrainingSettingsError
from trainer.request import SftRequest, TrainingRequest
from trainer.sft.settings import SftSettings

_HOTTEST_VLLM = 2.0


def check_agreement(request: TrainingRequest | SftRequest, processes: int) -> None:
    """Refuse what cannot be trained by so many processes, whatever data and machine.

    Raises:
        TrainingSettingsError: rows or groups cannot be shared out evenly, or the engine does not train so.
    """
    if isinstance(request, SftRequest):
        _check_sft(request, processes)
    else:
        _check_train(request, processes)


def check_batches(settings: SftSettings, processes: int) -> None:
    """Refuse batches of a fine-tuning that so many processes cannot share out evenly. Raises TrainingSettingsError."""
    if settings.batch_rows % (settings.rows_per_pass * processes):
        raise TrainingSettingsError(
            f"sft.batch_rows ({settings.batch_rows}) must be divisible by {processes} workers x sft.rows_per_pass "
            f"({settings.rows_per_pass})"
        )


def _check_sft(request: SftRequest, processes: int) -> None:
    if request.engine.kind != "transformers":
        raise TrainingSettingsError("fine-tuning needs engine.kind transformers")
    check_batches(request.sft, processes)


def _check_train(request: TrainingRequest, processes: int) -> None:
    train = request.train
    if request.engine.kind == "vllm":
        if processes > 1:
            raise TrainingSettingsError(
                f"engine.kind vllm trains in one process, not in {processes} workers; use one, or engine.kind "
                "transformers"
            )
        if train.temperature > _HOTTEST_VLLM:
            raise TrainingSettingsError(
                f"train.temperature is {train.temperature:g}, and vLLM draws at {_HOTTEST_VLLM:g} at most"
            )
    passes = train.optimizer.groups_per_pass * train.optimizer.updates_per_rollout
    if train.groups % (processes * passes):
        raise TrainingSettingsError(
            f"train.groups ({train.groups}) must be divisible by {processes} workers x {passes} groups a pass"
        )
