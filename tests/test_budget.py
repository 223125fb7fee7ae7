"""Budgets: calendar periods without gaps or overlaps, what is reserved from whom, and what a call is charged in the end."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.budget import Budget, BudgetClaim, BudgetState, Period, PeriodKind, budget_claims_for, period_at
from app.domain.call import Meter, Quality
from app.domain.limits import Scope
from app.domain.money import NanoUsd, PicoUsd
from app.domain.pricing import Price, Rates, Usage, cost_of
from app.services.budget import bill
from tests.calls import PRICE, a_budget, a_meter, a_model, an_endpoint, an_estimate

# ── Periods ──────────────────────────────────────────────────────────────────────────────────────────────────────────

ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Asia/Kolkata",  # half an hour
    "Asia/Kathmandu",  # a quarter of an hour
    "Australia/Lord_Howe",  # its summer time is half an hour
    "America/St_Johns",
    "America/Havana",  # its clocks change at midnight: a day begins at one, or has two midnights
    "America/Santiago",
    "Africa/Cairo",
    "Asia/Beirut",
    "America/Sao_Paulo",
    "Pacific/Apia",  # it skipped the 30th of December 2011
    "Pacific/Kiritimati",
    "Etc/GMT+12",
]
CALENDAR = [PeriodKind.DAILY, PeriodKind.WEEKLY, PeriodKind.MONTHLY]
BEGINNING = datetime(2005, 1, 1, tzinfo=UTC)
INSTANTS = st.timedeltas(timedelta(0), timedelta(days=32 * 365)).map(lambda since: BEGINNING + since)
A_ZONE = st.sampled_from(ZONES).map(ZoneInfo)
A_KIND = st.sampled_from(CALENDAR)


def bounds(period: Period) -> tuple[datetime, datetime]:
    assert period.starts_at is not None
    assert period.ends_at is not None
    return period.starts_at.astimezone(UTC), period.ends_at.astimezone(UTC)


@given(A_KIND, INSTANTS, A_ZONE)
def test_an_instant_lies_within_its_period(kind: PeriodKind, now: datetime, zone: tzinfo) -> None:
    starts_at, ends_at = bounds(period_at(kind, now, zone))

    assert starts_at <= now < ends_at


@given(A_KIND, INSTANTS, A_ZONE)
def test_periods_touch_and_never_overlap(kind: PeriodKind, now: datetime, zone: tzinfo) -> None:
    """T125: the next one is open the moment this one ends, with no job that opens it."""
    period = period_at(kind, now, zone)
    starts_at, ends_at = bounds(period)
    after, before = period_at(kind, ends_at, zone), period_at(kind, starts_at - timedelta(microseconds=1), zone)

    assert bounds(after)[0] == ends_at
    assert bounds(before)[1] == starts_at
    assert len({before.name, period.name, after.name}) == 3


@given(A_KIND, INSTANTS, A_ZONE, st.floats(min_value=0, max_value=1, exclude_max=True))
def test_every_instant_of_a_period_says_the_same_period(
    kind: PeriodKind, now: datetime, zone: tzinfo, part: float
) -> None:
    period = period_at(kind, now, zone)
    starts_at, ends_at = bounds(period)

    other = period_at(kind, min(starts_at + (ends_at - starts_at) * part, ends_at - timedelta(microseconds=1)), zone)

    assert other == period


@given(A_KIND, INSTANTS, INSTANTS, A_ZONE)
def test_the_name_of_a_period_is_its_own(kind: PeriodKind, one: datetime, other: datetime, zone: tzinfo) -> None:
    first, second = period_at(kind, one, zone), period_at(kind, other, zone)

    assert (first.name == second.name) is (bounds(first) == bounds(second))


@given(INSTANTS, A_ZONE)
def test_kinds_of_periods_never_share_a_counter(now: datetime, zone: tzinfo) -> None:
    assert len({period_at(kind, now, zone).name for kind in PeriodKind}) == len(PeriodKind)


@given(INSTANTS, INSTANTS, A_ZONE)
def test_a_total_budget_has_one_period_for_ever(one: datetime, other: datetime, zone: tzinfo) -> None:
    period = period_at(PeriodKind.TOTAL, one, zone)

    assert period == period_at(PeriodKind.TOTAL, other, zone) == Period("total", None, None)


@given(INSTANTS, A_ZONE)
def test_a_week_begins_on_monday_and_a_month_on_the_first(now: datetime, zone: tzinfo) -> None:
    week, month = period_at(PeriodKind.WEEKLY, now, zone), period_at(PeriodKind.MONTHLY, now, zone)

    assert date.fromisoformat(week.name.removeprefix("weekly:")).weekday() == 0
    assert date.fromisoformat(month.name.removeprefix("monthly:")).day == 1


@pytest.mark.parametrize(
    ("kind", "zone", "now", "name", "hours"),
    [
        ("daily", "UTC", "2026-01-31T23:59:59.9+00:00", "daily:2026-01-31", 24),
        ("daily", "UTC", "2026-02-01T00:00:00+00:00", "daily:2026-02-01", 24),
        ("monthly", "UTC", "2026-01-31T23:59:59.9+00:00", "monthly:2026-01-01", 31 * 24),
        ("monthly", "UTC", "2026-02-28T23:59:59.9+00:00", "monthly:2026-02-01", 28 * 24),
        ("monthly", "UTC", "2028-02-29T23:59:59.9+00:00", "monthly:2028-02-01", 29 * 24),
        ("daily", "UTC", "2028-02-29T12:00:00+00:00", "daily:2028-02-29", 24),
        ("monthly", "UTC", "2026-12-31T23:59:59.9+00:00", "monthly:2026-12-01", 31 * 24),
        ("monthly", "UTC", "2027-01-01T00:00:00+00:00", "monthly:2027-01-01", 31 * 24),
        ("weekly", "UTC", "2026-12-31T23:59:59.9+00:00", "weekly:2026-12-28", 7 * 24),
        ("weekly", "UTC", "2027-01-03T23:59:59.9+00:00", "weekly:2026-12-28", 7 * 24),
        ("weekly", "UTC", "2027-01-04T00:00:00+00:00", "weekly:2027-01-04", 7 * 24),
        ("daily", "Europe/Berlin", "2026-03-29T12:00:00+00:00", "daily:2026-03-29", 23),
        ("daily", "Europe/Berlin", "2026-10-25T12:00:00+00:00", "daily:2026-10-25", 25),
        ("monthly", "Europe/Berlin", "2026-03-31T22:00:00+00:00", "monthly:2026-04-01", 30 * 24),
        ("daily", "Asia/Kolkata", "2026-01-15T18:29:59+00:00", "daily:2026-01-15", 24),
        ("daily", "Asia/Kolkata", "2026-01-15T18:30:00+00:00", "daily:2026-01-16", 24),
        ("daily", "Pacific/Kiritimati", "2026-01-15T10:00:00+00:00", "daily:2026-01-16", 24),
    ],
)
def test_the_edges_of_the_calendar(kind: str, zone: str, now: str, name: str, hours: int) -> None:
    """T125."""
    period = period_at(PeriodKind(kind), datetime.fromisoformat(now), ZoneInfo(zone))
    starts_at, ends_at = bounds(period)

    assert period.name == name
    assert ends_at - starts_at == timedelta(hours=hours)


# ── Claims and states ────────────────────────────────────────────────────────────────────────────────────────────────

BUDGETS = st.lists(
    st.builds(
        a_budget,
        st.none() | st.integers(0, 10**15),
        soft=st.none() | st.integers(0, 10**15),
        period=st.sampled_from(PeriodKind),
    ),
    max_size=4,
).map(tuple)
AMOUNTS = st.integers(min_value=0, max_value=9 * 10**15).map(NanoUsd)


@given(BUDGETS, AMOUNTS, INSTANTS, A_ZONE)
def test_every_budget_of_a_holder_is_claimed_from_in_the_period_of_the_call(
    budgets: tuple[Budget, ...], amount: NanoUsd, now: datetime, zone: tzinfo
) -> None:
    claims = budget_claims_for(Scope.USER, "alice", budgets, worst_case=amount, now=now, zone=zone)

    assert [claim.budget for claim in claims] == list(budgets)
    assert all(claim.amount_nanousd == amount for claim in claims)
    assert all(claim.period == period_at(claim.budget.period, now, zone) for claim in claims)


def test_a_counter_is_named_by_scope_holder_and_period() -> None:
    now = datetime(2026, 1, 15, tzinfo=UTC)

    def counter(scope: Scope, holder: str, kind: PeriodKind) -> str:
        return BudgetClaim(scope, holder, a_budget(period=kind), period_at(kind, now, UTC), NanoUsd(1)).counter

    names = [counter(scope, holder, kind) for scope in Scope for holder in ("a", "b") for kind in PeriodKind]

    assert len(set(names)) == len(names)
    assert counter(Scope.KEY, "a", PeriodKind.DAILY) == "key:a:daily:2026-01-15"


@given(st.integers(0, 10**15), AMOUNTS, AMOUNTS)
def test_what_is_spent_reserved_and_remaining_is_the_limit(hard: int, spent: NanoUsd, reserved: NanoUsd) -> None:
    claim = BudgetClaim(Scope.KEY, "k", a_budget(hard), Period("total", None, None), NanoUsd(0))
    remaining = BudgetState(claim, spent, reserved).remaining_nanousd

    assert remaining is not None
    assert remaining >= 0
    assert remaining + spent + reserved == max(hard, spent + reserved)


def test_without_a_hard_limit_nothing_is_said_of_what_remains() -> None:
    claim = BudgetClaim(Scope.KEY, "k", a_budget(None, soft=5), Period("total", None, None), NanoUsd(0))

    assert BudgetState(claim, NanoUsd(7), NanoUsd(0)).remaining_nanousd is None


# ── The bill ─────────────────────────────────────────────────────────────────────────────────────────────────────────

A, B = an_endpoint("a"), an_endpoint("b", price=Price("dear", Rates(PicoUsd(20_000), PicoUsd(80_000))))
MODEL = a_model("gpt-4", A, B, price=PRICE)


def billed(**changes: Any) -> Meter:
    meter = a_meter(model=MODEL, endpoint=A, estimate=an_estimate(100, 50), **changes)
    bill(meter)
    return meter


def test_the_providers_figures_are_billed_exactly() -> None:
    meter = billed(usage=Usage(10, 5), quality=Quality.EXACT)

    assert (meter.cost_nanousd, meter.quality, meter.price) == (60, Quality.EXACT, PRICE)


def test_what_passed_before_a_break_is_billed_as_partial() -> None:
    meter = billed(delivered_tokens=5)

    assert meter.quality is Quality.PARTIAL
    assert meter.usage == Usage(prompt_tokens=100, completion_tokens=5)
    assert meter.cost_nanousd == 240


def test_a_call_that_showed_nothing_is_billed_the_prompt_that_was_sent() -> None:
    meter = billed()

    assert meter.quality is Quality.ESTIMATED
    assert meter.cost_nanousd == 200


def test_a_call_that_reached_no_upstream_costs_nothing() -> None:
    meter = a_meter(model=MODEL, estimate=an_estimate(100, 50), delivered_tokens=9)

    bill(meter)

    assert (meter.cost, meter.usage, meter.cost_nanousd) == (None, None, 0)


def test_the_endpoint_that_answered_says_the_price() -> None:
    meter = billed()
    dear = a_meter(model=MODEL, endpoint=B, estimate=an_estimate(100, 50))
    bill(dear)

    assert dear.cost_nanousd == 10 * meter.cost_nanousd
    assert dear.price is not None
    assert dear.price.id == "dear"


def test_without_a_price_usage_is_kept_and_costs_nothing() -> None:
    meter = a_meter(model=a_model("free", A), endpoint=A, usage=Usage(10, 5), quality=Quality.EXACT)

    bill(meter)

    assert (meter.cost_nanousd, meter.usage, meter.price) == (0, Usage(10, 5), None)


def test_billing_twice_is_billing_once() -> None:
    meter = billed(delivered_tokens=5)
    before = (meter.usage, meter.quality, meter.cost)

    bill(meter)

    assert (meter.usage, meter.quality, meter.cost) == before


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_bill_is_never_negative_and_is_the_arithmetic_of_its_own_usage(
    prompt: int, output: int, delivered: int
) -> None:
    meter = a_meter(model=MODEL, endpoint=A, estimate=an_estimate(prompt, output), delivered_tokens=delivered)

    bill(meter)

    assert meter.usage is not None
    assert meter.cost == cost_of(meter.usage, PRICE)
    assert meter.cost_nanousd >= 0
