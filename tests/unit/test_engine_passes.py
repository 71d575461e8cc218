"""Forward passes that fail: which failure is a request's own, and which is the end of the engine."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

import pytest
import torch

from agent.engine.passes import guarded
from agent.engine.requests import ScoreRequest
from agent.exceptions import EngineMemoryError


def _failing(error: Exception) -> Callable[[], None]:
    def compute() -> None:
        raise error

    return compute


def _request() -> ScoreRequest:
    return ScoreRequest([1], [2], None, Future())


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("shapes do not fit"), RuntimeError),
        (MemoryError(), EngineMemoryError),
        (torch.OutOfMemoryError("CUDA out of memory"), EngineMemoryError),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), EngineMemoryError),
        (torch.AcceleratorError("CUDA error: out of memory"), EngineMemoryError),
    ],
)
def test_a_request_that_cannot_be_computed_is_told_and_the_engine_goes_on(
    error: Exception, told: type[Exception]
) -> None:
    request = _request()
    assert guarded(_failing(error), [request]) is None
    assert type(request.future.exception(0)) is told


def test_a_broken_accelerator_ends_the_engine_and_is_blamed_on_no_request() -> None:
    request = _request()
    with pytest.raises(torch.AcceleratorError):
        guarded(_failing(torch.AcceleratorError("CUDA error: an illegal memory access was encountered")), [request])
    assert not request.future.done()
