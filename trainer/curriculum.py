"""In which order demonstrations are trained on: short experts first, then what sometimes passes.

The first pass over the data goes from short experts to long ones, slightly shuffled; of more rows than the training has
time for it begins with a random choice, or only the shortest would be seen. What a step may draw in place of rows that
teach nothing lies beside them, so that the way from short to long takes the whole training. Later passes begin with
rows of middling pass rate, since a group that always or never passes teaches nothing. The order depends on the seed and
the pass rates alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from trainer.exceptions import CheckpointError

# How far a row may move from its place by length, as a share of all rows.
_SHUFFLE = 0.1


def span_of_step(rows: int, steps: int, groups: int, refills: int) -> int:
    """How many of `rows` a step may take or pass over, so that one pass from short to long lasts all `steps`.

    Refills included where there are rows enough; never fewer than its `groups`.
    """
    return min(groups * (1 + refills), max(groups, rows // steps))


class Curriculum:
    """An endless queue of row numbers.

    Args:
        lengths: how long the expert of each row is, in any unit.
        seed: of the shuffling.
        by_difficulty: False shuffles every pass.
        planned: rows that the training will take or pass over.
    """

    def __init__(self, lengths: Sequence[int], seed: int, *, by_difficulty: bool, planned: int) -> None:
        self._lengths, self._seed, self._by_difficulty, self._planned = list(lengths), seed, by_difficulty, planned
        self._pass_rates: dict[int, float] = {}
        self._epoch = 0
        self._queue = self._order()

    def take(self, count: int) -> list[int]:
        """The next `count` rows; none comes twice before all others came."""
        taken: list[int] = []
        while len(taken) < count:
            if not self._queue:
                self._epoch += 1
                self._queue = self._order()
            needed = count - len(taken)
            taken += self._queue[:needed]
            del self._queue[:needed]
        return taken

    def pass_over(self, count: int) -> None:
        """Put the next `count` rows, a step's reserve, behind all others, where one pass is enough for the training."""
        if not self._epoch and self._planned <= len(self._lengths):
            self._queue = self._queue[count:] + self._queue[:count]

    def report(self, row: int, pass_rate: float) -> None:
        """Remember the share of a row's rewrites that passed."""
        self._pass_rates[row] = pass_rate

    def state(self) -> dict[str, Any]:
        """What `restore` needs, as JSON."""
        rates = {str(row): rate for row, rate in self._pass_rates.items()}
        return {"epoch": self._epoch, "queue": list(self._queue), "pass_rates": rates}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken. Raises CheckpointError when it names rows that are not there."""
        queue, rates = list(state["queue"]), {int(row): rate for row, rate in state["pass_rates"].items()}
        if any(not 0 <= row < len(self._lengths) for row in (*queue, *rates)):
            raise CheckpointError("the checkpoint names rows that the data does not have; it belongs to other data")
        self._epoch, self._queue, self._pass_rates = state["epoch"], queue, rates

    def _order(self) -> list[int]:
        rows = list(range(len(self._lengths)))
        source = random.Random(f"{self._seed}/{self._epoch}")
        noise = [source.random() for _ in rows]
        if not self._by_difficulty:
            return sorted(rows, key=noise.__getitem__)
        if self._epoch:
            return sorted(rows, key=lambda row: abs(self._pass_rates.get(row, 0.5) - 0.5) + 0.5 * noise[row])
        source.shuffle(rows)
        parts = (rows[: self._planned], rows[self._planned :])
        return [row for part in parts for row in self._from_short_to_long(part, noise)]

    def _from_short_to_long(self, rows: list[int], noise: list[float]) -> list[int]:
        rank = {row: place / len(rows) for place, row in enumerate(sorted(rows, key=self._lengths.__getitem__))}
        return sorted(rows, key=lambda row: rank[row] + _SHUFFLE * noise[row])
