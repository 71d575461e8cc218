"""A rewriter that tells what it does. The agent knows nothing of metrics and traces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from agent.demonstrations import BadRow, Demonstration
from agent.rewriter import Rewriter, Rewritten
from server.metrics import Metrics
from server.settings import ServerSettings

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from server.tracing import Tracing


class ObservedRewriter(Rewriter):
    """See `Rewriter`; `metrics` is told of every record, and `tracer`, where there is one, of the time it took."""

    def __init__(self, metrics: Metrics, tracer: Tracer | None, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._metrics, self._tracer = metrics, tracer

    async def rewrite(self, demonstration: Demonstration) -> Rewritten:
        """See `Rewriter.rewrite`."""
        if self._tracer is None:
            rewritten = await super().rewrite(demonstration)
        else:
            rewritten = await self._rewrite_traced(demonstration, self._tracer)
        self._metrics.count_rewritten(rewritten)
        return rewritten

    async def _rewrite_traced(self, demonstration: Demonstration, tracer: Tracer) -> Rewritten:
        from server.tracing import span

        with span(tracer, "rewrite") as current:
            rewritten = await super().rewrite(demonstration)
            record = rewritten.record
            current.set_attributes({"status": record.status, "proposer": record.proposer, "attempts": record.attempts})
            return rewritten


def counting_bad_rows(rows: Iterable[Demonstration | BadRow], metrics: Metrics) -> Iterator[Demonstration | BadRow]:
    """The same rows; those that no rewriter will see are counted as they pass."""
    for row in rows:
        if isinstance(row, BadRow):
            metrics.count_row("error", "expert")
        yield row


def open_tracing(settings: ServerSettings) -> Tracing | None:
    """Where the spans of this process go; None where the settings name no collector."""
    if settings.traces is None:
        return None
    from server.tracing import Tracing  # OpenTelemetry is imported by those who use it

    return Tracing(settings.traces)
