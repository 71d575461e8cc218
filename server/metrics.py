"""What the service counts, for Prometheus.

There is one HTTP process to a state folder, and it rewrites, checks and answers; so its own counters are those of the
whole service, however many engines there are. They count what was done since it started: a row of a job that is done
again after a kill counts twice here, and once in the job's `request_counts`.

Labels are words of this package, route templates, and names of published adapters: nothing that a client chooses.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agent.rewriter import Rewritten
from agent.usage import Usage

UNMATCHED = "unmatched"  # the route of a path that is none, and of a request that is refused before it has one
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 1800.0)
_ROWS = (
    ("self_solved", "solve"),
    ("rewritten", "hint"),
    ("rewritten", "rewrite"),
    ("fallback", "expert"),
    ("error", "expert"),
)


@dataclass(frozen=True, slots=True)
class EngineCount:
    """Engines that answer now, and all that were ever heard of: the first, replacements, and those scaling added."""

    answering: int
    started: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How things stand at the moment.

    Attributes:
        queue_rows: demonstrations in the house, those of jobs too.
        queue_capacity: the most there may be.
        engines: None where none was heard of in time.
        active: active version of each published adapter that has one.
        jobs: number of jobs in each state.
    """

    queue_rows: int
    queue_capacity: int
    engines: EngineCount | None = None
    active: Mapping[str, int] = field(default_factory=dict)
    jobs: Mapping[str, int] = field(default_factory=dict)


class Metrics:
    """The counters of one application; to be used from its event loop."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._rows = Counter("rewright_rows", "Demonstrations answered.", ["status", "proposer"], registry=registry)
        self._tokens = Counter("rewright_tokens", "Tokens read, sampled and scored.", ["kind"], registry=registry)
        self._refusals = Counter(
            "rewright_gate_failures", "Candidates refused, by the check that decided.", ["check"], registry=registry
        )
        self._requests = Histogram(
            "rewright_http_request_seconds",
            "Time from the head of a request to the head of its answer.",
            ["method", "route", "status"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._in_flight = Gauge("rewright_http_requests_in_flight", "Requests being answered.", registry=registry)
        build = {"version": version("rewright"), "python": platform.python_version()}
        Info("rewright_build", "What runs here.", registry=registry).info(build)
        self._standing = _Standing()
        registry.register(self._standing)
        for status, proposer in _ROWS:  # so that a rate over the first one of a kind is right
            self._rows.labels(status, proposer)

    def count_row(self, status: str, proposer: str) -> None:
        """A demonstration has its record."""
        self._rows.labels(status, proposer).inc()

    def count_rewritten(self, rewritten: Rewritten) -> None:
        """A demonstration that could be read has its record, and cost tokens and refused candidates."""
        self.count_row(rewritten.record.status, rewritten.record.proposer)
        self.count_tokens(rewritten.usage)
        for check in rewritten.refused_by:
            self._refusals.labels(check).inc()

    def count_tokens(self, usage: Usage) -> None:
        self._tokens.labels("prompt").inc(usage.prompt_tokens)
        self._tokens.labels("completion").inc(usage.completion_tokens)
        self._tokens.labels("scored").inc(usage.scored_tokens)

    def begin_request(self) -> None:
        self._in_flight.inc()

    def end_request(self, method: str, route: str | None, status: int | None, seconds: float) -> None:
        """A request was answered.

        Args:
            method: as the client named it.
            route: template of the route, None where none matched.
            status: None where the client went away before there was one.
            seconds: until the head of the answer.
        """
        self._in_flight.dec()
        known = method if method in _METHODS else "other"
        family = f"{status // 100}xx" if status is not None else "none"
        self._requests.labels(known, route or UNMATCHED, family).observe(seconds)

    def render(self, snapshot: Snapshot) -> bytes:
        """All of it in Prometheus's text format, version 0.0.4."""
        self._standing.snapshot = snapshot
        return generate_latest(self._registry)


class _Standing(Collector):
    """Shows a snapshot."""

    def __init__(self) -> None:
        self.snapshot: Snapshot | None = None

    def collect(self) -> Iterator[Metric]:
        if (now := self.snapshot) is None:
            return
        yield GaugeMetricFamily("rewright_queue_rows", "Demonstrations in the house.", now.queue_rows)
        yield GaugeMetricFamily("rewright_queue_capacity_rows", "The most there may be.", now.queue_capacity)
        yield GaugeMetricFamily("rewright_engines", "Engines that answer.", now.engines.answering if now.engines else 0)
        if now.engines:
            yield CounterMetricFamily(
                "rewright_engine_starts",
                "Engines heard of: the first ones, those that replaced a dead one, those that scaling added.",
                now.engines.started,
            )
        active = GaugeMetricFamily("rewright_adapter_active_version", "Version that is active.", labels=["adapter"])
        for name, number in now.active.items():
            active.add_metric([name], number)
        yield active
        jobs = GaugeMetricFamily("rewright_jobs", "Jobs that are kept, by state.", labels=["status"])
        for status, count in now.jobs.items():
            jobs.add_metric([status], count)
        yield jobs
