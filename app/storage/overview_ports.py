"""What the dashboard asks of the sums: how much, how fast, by whom. Everything here is read from rollups, never from rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from app.domain.budget import Period
from app.domain.histogram import percentile_ms
from app.domain.limits import Scope
from app.domain.money import NanoUsd
from app.domain.pricing import Price
from app.storage.ports import UsageSums


@dataclass(frozen=True, slots=True)
class Traffic:
    """What happened in one stretch of time (or at one endpoint), latencies as counts by bucket."""

    group: str
    """The hour or day it began, in RFC 3339; or the endpoint's id."""
    requests: int
    errors: int
    prompt_tokens: int
    completion_tokens: int
    cost_nanousd: int
    durations: tuple[int, ...]
    first_tokens: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def duration_ms(self, percent: int) -> int | None:
        return percentile_ms(self.durations, percent)

    def first_token_ms(self, percent: int) -> int | None:
        return percentile_ms(self.first_tokens, percent)


@dataclass(frozen=True, slots=True)
class Refusals:
    """Calls that were refused for one reason in one stretch of time."""

    began: str
    """The hour or day, in RFC 3339."""
    error_code: str
    http_status: int
    requests: int


@dataclass(frozen=True, slots=True)
class HourOfEndpoint:
    endpoint_id: str
    hour: datetime
    requests: int
    errors: int
    p50_ms: int | None


@dataclass(frozen=True, slots=True)
class PriceRow:
    """One row of a price history; `price` None: back to the price map (or to the model's, for an endpoint)."""

    valid_from: datetime
    endpoint_id: str | None
    price: Price | None


@dataclass(frozen=True, slots=True)
class Replica:
    """One process of the gateway, and the revision of the configuration it runs on."""

    id: str
    revision: int
    version: str


class Presence(Protocol):
    async def replicas(self) -> list[Replica]:
        """The processes that run now. Raises: DependencyUnavailable."""
        ...


class OverviewStore(Protocol):
    async def traffic(
        self, since: datetime, until: datetime, *, by_day: bool, model: str | None = None
    ) -> list[Traffic]:
        """By hour or by day (UTC), in order of time; stretches without calls are left out."""
        ...

    async def endpoints(self, since: datetime, until: datetime) -> list[Traffic]:
        """By endpoint; group "" is calls that reached none."""
        ...

    async def endpoint_hours(self, since: datetime, until: datetime) -> list[HourOfEndpoint]: ...

    async def top(self, group_by: str, since: datetime, until: datetime, *, limit: int) -> list[UsageSums]:
        """The dearest models, users, keys or apps."""
        ...

    async def tops(
        self, groups: Sequence[str], since: datetime, until: datetime, *, limit: int
    ) -> dict[str, list[UsageSums]]:
        """The dearest of several groups (not of models), read at once."""
        ...

    async def refusals(self, since: datetime, until: datetime, *, by_day: bool) -> list[Refusals]:
        """How many calls were refused, by hour or day (UTC) and reason."""
        ...

    async def spent(self, scope: Scope, period: Period, scope_ids: Sequence[str]) -> Mapping[str, NanoUsd]:
        """What each of these has spent in the period, to be shown; absent means nothing."""
        ...

    async def key_names(self, key_ids: list[str]) -> dict[str, str]:
        """Key id → its name or prefix, for those that still exist."""
        ...

    async def prices(self, model: str) -> list[PriceRow]:
        """The history of a model's prices and its endpoints', newest first."""
        ...
