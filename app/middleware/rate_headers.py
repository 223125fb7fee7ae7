"""The `x-ratelimit-*` headers, on answers and on refusals alike."""

from __future__ import annotations

from app.domain.limits import LimitKind

Headers = list[tuple[bytes, bytes]]

RATE_LIMIT_NAMES = {
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
    names = RATE_LIMIT_NAMES.get(LimitKind(kind))
    if names is None:
        return []
    values = (b"%d" % limit, b"%d" % max(0, remaining), duration(reset_ms))
    return list(zip(names, values, strict=True))


def duration(ms: int) -> bytes:
    """A duration as OpenAI writes it: `850ms`, `1.25s`, `6m0s`."""
    if ms < 1000:
        return b"%dms" % ms
    minutes, rest_ms = divmod(ms, 60_000)
    seconds = f"{rest_ms / 1000:.3f}".rstrip("0").rstrip(".")
    return f"{minutes}m{seconds}s".encode() if minutes else f"{seconds}s".encode()
