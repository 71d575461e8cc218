"""Which devices a process trains on."""

from __future__ import annotations

from typing import TypeVar

from transformers import TrainingArguments

Arguments = TypeVar("Arguments", bound=TrainingArguments)


def on_one_device(arguments: Arguments) -> Arguments:
    """The arguments, for one GPU at most: more of them are more processes (`--workers`).

    A process that sees several would otherwise split every pack of rows over them (`torch.nn.DataParallel`), which
    tells nobody where a row ends, and take as many times the rows for an update.
    """
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
