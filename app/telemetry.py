"""What the gateway says about itself while it runs: structured log lines, and the fields they have.

One JSON object a line on standard error: `ts` (RFC 3339, UTC), `level`, `event`, and fields that carry their unit in the name. The
line of a call is written on the hot path, so it is encoded directly; everything else goes through structlog.
"""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

import msgspec
import structlog

from app.domain.call import Meter

logger: structlog.stdlib.BoundLogger = structlog.get_logger("gateway")


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


def log_call(meter: Meter) -> None:
    """Write the line of a finished call."""
    if not logging.getLogger("gateway").isEnabledFor(logging.INFO):
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
    sys.stderr.buffer.write(_encoder.encode(line) + b"\n")
    sys.stderr.buffer.flush()


def configure_logging(level: str) -> None:
    """One JSON line per event for structlog and for the standard library's loggers (uvicorn's, ours)."""
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
        structlog.processors.format_exc_info,
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
    handler = logging.StreamHandler(sys.stderr)
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
    logging.getLogger("gateway").setLevel(level)
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers[:] = []
        logging.getLogger(name).propagate = True
        logging.getLogger(name).setLevel(level)
    logging.getLogger("uvicorn.access").disabled = True  # our own line per call says more


def _without_color(_: object, __: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """uvicorn sends its lines twice over, the second time for terminals."""
    event.pop("color_message", None)
    return event


def _serialized(event: object, **_: object) -> str:
    return msgspec.json.encode(event, enc_hook=str).decode()
