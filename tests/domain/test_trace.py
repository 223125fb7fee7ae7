"""W3C Trace Context: what a caller may send, and what is made of it."""

from __future__ import annotations

import pytest

from app.domain.trace import RANDOM_BYTES, trace_of

RANDOM = bytes(range(1, RANDOM_BYTES + 1))
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_a_callers_trace_is_followed() -> None:
    trace = trace_of(f"00-{TRACE}-{PARENT}-01".encode(), RANDOM)

    assert (trace.trace_id, trace.parent_id, trace.is_sampled) == (TRACE, PARENT, True)
    assert trace.traceparent == f"00-{TRACE}-{RANDOM[16:].hex()}-01"


def test_a_caller_who_does_not_sample_is_obeyed() -> None:
    assert trace_of(f"00-{TRACE}-{PARENT}-00".encode(), RANDOM).traceparent.endswith("-00")


def test_a_version_of_the_future_may_say_more() -> None:
    assert trace_of(f"cc-{TRACE}-{PARENT}-01-what-the-future-will-be-like".encode(), RANDOM).trace_id == TRACE


@pytest.mark.parametrize(
    "sent",
    [
        None,
        b"",
        b"00",
        b"ff-" + TRACE.encode() + b"-" + PARENT.encode() + b"-01",
        b"00-" + b"0" * 32 + b"-" + PARENT.encode() + b"-01",
        b"00-" + TRACE.encode() + b"-" + b"0" * 16 + b"-01",
        b"00-" + TRACE.upper().encode() + b"-" + PARENT.encode() + b"-01",
        b"00-" + TRACE.encode() + b"\xff" * 10_000,
    ],
)
def test_what_is_not_well_formed_begins_a_trace_of_our_own(sent: bytes | None) -> None:
    trace = trace_of(sent, RANDOM)

    assert (trace.trace_id, trace.parent_id) == (RANDOM[:16].hex(), None)
