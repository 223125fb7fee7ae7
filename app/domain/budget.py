"""Budgets: an amount of money per calendar period, soft (a warning) and hard (a promise).

There is no reset job: the period is part of the counter's name, computed at admission in the budget's time zone, so a new
period is open the moment it begins and a call is booked to the period it was admitted in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from enum import StrEnum
from functools import lru_cache
from typing import assert_never

import msgspec

from app.domain.limits import Scope
from app.domain.money import NanoUsd, PicoUsd, pico_to_nano_rounded_up


class PeriodKind(StrEnum):
    DAILY = "daily"
    WEEKLY = "weekly"
    MONTHLY = "monthly"
    TOTAL = "total"


class ReserveMode(StrEnum):
    """What is reserved before a call: the worst it can cost, or what such calls are expected to cost."""

    WORST_CASE = "worst_case"
    EXPECTED = "expected"


@dataclass(frozen=True, slots=True)
class Budget:
    period: PeriodKind
    soft_limit_nanousd: NanoUsd | None
    hard_limit_nanousd: NanoUsd | None
    reserve: ReserveMode = ReserveMode.WORST_CASE
    opened_ms: int = field(default=0, compare=False)
    """Since when its holder has had it without a break. Its counter knows nothing of calls that were made while he had not; what was
    counted for an earlier one is counted again from the ledger."""


@dataclass(frozen=True, slots=True)
class Period:
    """One calendar period: its name within the counter, when it began and when it ends (None: never)."""

    name: str
    starts_at: datetime | None
    ends_at: datetime | None


class Need(msgspec.Struct, frozen=True):
    """What one call needs of money: so much whatever it answers, and so much for each token it produces."""

    fixed_nanousd: NanoUsd
    """Its prompt at the dearest rate that can apply, its images, its price per request."""
    unit_picousd: PicoUsd
    """One output token at the dearest rate that can apply."""
    max_output_tokens: int
    """The most it may produce, over all choices."""
    floor_tokens: int
    """Fewer than this would be no useful answer: with less money left than for these, the budget is spent."""
    is_elastic: bool
    """The maximum is the model's, not the caller's own: near a limit the call may be granted less at once."""
    expected_tokens: int = 0
    """What such calls have been seen to produce, or the floor."""

    def cost_of(self, output_tokens: int) -> NanoUsd:
        return NanoUsd(self.fixed_nanousd + pico_to_nano_rounded_up(output_tokens * self.unit_picousd))


NO_NEED = Need(NanoUsd(0), PicoUsd(0), 0, 0, is_elastic=False)


class BudgetClaim(msgspec.Struct, frozen=True):
    """What one call reserves from one budget in one period."""

    scope: Scope
    scope_id: str
    budget: Budget
    period: Period
    amount_nanousd: NanoUsd
    """What was reserved; before the admission, the most that could be."""
    lost_nanousd: NanoUsd = NanoUsd(0)
    """What to charge if the call's process dies and nobody can say what it used: what surely was sent, at most what is reserved."""

    @property
    def counter(self) -> str:
        return f"{self.scope}:{self.scope_id}:{self.period.name}"


class BudgetState(msgspec.Struct, frozen=True):
    """A budget right after an admission or refusal. free = hard limit - spent - reserved."""

    claim: BudgetClaim
    spent_nanousd: NanoUsd
    reserved_nanousd: NanoUsd

    @property
    def remaining_nanousd(self) -> NanoUsd | None:
        """What is neither spent nor reserved; None without a hard limit."""
        hard = self.claim.budget.hard_limit_nanousd
        if hard is None:
            return None
        return NanoUsd(max(0, hard - self.spent_nanousd - self.reserved_nanousd))


def period_at(kind: PeriodKind, now: datetime, zone: tzinfo) -> Period:
    """The period that `now` falls into. Weeks begin on Monday (ISO 8601)."""
    if kind is PeriodKind.TOTAL:
        return _ALWAYS
    return _period_of(kind, int(now.timestamp()) // QUARTER_S, zone)


_ALWAYS = Period("total", None, None)
QUARTER_S = 15 * 60
"""In every time zone days begin with a quarter of an hour: all moments of one fall into the same period."""


@lru_cache(maxsize=64)
def _period_of(kind: PeriodKind, quarter: int, zone: tzinfo) -> Period:
    """Asked for every budget of every call, and mostly the same one."""
    first = datetime.fromtimestamp(quarter * QUARTER_S, UTC).astimezone(zone).date()
    match kind:
        case PeriodKind.DAILY:
            after = first + timedelta(days=1)
        case PeriodKind.WEEKLY:
            first -= timedelta(days=first.weekday())
            after = first + timedelta(days=7)
        case PeriodKind.MONTHLY:
            first = first.replace(day=1)
            after = (first + timedelta(days=32)).replace(day=1)
        case PeriodKind.TOTAL:
            return _ALWAYS
        case _:
            assert_never(kind)
    return Period(f"{kind}:{first.isoformat()}", _midnight(first, zone), _midnight(after, zone))


def budget_claims_for(
    scope: Scope,
    scope_id: str,
    budgets: tuple[Budget, ...],
    *,
    worst_case: NanoUsd,
    lost: NanoUsd = NanoUsd(0),
    now: datetime,
    zone: tzinfo,
) -> list[BudgetClaim]:
    """The claims of one call against one holder's budgets, for the periods that `now` falls into."""
    return [BudgetClaim(scope, scope_id, b, period_at(b.period, now, zone), worst_case, lost) for b in budgets]


def _midnight(day: date, zone: tzinfo) -> datetime:
    return datetime.combine(day, time.min, tzinfo=zone)
