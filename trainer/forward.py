"""Another forward pass in the place of a model's own.

What Accelerate wraps around a model for several processes must be called, and see every weight that gets a gradient
used within the call: whoever uses decoder and head apart does so in here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def called_for(model: Any, function: Callable[..., Any]) -> Iterator[None]:
    """Have calls of `model` answered by `function`, those through what is wrapped around it included."""
    own = vars(model).get("forward")  # Accelerate's, which autocasts
    model.forward = function
    try:
        yield
    finally:
        if own is None:
            del model.forward
        else:
            model.forward = own
