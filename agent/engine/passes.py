"""What every forward pass of the engine needs around it: its futures settled, and running out of memory survived."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, TypeVar

import torch

from agent.engine.requests import GenerationRequest, ScoreRequest
from agent.exceptions import EngineMemoryError

T = TypeVar("T")


def guarded(compute: Callable[[], T], blamed: Iterable[GenerationRequest | ScoreRequest]) -> T | None:
    """The result of a forward pass; None when it failed, which the blamed requests are told.

    Raises:
        torch.AcceleratorError: no request is to blame. What an accelerator fails with once it answers to everything
            from then on, so this ends the engine.
    """
    try:
        return compute()
    except (RuntimeError, MemoryError) as error:
        reason: Exception = error
        if is_out_of_memory(error):
            reason = EngineMemoryError("the engine ran out of memory on this request; shorten it or lower n")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        elif isinstance(error, torch.AcceleratorError):
            raise
        for request in blamed:
            fail(request.future, reason)
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, its libraries or Python refused memory; torch's CPU allocator and CUDA only say so in words."""
    words = str(error)
    refused = "can't allocate memory" in words or "CUDA error: out of memory" in words
    return refused or isinstance(error, MemoryError | torch.OutOfMemoryError)


def succeed(future: Future[Any], result: object) -> None:
    """Give a result to whoever still waits."""
    if not future.done() and (future.running() or future.set_running_or_notify_cancel()):
        future.set_result(result)


def fail(future: Future[Any], error: Exception) -> None:
    """Give an error to whoever still waits."""
    if not future.done() and (future.running() or future.set_running_or_notify_cancel()):
        future.set_exception(error)
