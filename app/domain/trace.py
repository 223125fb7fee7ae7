"""Where a call stands in its caller's trace, as W3C Trace Context has it (`traceparent`)."""

from __future__ import annotations

import re
from dataclasses import dataclass

TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
RANDOM_BYTES = 24
"""For a trace and a span of it."""


@dataclass(frozen=True, slots=True)
class TraceContext:
    trace_id: str
    span_id: str
    """This call's own span."""
    parent_id: str | None
    """The caller's span; None: the trace begins here."""
    is_sampled: bool

    @property
    def traceparent(self) -> str:
        """What an upstream is told."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.is_sampled else '00'}"


def trace_of(traceparent: bytes | None, random: bytes) -> TraceContext:
    """The caller's trace with a new span in it, or a new trace where he names none, or none that is well-formed."""
    span_id = random[16:24].hex()
    found = TRACEPARENT.fullmatch(traceparent) if traceparent else None
    if found is None or int(found[1], 16) == 0 or int(found[2], 16) == 0:
        return TraceContext(random[:16].hex(), span_id, None, True)
    return TraceContext(found[1].decode(), span_id, found[2].decode(), bool(int(found[3], 16) & 1))
