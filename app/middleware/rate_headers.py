"""The `x-ratelimit-*` headers, on answers and on refusals alike."""

from __future__ import annotations

from collections.abc import Mapping

from app.domain.limits import LimitKind

Headers = list[tuple[bytes, bytes]]

RATE_LIMIT_NAMES: Mapping[str, tuple[bytes, bytes, bytes]] = {
    LimitKind.REQUESTS: (
        b"x-ratelimit-limit-requests",
        b"x-ratelimit-remaining-requests",
        b"x-ratelimit-reset-requests",
    ),
    LimitKind.TOKENS: (b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens"),
}
"""Slots for calls at once have none: no client knows any."""


def rate_limit_headers(kind: str, *, limit: int, remaining: int, reset_ms: int) -> Headers:
    """The three headers of one kind of limit; none for concurrency."""
    names = RATE_LIMIT_NAMES.get(kind)
    if names is None:
        return []
    of_limit, of_remaining, of_reset = names
    return [(of_limit, b"%d" % limit), (of_remaining, b"%d" % max(0, remaining)), (of_reset, duration(reset_ms))]


def duration(ms: int) -> bytes:
    """A duration as OpenAI writes it: `850ms`, `1.25s`, `6m0s`."""
    if ms < 1000:
        return b"%dms" % ms
    minutes, rest_ms = divmod(ms, 60_000)
    seconds = f"{rest_ms / 1000:.3f}".rstrip("0").rstrip(".")
    return f"{minutes}m{seconds}s".encode() if minutes else f"{seconds}s".encode()
