"""Traces for OpenTelemetry: a request, the demonstrations in it, and what each asks of an engine.

Off unless `server.traces` names a collector; this module, and OpenTelemetry, are then not imported. Spans have counts,
lengths and names of this package; no text of a row, and of an exception only its type.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import httpx
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agent.engine import Completion, EngineInfo, Sampling
from server.hosting import ServedEngine
from server.metrics import EngineCount
from server.requests import route_of

_EXPORT_TIMEOUT_S = 10.0

_log = logging.getLogger("rewright.server")


class Tracing:
    """What makes spans and sends them away, in a thread of its own.

    Args:
        url: where the collector takes OTLP over HTTP.
    """

    def __init__(self, url: str) -> None:
        resource = Resource.create({"service.name": "rewright", "service.version": version("rewright")})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(_OtlpExporter(url)))
        self.tracer: Tracer = self._provider.get_tracer("rewright")

    def close(self) -> None:
        """Send what is left. Blocks."""
        self._provider.shutdown()


class TracedRequests:
    """ASGI middleware: a span of every request, below the one that its `traceparent` names."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app, self._tracer = app, tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        parent = TraceContextTextMapPropagator().extract(dict(Headers(scope=scope)))
        with span(self._tracer, "request", kind=SpanKind.SERVER, context=parent) as current:

            async def send_noting(message: Message) -> None:
                if message["type"] == "http.response.start":
                    current.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        current.set_status(Status(StatusCode.ERROR))
                await send(message)

            try:
                await self._app(scope, receive, send_noting)
            finally:
                if (route := route_of(scope)) is not None:
                    current.update_name(f"{scope['method'][:16]} {route}")
                    current.set_attribute("http.route", route)


class TracedEngine:
    """See `ServedEngine`; a span of every call that computes."""

    def __init__(self, engine: ServedEngine, tracer: Tracer) -> None:
        self._engine, self._tracer = engine, tracer

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, n: int = 1, adapter: str | None = None
    ) -> list[Completion]:
        """See `Engine.generate`."""
        with span(self._tracer, "engine.generate", prompt_tokens=len(prompt_ids), samples=n) as current:
            completions = await self._engine.generate(prompt_ids, sampling, n, adapter)
            current.set_attribute("completion_tokens", sum(len(c.ids) for c in completions))
            return completions

    async def score(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], adapter: str | None = None
    ) -> list[float]:
        """See `Engine.score`."""
        with span(self._tracer, "engine.score", prompt_tokens=len(prompt_ids)) as current:
            current.set_attribute("completion_tokens", len(completion_ids))
            return await self._engine.score(prompt_ids, completion_ids, adapter)

    async def load(self, adapter: str) -> None:
        """See `ServedEngine.load`."""
        await self._engine.load(adapter)

    async def loaded(self) -> frozenset[str]:
        """See `ServedEngine.loaded`."""
        return await self._engine.loaded()

    async def count(self) -> EngineCount:
        """See `ServedEngine.count`."""
        return await self._engine.count()

    async def check(self) -> None:
        """See `Engine.check`."""
        await self._engine.check()


@contextmanager
def span(
    tracer: Tracer, name: str, *, kind: SpanKind = SpanKind.INTERNAL, context: Any = None, **attributes: AttributeValue
) -> Iterator[Span]:
    """Within: the current span; an exception that leaves it is told by its type alone."""
    with tracer.start_as_current_span(
        name, context, kind, attributes, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield current
        except BaseException as error:
            current.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise


class _OtlpExporter(SpanExporter):
    """Sends spans as OTLP in JSON: https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._http = httpx.Client(timeout=_EXPORT_TIMEOUT_S, trust_env=False)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """See `SpanExporter.export`."""
        body = {
            "resourceSpans": [
                {
                    "resource": {"attributes": _attributes(spans[0].resource.attributes)},
                    "scopeSpans": [{"scope": {"name": "rewright"}, "spans": [_otlp(s) for s in spans]}],
                }
            ]
        }
        try:
            self._http.post(self._url, json=body).raise_for_status()
        except httpx.HTTPError as error:
            _log.warning("%d spans are lost: the collector of server.traces: %s", len(spans), type(error).__name__)
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """See `SpanExporter.shutdown`."""
        self._http.close()


def _otlp(span: ReadableSpan) -> dict[str, Any]:
    own = span.get_span_context()
    assert own is not None
    return {
        "traceId": f"{own.trace_id:032x}",
        "spanId": f"{own.span_id:016x}",
        "parentSpanId": f"{span.parent.span_id:016x}" if span.parent else "",
        "name": span.name,
        "kind": span.kind.value + 1,  # OTLP counts from 1
        "startTimeUnixNano": str(span.start_time),
        "endTimeUnixNano": str(span.end_time),
        "attributes": _attributes(span.attributes or {}),
        "status": {"code": span.status.status_code.value, "message": span.status.description or ""},
    }


def _attributes(values: Mapping[str, object]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in values.items()]


def _value(value: object) -> dict[str, Any]:
    match value:
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value}
        case str():
            return {"stringValue": value}
        case _:
            return {"stringValue": str(value)}
