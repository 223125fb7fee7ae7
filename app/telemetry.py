"""What the gateway says about itself while it runs: every metric, and the fields of its log lines, declared once.

Metrics are plain numbers of this process (`app.instruments`); `/metrics` shows them (`app.exposition`). A label is never a user, a
key, or a name that a caller may choose: those are in the log and in the usage records. Names of models are the catalog's, and only
the first `MODELS_SHOWN` get a series of their own.

The log is one JSON object a line on standard error: `ts` (RFC 3339, UTC), `level`, `event`, and fields that carry their unit in the
name. The line of a call is written on the hot path, so it is encoded directly; everything else goes through structlog.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec
import structlog

from app import __version__
from app.domain.call import Meter
from app.domain.trace import RANDOM_BYTES, TraceContext, trace_of
from app.exceptions import GatewayError, LimitReached
from app.instruments import OTHER, Registry
from app.log_lines import LogLines

logger: structlog.stdlib.BoundLogger = structlog.get_logger("gateway")

# ── Metrics ───────────────────────────────────────────────────────────────────────────────────────────────────────────

MODELS_SHOWN = 100
"""Models that get series of their own; with their histograms some 5 kB of the page each. Those beyond are counted as `other`."""
DEPLOYMENTS_SHOWN = 300
NO_MODEL = "none"
"""In the place of a name that no model has: a caller may invent those without end."""

SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
"""As the conventions for generative models have them, so that dashboards of others fit."""
SHORT_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

metrics = Registry()

CALLS = metrics.counter(
    "gateway_requests_total",
    "Calls of known identities that have ended, by how.",
    *("route", "model", "provider", "status", "outcome"),
)
CALL_SECONDS = metrics.histogram(
    "gateway_request_duration_seconds", "From the request to the end of its answer.", "model", bounds=SECONDS
)
FIRST_TOKEN_SECONDS = metrics.histogram(
    "gateway_time_to_first_token_seconds", "From the request to the first token of a stream.", "model", bounds=SECONDS
)
TOKENS = metrics.counter(
    "gateway_tokens_total",
    "Tokens as billed; cached and reasoning are parts of input and output.",
    "model",
    "direction",
)
SPEND = metrics.counter(
    "gateway_spend_usd_total", "What calls have cost, in US dollars.", "model", "provider", per=1_000_000_000
)
ATTEMPTS = metrics.counter(
    "gateway_upstream_attempts_total",
    "Tries at endpoints (deployments), by what came of them: ok, failed, broke_off, cancelled.",
    *("deployment", "provider", "result"),
)
FALLBACKS = metrics.counter(
    "gateway_fallbacks_total", "Calls that another endpoint or another model than the first served.", "kind"
)
ERRORS = metrics.counter(
    "gateway_errors_total", "Error answers of the data plane, those to unknown callers included.", "status", "code"
)
REJECTIONS = metrics.counter(
    "gateway_ratelimit_rejections_total", "Calls refused with 429, by whose limit and by its kind.", "scope", "type"
)
IN_FLIGHT = metrics.gauge("gateway_inflight_requests", "Calls that are admitted and have not ended.")
DEPLOYMENT_STATE = metrics.gauge(
    "gateway_deployment_state",
    "Circuit breaker of an endpoint: 0 closed, 1 half open or draining, 2 open; the worst of this machine's workers.",
    *("deployment", "model"),
    joined="max",
    max_series=DEPLOYMENTS_SHOWN,
)
LOG_QUEUE_DEPTH = metrics.gauge(
    "gateway_log_queue_depth", "Records in the stream that are not in the ledger yet.", joined="max"
)
LOG_LAG_SECONDS = metrics.gauge(
    "gateway_log_lag_seconds", "Age of the oldest record of the batch last written to the ledger.", joined="max"
)
JOURNAL_BYTES = metrics.gauge("gateway_journal_bytes", "Size of the journal of records that wait for Redis.")
UNWRITTEN_CONTENT_BYTES = metrics.gauge("gateway_content_queue_bytes", "Prompts and answers that wait to be written.")
DROPPED_CONTENTS = metrics.counter(
    "gateway_contents_dropped_total", "Prompts and answers that were not kept because too many waited."
)
DROPPED_LOG_LINES = metrics.counter("gateway_log_lines_dropped_total", "Log lines that could not be written.")
CONFIG_REVISION = metrics.gauge(
    "gateway_config_revision",
    "Revision of the configuration that is in force; of several workers the oldest.",
    joined="min",
)
CONFIG_LAG_SECONDS = metrics.histogram(
    "gateway_config_propagation_seconds",
    "From the commit of a change (a revoked key, say) until it was in force here.",
    bounds=SHORT_SECONDS,
)
CONFIG_FAILING = metrics.gauge(
    "gateway_config_failing",
    "1 while a newer configuration cannot be taken over and the last good one serves.",
    joined="max",
)
DATABASE_UP = metrics.gauge("gateway_database_up", "1 while PostgreSQL answers.", joined="min")
REDIS_UP = metrics.gauge("gateway_redis_up", "1 while Redis answers in time.", joined="min")
LOOP_LAG = metrics.histogram(
    "gateway_event_loop_lag_seconds", "How late the event loop answers its watchdog.", bounds=SHORT_SECONDS
)
LOOP_BLOCKED = metrics.gauge(
    "gateway_event_loop_blocked_seconds", "For how long an event loop has not answered by now.", joined="max"
)
PROCESSES = metrics.gauge("gateway_processes", "Worker processes on this machine.")
TASKS = metrics.gauge("gateway_tasks", "Tasks of the event loops.")
OPEN_FILES = metrics.gauge("gateway_open_fds", "Open files and sockets.")
RESIDENT_BYTES = metrics.gauge("gateway_resident_memory_bytes", "Resident memory.")
CPU_SECONDS = metrics.gauge("gateway_cpu_seconds", "Processor time used by the processes that live.")
CHORE_FAILURES = metrics.counter("gateway_chore_failures_total", "Failures of background chores.", "chore")
PARTITIONS_DROPPED = metrics.counter("gateway_partitions_dropped_total", "Partitions dropped by retention.", "table")
BUILD = metrics.gauge("gateway_build_info", "1; the label says which version.", "version", joined="max")

BUILD.set(1, __version__)
PROCESSES.set(1)
_shown_models: dict[str, str] = {}
_traces: Callable[[Meter], None] | None = None


def shown_model(name: str | None) -> str:
    """The label of a model of the catalog; None: no model has the name that was asked for."""
    if name is None:
        return NO_MODEL
    shown = _shown_models.get(name)
    if shown is None:
        shown = name if len(_shown_models) < MODELS_SHOWN else OTHER
        if shown is name:
            _shown_models[name] = name
    return shown


def call_ended(meter: Meter) -> None:
    """Count a finished call, and write its line. Raises nothing: no call may fail because of what is told about it."""
    _count(meter)
    log_call(meter)
    if _traces is not None:
        _traces(meter)


def tell_traces(of: Callable[[Meter], None] | None) -> None:
    """From now on this is told of every finished call (`app.tracing`); None: nobody is."""
    global _traces  # noqa: PLW0603 - set once, when a process begins and ends
    _traces = of


def begins_trace(traceparent: bytes | None) -> TraceContext | None:
    """Where a call stands in a trace; None where nobody would know what to do with it, which costs nothing."""
    if _traces is None and traceparent is None:
        return None
    return trace_of(traceparent, os.urandom(RANDOM_BYTES))


def error_answered(error: GatewayError) -> None:
    """Count an error that the data plane answers with, whether a call had begun or not."""
    ERRORS.add(error.status, error.code)
    if isinstance(error, LimitReached):
        REJECTIONS.add(getattr(error, "scope", "address"), error.type)


def _count(meter: Meter) -> None:
    model = shown_model(meter.model.name if meter.model else None)
    provider = meter.endpoint.provider.value if meter.endpoint else "none"
    outcome = meter.outcome.value if meter.outcome else "interrupted"
    CALLS.add(meter.call.dialect, model, provider, meter.http_status, outcome)
    CALL_SECONDS.observe((meter.duration_ms or 0) / 1000, model)
    if meter.first_token_ms is not None:
        FIRST_TOKEN_SECONDS.observe(meter.first_token_ms / 1000, model)
    usage = meter.usage
    if usage is not None:
        TOKENS.add(model, "input", by=usage.prompt_tokens)
        TOKENS.add(model, "output", by=usage.completion_tokens)
        if usage.cached_tokens:
            TOKENS.add(model, "cached", by=usage.cached_tokens)
        if usage.reasoning_tokens:
            TOKENS.add(model, "reasoning", by=usage.reasoning_tokens)
        SPEND.add(model, provider, by=meter.cost_nanousd)
    attempts = meter.attempts
    for attempt in attempts:
        ATTEMPTS.add(attempt.endpoint_id, attempt.provider, attempt.outcome)
    if len(attempts) > 1 and meter.endpoint is not None and meter.model is not None:
        FALLBACKS.add("endpoint" if meter.endpoint.model == meter.model.name else "model")


# ── The log ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class CallLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """One finished call. Ids, never a credential; no text of the caller's or the model's."""

    ts: str
    level: str
    event: str
    request_id: str
    user_oid: str
    dialect: str
    model: str
    outcome: str
    status: int
    duration_ms: int
    key_id: str | None = None
    app_id: str | None = None
    client_request_id: str | None = None
    trace_id: str | None = None
    span_id: str | None = None
    endpoint_id: str | None = None
    provider: str | None = None
    error_code: str | None = None
    error_reason: str | None = None
    first_token_ms: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_nanousd: int = 0
    attempts: int = 0


_encoder = msgspec.json.Encoder()
_log = logging.getLogger("gateway")
_lines: LogLines | None = None
"""Where the log goes; None until it was configured."""


def log_call(meter: Meter) -> None:
    """Write the line of a finished call."""
    if _lines is None or not _log.isEnabledFor(logging.INFO):
        return
    identity, usage = meter.identity, meter.usage
    line = CallLine(
        ts=datetime.now(UTC).isoformat(timespec="milliseconds"),
        level="info",
        event="call",
        request_id=meter.request_id,
        user_oid=identity.user.oid,
        dialect=meter.call.dialect,
        model=meter.call.model,
        outcome=str(meter.outcome),
        status=meter.http_status,
        duration_ms=meter.duration_ms or 0,
        key_id=identity.key.id if identity.key else None,
        app_id=identity.app.id if identity.app else None,
        client_request_id=meter.client_request_id,
        trace_id=meter.trace.trace_id if meter.trace else None,
        span_id=meter.trace.span_id if meter.trace else None,
        endpoint_id=meter.endpoint.id if meter.endpoint else None,
        provider=str(meter.endpoint.provider) if meter.endpoint else None,
        error_code=meter.error_code,
        error_reason=meter.error_reason,
        first_token_ms=meter.first_token_ms,
        input_tokens=usage.prompt_tokens if usage else None,
        output_tokens=usage.completion_tokens if usage else None,
        cost_nanousd=meter.cost_nanousd,
        attempts=len(meter.attempts),
    )
    # JSON escapes control characters, so whatever a caller puts into a name cannot forge a second line.
    _lines.write(_encoder.encode(line) + b"\n")


def configure_logging(level: str) -> None:
    """One JSON line per event for structlog and for the standard library's loggers (uvicorn's, ours)."""
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
        structlog.processors.format_exc_info,
        without_statements,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    global _lines  # noqa: PLW0603 - set once, when a process begins
    if _lines is None:
        file = sys.stderr.fileno() if sys.stderr else os.open(os.devnull, os.O_WRONLY)
        _lines = LogLines(file, on_dropped=lambda lines: DROPPED_LOG_LINES.add(by=lines))
    handler = _LineHandler(_lines)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _without_color,
                structlog.processors.EventRenamer("event"),
                structlog.processors.JSONRenderer(serializer=_serialized),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    _log.setLevel(level)
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers[:] = []
        logging.getLogger(name).propagate = True
        logging.getLogger(name).setLevel(level)
    logging.getLogger("uvicorn.access").disabled = True  # our own line per call says more


def flush_log() -> None:
    """Wait briefly until what was logged is written."""
    if _lines is not None:
        _lines.flush()


class _LineHandler(logging.Handler):
    def __init__(self, lines: LogLines) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.write_now(self.format(record).encode(errors="replace") + b"\n")
        except Exception:  # noqa: BLE001 - as every handler: what cannot be formatted must not fail whoever logs it
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name that logging calls
        DROPPED_LOG_LINES.add()


_STATEMENT = re.compile(
    r"^DETAIL: .*?(?=^\[SQL|^\(Background|\n\nThe above|\n\nDuring|\Z)|^\[SQL: .*?\](?=\n\[SQL param|\n\(Background|\n\n|\Z)",
    re.DOTALL | re.MULTILINE,
)


def without_statements(_: object, __: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """A driver's error quotes its statement, and PostgreSQL's details quote values that callers sent: neither is for the log."""
    told = event.get("exception")
    if isinstance(told, str) and ("[SQL: " in told or "DETAIL: " in told):
        event["exception"] = _STATEMENT.sub("[not shown]\n", told)
    return event


def _without_color(_: object, __: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """uvicorn sends its lines twice over, the second time for terminals."""
    event.pop("color_message", None)
    return event


def _serialized(event: object, **_: object) -> str:
    return msgspec.json.encode(event, enc_hook=str).decode()
