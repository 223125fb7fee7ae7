"""The dashboard's sums: whole days from their own rows, and the same figures as from the hours."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.domain.budget import PeriodKind, period_at
from app.domain.limits import Scope
from app.domain.record import CallRecord
from app.storage.sql_alerts import SqlAlertStore
from app.storage.sql_overview import SqlOverview
from app.storage.sql_usage import SqlUsageStore
from tests.storage.records import KEY_A, NOON, a_record, a_refusal

MIDNIGHT = NOON.replace(hour=0)
HOURS = [-49, -24, -1, 0, 1, 13, 23, 24, 25, 47, 48, 71]
USERS = ("ann", "bob")


@pytest.fixture
async def records(engine: AsyncEngine) -> list[CallRecord]:
    """Around three midnights, each at a cost that tells it apart from any sum of others."""
    made = [
        a_record(MIDNIGHT + timedelta(hours=hour, minutes=30), user_oid=USERS[n % 2], cost_nanousd=2**n)
        for n, hour in enumerate(HOURS)
    ]
    await SqlUsageStore(engine).write(made)
    return made


def cost_between(records: list[CallRecord], oid: str, since: datetime, until: datetime) -> int:
    return sum(each.cost_nanousd for each in records if each.user_oid == oid and since <= each.created_at < until)


@pytest.mark.parametrize("begins", [-49, -24, -1, 0, 5, 13, 24])
@pytest.mark.parametrize("hours", [1, 11, 13, 24, 30, 48, 72, 120])
async def test_the_dearest_of_any_hours_are_summed_exactly(
    engine: AsyncEngine, records: list[CallRecord], begins: int, hours: int
) -> None:
    since = MIDNIGHT + timedelta(hours=begins)
    until = since + timedelta(hours=hours)

    found = await SqlOverview(engine).top("user", since, until, limit=5)
    both = await SqlOverview(engine).tops(("user", "key"), since, until, limit=5)

    costs = {oid: cost_between(records, oid, since, until) for oid in USERS}
    assert [(each.group, each.cost_nanousd) for each in found] == sorted(
        ((oid, cost) for oid, cost in costs.items() if cost), key=lambda each: -each[1]
    )
    assert both["user"] == found
    assert [each.cost_nanousd for each in both["key"]] == ([total] if (total := sum(costs.values())) else [])


@pytest.mark.parametrize("by_day", [True, False])
async def test_refusals_are_counted_once_by_time_and_reason(engine: AsyncEngine, by_day: bool) -> None:
    store, overview = SqlUsageStore(engine), SqlOverview(engine)
    reasons = (("rate_limit_exceeded", 429), ("insufficient_quota", 402), (None, 403))
    refused = [
        a_refusal(MIDNIGHT + timedelta(hours=n), error_code=reasons[n % 3][0], http_status=reasons[n % 3][1])
        for n in range(30)
    ]
    await store.write([*refused, a_record(MIDNIGHT)])
    await store.write(refused[:7])  # a batch that comes again
    found = await overview.refusals(MIDNIGHT, MIDNIGHT + timedelta(hours=29), by_day=by_day)

    step = "%Y-%m-%dT00:00:00Z" if by_day else "%Y-%m-%dT%H:00:00Z"
    expected = Counter((r.created_at.strftime(step), r.error_code or "", r.http_status) for r in refused[:29])
    assert {(each.began, each.error_code, each.http_status): each.requests for each in found} == expected


@pytest.mark.parametrize("kind", list(PeriodKind))
@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kathmandu"])
async def test_what_is_shown_as_spent_is_what_budgets_count(
    engine: AsyncEngine, records: list[CallRecord], kind: PeriodKind, zone: str
) -> None:
    overview, ledger = SqlOverview(engine), SqlAlertStore(engine)
    period = period_at(kind, NOON, ZoneInfo(zone))
    asked = [(Scope.USER, list(USERS)), (Scope.KEY, [KEY_A]), (Scope.MODEL, ["gpt-4"])]

    for scope, ids in asked:
        assert await overview.spent(scope, period, ids) == await ledger.spent(scope, period, ids)
    total = period_at(PeriodKind.TOTAL, NOON, UTC)
    spent = await overview.spent(Scope.KEY, total, [KEY_A])
    assert spent == {KEY_A: sum(each.cost_nanousd for each in records)}
