"""What this process knows of one endpoint by experience: its breaker, its latency, how many calls it has, what went wrong last."""

from __future__ import annotations

from dataclasses import dataclass, field

from app.domain.breaker import Breaker
from app.domain.call import Candidate
from app.domain.catalog import Endpoint
from app.domain.peak_ewma import PeakEwma


@dataclass(frozen=True, slots=True)
class Mishap:
    """The last fault, cleaned of everything that must not be shown."""

    at_s: float
    """Monotonic."""
    fault: str
    reason: str
    upstream_status: int | None
    message: str | None


@dataclass(frozen=True, slots=True)
class Checked:
    """The last active check, whichever process made it."""

    at_s: float
    """Monotonic."""
    is_ok: bool
    reason: str | None
    took_ms: int


@dataclass(slots=True, eq=False)
class LiveEndpoint:
    """One per endpoint and process; outlives edits of the endpoint. Satisfies `app.domain.routing.Share`."""

    endpoint: Endpoint
    breaker: Breaker
    latency: PeakEwma = field(default_factory=PeakEwma)
    in_flight: int = 0
    credit: int = 0
    limited_until_s: float = 0.0
    """Until then one of its own limits (requests or tokens per minute) has nothing left."""
    limited_by: str = ""
    mishap: Mishap | None = None
    check: Checked | None = None
    failed_checks: int = 0
    """In a row."""
    last_success_s: float | None = None
    tried: Candidate = field(init=False)
    spare: Candidate = field(init=False)
    """What the record says of an endpoint that was not needed; made once, not per call."""

    def __post_init__(self) -> None:
        self.tried = Candidate(self.endpoint.id, "tried")
        self.spare = Candidate(self.endpoint.id, "not chosen")

    @property
    def is_untouched(self) -> bool:
        """Nobody has called it from here, and nothing was heard of it: there is nothing to tell."""
        return not self.in_flight and not self.latency.last_s and self.mishap is None and self.breaker.is_closed

    @property
    def id(self) -> str:
        return self.endpoint.id

    @property
    def weight(self) -> int:
        return self.endpoint.weight
