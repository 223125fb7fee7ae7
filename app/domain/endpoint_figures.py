"""How one endpoint stands over all processes: each has figures of its own, and these add up."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from msgspec import Struct


class LastFault(Struct, frozen=True, omit_defaults=True):
    """What went wrong last. Without the upstream's words: they stay with the process that heard them, and in the endpoint's events."""

    at_ms: int
    """Since 1970."""
    fault: str
    reason: str
    upstream_status: int | None = None

    @property
    def at(self) -> datetime:
        return datetime.fromtimestamp(self.at_ms / 1000, UTC)


class Figures(Struct, frozen=True, omit_defaults=True):
    """One endpoint as one process, or several together, know it."""

    in_flight: int = 0
    calls: int = 0
    """Within the breaker's window."""
    faults: int = 0
    faults_in_row: int = 0
    first_token_ms: int | None = None
    open_in: int = 0
    """In how many processes its breaker is not closed."""
    limited_by: str | None = None
    last_fault: LastFault | None = None


def together(parts: Sequence[Figures]) -> Figures:
    """What several processes know, as if one had seen all of it: calls add up, the longest row and the last fault are the worst that
    anybody saw, and a time to the first token weighs as much as the calls behind it."""
    known = [(part.first_token_ms, max(1, part.calls)) for part in parts if part.first_token_ms is not None]
    weight = sum(calls for _, calls in known)
    return Figures(
        in_flight=sum(part.in_flight for part in parts),
        calls=sum(part.calls for part in parts),
        faults=sum(part.faults for part in parts),
        faults_in_row=max((part.faults_in_row for part in parts), default=0),
        first_token_ms=round(sum(ms * calls for ms, calls in known) / weight) if weight else None,
        open_in=sum(part.open_in for part in parts),
        limited_by=next((part.limited_by for part in parts if part.limited_by), None),
        last_fault=max(
            (part.last_fault for part in parts if part.last_fault is not None),
            key=lambda last: last.at_ms,
            default=None,
        ),
    )
