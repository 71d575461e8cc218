"""A training that diverged ends with an error that names the step, instead of going on with weights that are NaN."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch.nn.utils import get_total_norm

from trainer.exceptions import DivergedError

# Times the norm of the weights before the first update: no training that learns anything gets near.
_RUINED = 1000.0

_Trainer: Any = object  # a trainer in truth: TRL's, after this class in the order of bases


class EndsWhenDiverged(_Trainer):  # type: ignore[misc]
    """Mixed in before a trainer of TRL: an update whose gradient is not finite is not made.

    Attributes:
        update_rows: ids of the rows of the update that is going on.
    """

    update_rows: Sequence[str] = ()
    _first_norm: float | None = None

    def _clip_grad_norm(self, model: Any) -> Any:
        if self._first_norm is None:
            self._first_norm = self._norm()
        norm = super()._clip_grad_norm(model)
        if not math.isfinite(float(norm)):
            raise self._diverged(f"the norm of the gradient is {float(norm)}", self.update_rows)
        return norm

    def _diverged(self, what: str, rows: Sequence[str]) -> DivergedError:
        told = f"step {self.state.global_step + 1}: {what}"
        norm, first = self._norm(), self._first_norm
        if self.state.global_step and (not math.isfinite(norm) or (first is not None and norm > _RUINED * first)):
            return DivergedError(
                f"{told}, and no row is to blame: the updates before have ruined the weights; start again in another "
                "output with a lower learning rate"
            )
        return DivergedError.of_rows(told, rows)

    def _norm(self) -> float:
        """Of all weights that are trained."""
        return float(get_total_norm([weight.detach() for weight in self.model.parameters() if weight.requires_grad]))
