"""What the care for endpoints asks of the stores: events that are kept, and news between processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from app.domain.catalog import Endpoint
from app.domain.endpoint_figures import Figures
from app.storage.management_ports import Page


class EventKind(StrEnum):
    OPENED = "opened"
    """Its breaker opened, or stays open for longer."""
    CLOSED = "closed"
    """A probe was answered, and calls come again."""
    RESET = "reset"
    DRAINED = "drained"
    UNDRAINED = "undrained"
    CHECK_FAILED = "check_failed"
    CHECK_RECOVERED = "check_recovered"
    CREDENTIAL_REFUSED = "credential_refused"
    CERTIFICATE_REFUSED = "certificate_refused"
    """An alert: the provider does not take our key any more."""


@dataclass(frozen=True, slots=True)
class EndpointEvent:
    """What happened to an endpoint, when and why. Nothing in it may hold a credential, an address or a raw body."""

    id: str
    at: datetime
    endpoint_id: str
    model: str
    kind: EventKind
    reason: str | None = None
    """A short word: error, timeout, busy, credential, the administrator's name …"""
    message: str | None = None
    """The upstream's own words, cleaned, or a sentence of ours."""
    upstream_status: int | None = None
    open_s: float | None = None
    process: str = ""
    """Which process saw it."""
    once: str | None = field(default=None, repr=False)
    """Of several events with the same word here, by whomever, one is kept."""


class EndpointEventStore(Protocol):
    """Every method may raise DependencyUnavailable."""

    async def keep(self, events: Sequence[EndpointEvent]) -> list[EndpointEvent]:
        """Store events. Returns those that are new."""
        ...

    async def page(self, endpoint_id: str, *, limit: int, cursor: str | None) -> Page[EndpointEvent]:
        """Newest first."""
        ...

    async def alerts(self, *, limit: int, cursor: str | None) -> Page[EndpointEvent]:
        """Those that somebody has to act upon, of all endpoints, newest first."""
        ...

    async def forget_before(self, moment: datetime) -> int: ...


class EndpointNews(Protocol):
    """What processes tell each other of endpoints. At most once: whoever hears nothing goes by what it sees itself."""

    async def publish(self, message: bytes) -> None:
        """Raises: DependencyUnavailable."""
        ...

    async def listen(self, heard: Callable[[bytes], None]) -> None:
        """Until the connection breaks, then raise DependencyUnavailable."""
        ...


class EndpointFigures(Protocol):
    """What each process knows of endpoints, for the others to read. Every method may raise DependencyUnavailable."""

    async def tell(self, figures: Mapping[str, Figures]) -> None:
        """By endpoint, in the place of all that this process told before."""
        ...

    async def told(self, endpoint_ids: Sequence[str]) -> list[Mapping[str, Figures]]:
        """What every other process that told lately said of these endpoints; an endpoint of which it had nothing to say is left out."""
        ...


class LimitName(StrEnum):
    """Which of an endpoint's own limits."""

    CONCURRENCY = "max_concurrency"
    REQUESTS = "requests_per_minute"
    TOKENS = "tokens_per_minute"


@dataclass(frozen=True, slots=True)
class EndpointClaim:
    """What an attempt holds of its endpoint."""

    endpoint_id: str
    attempt: str
    slot: int
    tokens: int


@dataclass(frozen=True, slots=True)
class EndpointFull:
    by: LimitName
    retry_after_ms: int


class EndpointClaims(Protocol):
    """Every method may raise DependencyUnavailable."""

    async def claim(self, endpoint: Endpoint, attempt: str, tokens: int) -> EndpointClaim | EndpointFull:
        """All of it or nothing, over all processes."""
        ...

    async def free(self, claim: EndpointClaim, tokens: int) -> None:
        """The attempt has ended, and used so many tokens."""
        ...

    async def hold(self, claims: Sequence[EndpointClaim]) -> None:
        """These go on."""
        ...
