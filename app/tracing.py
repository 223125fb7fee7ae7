"""OpenTelemetry: a trace of every call, and metrics by the conventions for generative models, sent to a collector.

Imported only where OTEL_EXPORTER_OTLP_ENDPOINT is set. Nothing happens while a call runs but that its place in the trace is noted; its
spans are built when it has ended, from what its record knows anyway, and sent by a thread of their own in batches, bounded. Prompts,
answers and credentials are never in them.

The conventions have moved out of the library's own package and are not stable, so their names stand here.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import requests
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from app import __version__, telemetry
from app.domain.call import Attempt, Meter, Outcome
from app.telemetry import SECONDS, shown_model

if TYPE_CHECKING:
    from opentelemetry.context import Context

SPANS_EVERY_MS = 1_000
METRICS_EVERY_MS = 15_000
EXPORT_TIMEOUT_S = 5
TOKEN_BOUNDS = tuple(4**power for power in range(14))
"""1, 4, 16 … 67,108,864, as the conventions have it."""
OPERATIONS = {
    "chat": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
    "responses": "chat",
    "messages": "chat",
}
"""By dialect; another one goes by its own name."""
PROVIDERS = {"openai": "openai", "anthropic": "anthropic", "litellm": "litellm", "demo": "antigravity.demo"}

OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
RESPONSE_MODEL = "gen_ai.response.model"
ERROR = "error.type"


Value = str | int | bool | float | tuple[str, ...]


class Ids(IdGenerator):
    """Ids of spans that were given out before their spans were made."""

    def __init__(self) -> None:
        self.trace_id = self.span_id = 0

    def generate_trace_id(self) -> int:
        given, self.trace_id = self.trace_id, 0
        return given or random.getrandbits(128)

    def generate_span_id(self) -> int:
        given, self.span_id = self.span_id, 0
        return given or random.getrandbits(64)


class Tracing:
    def __init__(self, endpoint: str, service_name: str) -> None:
        base = endpoint.rstrip("/")
        resource = Resource.create({"service.name": service_name, "service.version": __version__})
        self._ids = Ids()
        self._spans = TracerProvider(resource=resource, id_generator=self._ids)
        exporter = OTLPSpanExporter(f"{base}/v1/traces", timeout=EXPORT_TIMEOUT_S, session=_session())
        self._spans.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=SPANS_EVERY_MS))
        self._tracer = self._spans.get_tracer("antigravity", __version__)
        metrics = OTLPMetricExporter(f"{base}/v1/metrics", timeout=EXPORT_TIMEOUT_S, session=_session())
        reader = PeriodicExportingMetricReader(metrics, export_interval_millis=METRICS_EVERY_MS)
        seconds, tokens = (ExplicitBucketHistogramAggregation(bounds) for bounds in (SECONDS, TOKEN_BOUNDS))
        self._metrics = MeterProvider(
            [reader],
            resource=resource,
            views=[
                View(instrument_name="gen_ai.client.operation.*", aggregation=seconds),
                View(instrument_name="gen_ai.client.token.usage", aggregation=tokens),
            ],
        )
        meter = self._metrics.get_meter("antigravity", __version__)
        self._duration = meter.create_histogram("gen_ai.client.operation.duration", "s")
        self._first_chunk = meter.create_histogram("gen_ai.client.operation.time_to_first_chunk", "s")
        self._tokens = meter.create_histogram("gen_ai.client.token.usage", "{token}")

    def ended(self, meter: Meter) -> None:
        """Tell of a finished call."""
        self._measure(meter)
        trace = meter.trace
        if trace is None:
            return
        begins_ns = meter.created_at_ms * 1_000_000
        parent = _context(trace.trace_id, trace.parent_id, trace.is_sampled) if trace.parent_id else None
        self._ids.trace_id, self._ids.span_id = int(trace.trace_id, 16), int(trace.span_id, 16)
        call = self._tracer.start_span(
            f"{_operation(meter)} gateway", parent, SpanKind.SERVER, _attributes(meter), start_time=begins_ns
        )
        own = set_span_in_context(call)
        for attempt in meter.attempts:
            self._attempt(meter, attempt, own, begins_ns)
        if meter.error_code:
            call.set_attribute(ERROR, meter.error_code)
            call.set_status(Status(StatusCode.ERROR, meter.error_code))
        call.end(begins_ns + (meter.duration_ms or 0) * 1_000_000)

    def close(self) -> None:
        self._spans.shutdown()
        self._metrics.shutdown(timeout_millis=EXPORT_TIMEOUT_S * 1_000)

    def _attempt(self, meter: Meter, attempt: Attempt, own: Context, begins_ns: int) -> None:
        """A span of kind CLIENT, as the conventions describe a call of a model."""
        attributes = _attributes(meter) | {PROVIDER: PROVIDERS.get(attempt.provider, attempt.provider)}
        attributes["gateway.endpoint"] = attempt.endpoint_id
        if attempt is meter.attempts[-1]:
            attributes |= _usage(meter)
        model = meter.model.name if meter.model else meter.call.model
        starts_ns = begins_ns + attempt.started_ms * 1_000_000
        span = self._tracer.start_span(
            f"{_operation(meter)} {model}", own, SpanKind.CLIENT, attributes, start_time=starts_ns
        )
        if attempt.upstream_status is not None:
            span.set_attribute("http.response.status_code", attempt.upstream_status)
        if attempt.reason:
            span.set_attribute(ERROR, attempt.reason)
            span.set_status(Status(StatusCode.ERROR, attempt.reason))
        ended_ms = meter.duration_ms if attempt.ended_ms is None else attempt.ended_ms
        span.end(begins_ns + (ended_ms or attempt.started_ms) * 1_000_000)

    def _measure(self, meter: Meter) -> None:
        provider = meter.endpoint.provider.value if meter.endpoint else "none"
        labels: dict[str, str] = {
            OPERATION: _operation(meter),
            PROVIDER: PROVIDERS.get(provider, provider),
            REQUEST_MODEL: shown_model(meter.model.name if meter.model else None),
        }
        if meter.outcome is not Outcome.OK and meter.outcome is not None:
            labels[ERROR] = meter.outcome.value
        self._duration.record((meter.duration_ms or 0) / 1000, labels)
        if meter.first_token_ms is not None:
            self._first_chunk.record(meter.first_token_ms / 1000, labels)
        if meter.usage is not None:
            self._tokens.record(meter.usage.prompt_tokens, labels | {"gen_ai.token.type": "input"})
            self._tokens.record(meter.usage.completion_tokens, labels | {"gen_ai.token.type": "output"})


@contextmanager
def traced(endpoint: str, service_name: str) -> Iterator[None]:
    """Inside the context every finished call is told of."""
    tracing = Tracing(endpoint, service_name)
    telemetry.tell_traces(tracing.ended)
    try:
        yield
    finally:
        telemetry.tell_traces(None)
        tracing.close()


def _session() -> requests.Session:
    session = requests.Session()
    session.trust_env = False  # no proxy and no .netrc of the machine's
    return session


def _operation(meter: Meter) -> str:
    return OPERATIONS.get(meter.call.dialect, meter.call.dialect)


def _attributes(meter: Meter) -> dict[str, Value]:
    call = meter.call
    found: dict[str, Value] = {
        OPERATION: _operation(meter),
        REQUEST_MODEL: meter.model.name if meter.model else "unknown",
        "gen_ai.request.stream": call.is_stream,
        "gateway.request_id": meter.request_id,
        "gateway.outcome": meter.outcome.value if meter.outcome else "interrupted",
        "http.response.status_code": meter.http_status,
    }
    if call.max_tokens is not None:
        found["gen_ai.request.max_tokens"] = call.max_tokens
    if meter.endpoint is not None:
        found[PROVIDER] = PROVIDERS.get(meter.endpoint.provider.value, meter.endpoint.provider.value)
        found[RESPONSE_MODEL] = meter.endpoint.upstream_model
    return found


def _usage(meter: Meter) -> dict[str, Value]:
    found: dict[str, Value] = {}
    if meter.usage is not None:
        found["gen_ai.usage.input_tokens"] = meter.usage.prompt_tokens
        found["gen_ai.usage.output_tokens"] = meter.usage.completion_tokens
        if meter.usage.cached_tokens:
            found["gen_ai.usage.cache_read.input_tokens"] = meter.usage.cached_tokens
        if meter.usage.reasoning_tokens:
            found["gen_ai.usage.reasoning.output_tokens"] = meter.usage.reasoning_tokens
    if meter.finish_reason:
        found["gen_ai.response.finish_reasons"] = (meter.finish_reason,)
    if meter.first_token_ms is not None:
        found["gen_ai.response.time_to_first_chunk"] = meter.first_token_ms / 1000
    return found


def _context(trace_id: str, span_id: str, is_sampled: bool) -> Context:
    flags = TraceFlags(TraceFlags.SAMPLED if is_sampled else TraceFlags.DEFAULT)
    remote = SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=flags)
    return set_span_in_context(NonRecordingSpan(remote))
