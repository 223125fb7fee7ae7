"""Alerts: which thresholds of a budget its spending has passed, and what is told of it to the outside."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import msgspec

from app.domain.budget import Budget, Period, PeriodKind
from app.domain.limits import Scope
from app.domain.money import NanoUsd, nano_to_usd

HARD_PERCENTS = (50, 80, 100)
SOFT_PERCENTS = (100,)


class LimitSide(StrEnum):
    """Which of a budget's two limits a threshold belongs to."""

    HARD = "hard"
    SOFT = "soft"


@dataclass(frozen=True, slots=True)
class Threshold:
    """A part of one of a budget's limits."""

    side: LimitSide
    percent: int
    limit_nanousd: NanoUsd

    def is_passed_by(self, spent_nanousd: int) -> bool:
        return spent_nanousd * 100 >= self.limit_nanousd * self.percent

    @property
    def name(self) -> str:
        return f"{self.side}:{self.percent}"


def thresholds_of(budget: Budget) -> list[Threshold]:
    """All thresholds of a budget. A limit of zero has none: it forbids, and there is nothing on the way to it."""
    limits = ((LimitSide.HARD, budget.hard_limit_nanousd), (LimitSide.SOFT, budget.soft_limit_nanousd))
    percents = {LimitSide.HARD: HARD_PERCENTS, LimitSide.SOFT: SOFT_PERCENTS}
    return [Threshold(side, percent, limit) for side, limit in limits if limit for percent in percents[side]]


def passed(budget: Budget, spent_nanousd: int, *, but: Collection[str] = ()) -> list[Threshold]:
    """The thresholds that this spending has reached, without those named in `but`."""
    return [each for each in thresholds_of(budget) if each.name not in but and each.is_passed_by(spent_nanousd)]


@dataclass(frozen=True, slots=True)
class BudgetAlert:
    """One threshold of one holder's budget, passed in one period. There is never a second one."""

    id: str
    at: datetime
    scope: Scope
    scope_id: str
    period_kind: PeriodKind
    period_name: str
    threshold: Threshold
    spent_nanousd: NanoUsd


@dataclass(frozen=True, slots=True)
class WatchedBudget:
    """A holder's budget in one of its periods."""

    scope: Scope
    scope_id: str
    budget: Budget
    period: Period

    @property
    def counter(self) -> str:
        return f"{self.scope}:{self.scope_id}:{self.period.name}"


@dataclass(frozen=True, slots=True)
class Sent:
    """What came of one sending: the receiver's status, or why there is none."""

    status: int | None
    error: str | None = None
    """A short word: connect_failed, dns_error, total_timeout, endpoint_blocked, status_500 …"""

    @property
    def is_delivered(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


class AlertEvent(msgspec.Struct, frozen=True):
    """The body of a webhook. Money in USD as decimal strings, the time in RFC 3339."""

    type: str
    id: str
    at: str
    scope: str
    holder: str
    period: str
    period_name: str
    limit: str
    threshold: int
    limit_usd: str
    spent_usd: str


_encode = msgspec.json.Encoder().encode


def event_body(alert: BudgetAlert, *, type_: str = "budget_threshold") -> bytes:
    """The same bytes for the same alert, however often they are sent."""
    return _encode(
        AlertEvent(
            type=type_,
            id=alert.id,
            at=rfc3339(alert.at),
            scope=str(alert.scope),
            holder=alert.scope_id,
            period=str(alert.period_kind),
            period_name=alert.period_name,
            limit=str(alert.threshold.side),
            threshold=alert.threshold.percent,
            limit_usd=nano_to_usd(alert.threshold.limit_nanousd),
            spent_usd=nano_to_usd(alert.spent_nanousd),
        )
    )


def signature(body: bytes, *, secret: bytes, at_s: int) -> str:
    """`t=<unix>,v1=<hex>`: HMAC-SHA256 over "<unix>.<body>". The time is signed too, so that a receiver can refuse old ones."""
    digest = hmac.new(secret, b"%d." % at_s + body, hashlib.sha256).hexdigest()
    return f"t={at_s},v1={digest}"


def rfc3339(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
