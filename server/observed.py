"""A rewriter that tells what it does. The agent knows nothing of metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from agent.demonstrations import BadRow, Demonstration
from agent.rewriter import Rewriter, Rewritten
from server.metrics import Metrics


class ObservedRewriter(Rewriter):
    """See `Rewriter`; `metrics` is told of every record."""

    def __init__(self, metrics: Metrics, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._metrics = metrics

    async def rewrite(self, demonstration: Demonstration) -> Rewritten:
        """See `Rewriter.rewrite`."""
        rewritten = await super().rewrite(demonstration)
        self._metrics.count_rewritten(rewritten)
        return rewritten


def counting_bad_rows(rows: Iterable[Demonstration | BadRow], metrics: Metrics) -> Iterator[Demonstration | BadRow]:
    """The same rows; those that no rewriter will see are counted as they pass."""
    for row in rows:
        if isinstance(row, BadRow):
            metrics.count_row("error", "expert")
        yield row
