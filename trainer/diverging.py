"""A training that diverged ends with an error that names the step, instead of going on with weights that are NaN."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from trainer.exceptions import DivergedError

_Trainer: Any = object  # a trainer in truth: TRL's, after this class in the order of bases


class EndsWhenDiverged(_Trainer):  # type: ignore[misc]
    """Mixed in before a trainer of TRL: an update whose gradient is not finite is not made.

    Attributes:
        update_rows: ids of the rows of the update that is going on.
    """

    update_rows: Sequence[str] = ()

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        if not math.isfinite(float(norm)):
            raise self._diverged(f"the norm of the gradient is {float(norm)}", self.update_rows)
        return norm

    def _diverged(self, what: str, rows: Sequence[str]) -> DivergedError:
        return DivergedError(f"step {self.state.global_step + 1}: {what}", rows)
