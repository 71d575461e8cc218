"""Which devices a process trains on, and in which type it computes there."""

from __future__ import annotations

from typing import TypeVar

from transformers import TrainingArguments

from agent.engine.loading import pick_device, pick_dtype
from agent.settings import EngineSettings

Arguments = TypeVar("Arguments", bound=TrainingArguments)


def on_one_device(arguments: Arguments) -> Arguments:
    """The arguments, for one GPU at most: more of them are more processes (`--workers`).

    A process that sees several would otherwise split every pack of rows over them (`torch.nn.DataParallel`), which
    tells nobody where a row ends, and take as many times the rows for an update.
    """
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def with_dtype(engine: EngineSettings) -> EngineSettings:
    """The settings with the type that `auto` stands for on this machine, so that results say what they were made in.

    Raises:
        ModelError: CUDA is asked for and absent.
    """
    dtype = pick_dtype(engine.dtype, pick_device(engine.device))
    return engine.model_copy(update={"dtype": str(dtype).removeprefix("torch.")})
