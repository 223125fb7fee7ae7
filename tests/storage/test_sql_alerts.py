"""Alerts on PostgreSQL: one row per threshold whoever sees it, an outbox that two cannot empty at once, and sums like the ledger's."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.domain.alerts import BudgetAlert, LimitSide, Sent, Threshold
from app.domain.budget import Budget, PeriodKind
from app.domain.identity import Key, KeyStatus, PaymentStatus, User
from app.domain.limits import Scope
from app.domain.money import NanoUsd
from app.exceptions import InvalidRequest
from app.storage.alert_ports import AlertStore, DeliveryState
from app.storage.sql_alerts import SqlAlertStore
from app.storage.sql_usage import SqlUsageStore
from tests.storage.planting import SqlPlanter
from tests.storage.records import KEY_A, KEY_B, NOON, a_claim, a_record

MONTHLY = Budget(PeriodKind.MONTHLY, NanoUsd(5), NanoUsd(10))
DAILY = Budget(PeriodKind.DAILY, None, NanoUsd(7))


@pytest.fixture
def store(engine: AsyncEngine) -> AlertStore:
    return SqlAlertStore(engine)


def an_alert(
    percent: int = 50, *, holder: str = "user-1", period: str = "monthly:2026-11-01", at: datetime = NOON
) -> BudgetAlert:
    threshold = Threshold(LimitSide.HARD, percent, NanoUsd(10))
    return BudgetAlert(str(uuid4()), at, Scope.USER, holder, PeriodKind.MONTHLY, period, threshold, NanoUsd(6))


async def test_of_many_who_see_one_threshold_exactly_one_makes_its_alert(store: AlertStore) -> None:
    seen = [[an_alert(percent) for percent in (100, 50, 80)] for _ in range(8)]

    kept = await asyncio.gather(*(store.keep(alerts, for_delivery=True) for alerts in seen))

    assert sorted(alert.threshold.percent for some in kept for alert in some) == [50, 80, 100]
    assert len((await store.page(limit=50, cursor=None)).items) == 3
    assert len(await store.claim_due(now=NOON, until=NOON, limit=50)) == 3


async def test_another_period_or_holder_has_alerts_of_its_own(store: AlertStore) -> None:
    await store.keep([an_alert()], for_delivery=False)

    assert len(await store.keep([an_alert(period="monthly:2026-12-01")], for_delivery=False)) == 1
    assert len(await store.keep([an_alert(holder="user-2")], for_delivery=False)) == 1
    assert await store.keep([an_alert()], for_delivery=False) == []


async def test_a_delivery_is_taken_by_one_only_and_comes_back_when_it_was_not_booked(store: AlertStore) -> None:
    await store.keep([an_alert(percent) for percent in (50, 80, 100)], for_delivery=True)
    later = NOON + timedelta(seconds=30)

    taken = await asyncio.gather(*(store.claim_due(now=NOON, until=later, limit=2) for _ in range(4)))

    assert sorted(each.alert.threshold.percent for some in taken for each in some) == [50, 80, 100]
    assert await store.claim_due(now=NOON, until=later, limit=9) == []
    again = await store.claim_due(now=later, until=later + timedelta(seconds=30), limit=9)
    assert [(each.attempts, each.since) for each in again] == [(2, NOON)] * 3


async def test_what_became_of_a_delivery_is_shown(store: AlertStore) -> None:
    alerts = [an_alert(50), an_alert(80, at=NOON + timedelta(seconds=1)), an_alert(100, at=NOON + timedelta(seconds=2))]
    await store.keep(alerts, for_delivery=True)
    await store.keep([an_alert(50, holder="quiet", at=NOON - timedelta(days=1))], for_delivery=False)
    await store.claim_due(now=NOON + timedelta(seconds=5), until=NOON, limit=9)

    await store.delivered(alerts[0].id, Sent(204), NOON)
    await store.not_delivered(
        alerts[0].id, Sent(500, "status_500"), again_at=NOON, at=NOON
    )  # too late: it stays delivered
    await store.not_delivered(alerts[1].id, Sent(500, "status_500"), again_at=NOON + timedelta(hours=1), at=NOON)
    await store.not_delivered(alerts[2].id, Sent(None, "dns_error"), again_at=None, at=NOON)

    items = (await store.page(limit=9, cursor=None)).items
    assert [(each.state, each.attempts, each.last_status, each.last_error) for each in items] == [
        (DeliveryState.FAILED, 1, None, "dns_error"),
        (DeliveryState.PENDING, 1, 500, "status_500"),
        (DeliveryState.DELIVERED, 1, 204, None),
        (DeliveryState.NONE, 0, None, None),
    ]
    assert (items[1].next_attempt_at, items[2].delivered_at) == (NOON + timedelta(hours=1), NOON)
    assert await store.claim_due(now=NOON, until=NOON, limit=9) == []


async def test_alerts_are_paged_newest_first(store: AlertStore) -> None:
    made = [an_alert(holder=f"u{i}", at=NOON + timedelta(seconds=i // 2)) for i in range(5)]
    await store.keep(made, for_delivery=False)

    seen, cursor = [], None
    while True:
        page = await store.page(limit=2, cursor=cursor)
        seen += [row.alert for row in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break

    assert seen == sorted(made, key=lambda alert: (alert.at, alert.id), reverse=True)
    with pytest.raises(InvalidRequest):
        await store.page(limit=2, cursor="nonsense")


async def test_budgets_are_found_by_their_holders(engine: AsyncEngine, store: AlertStore) -> None:
    planter = SqlPlanter(engine)
    await planter.user(User("user-1", PaymentStatus.ACTIVE, None, budgets=(MONTHLY, DAILY)))
    await planter.user(User("user-2", PaymentStatus.ACTIVE, None))
    key = Key(KEY_A, KeyStatus.ACTIVE, None, frozenset(("*",)), budgets=(DAILY,))
    await planter.key(key, owner="user-1", digest=b"a" * 32)

    found = await store.budgets_of(
        [(Scope.USER, "user-1"), (Scope.USER, "user-2"), (Scope.KEY, KEY_A), (Scope.MODEL, "user-1")]
    )

    assert found == {(Scope.USER, "user-1"): (MONTHLY, DAILY), (Scope.KEY, KEY_A): (DAILY,)}


async def test_holders_that_no_table_can_hold_are_passed_over(store: AlertStore) -> None:
    """A record's names are its caller's; they must not stop the records behind it."""
    hostile = [(Scope.KEY, "no uuid"), (Scope.USER, "nul\x00"), (Scope.MODEL, "x" * 10_000)]

    assert await store.budgets_of(hostile) == {}


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata", "America/St_Johns", "Pacific/Chatham"])
@pytest.mark.parametrize("kind", list(PeriodKind))
async def test_what_was_spent_is_what_admission_is_seeded_with(
    engine: AsyncEngine, store: AlertStore, zone: str, kind: PeriodKind
) -> None:
    ledger = SqlUsageStore(engine)
    moments = [NOON + timedelta(minutes=17 * i) - timedelta(days=35 if i % 7 == 0 else 0) for i in range(-90, 90)]
    records = [a_record(at, key_id=KEY_A if i % 2 else KEY_B, cost_nanousd=1 + i) for i, at in enumerate(moments)]
    await ledger.write(records)

    for scope, holders in ((Scope.KEY, [KEY_A, KEY_B]), (Scope.USER, ["user-1"]), (Scope.MODEL, ["gpt-4"])):
        claims = [a_claim(scope, holder, kind, zone=ZoneInfo(zone)) for holder in holders]
        found = await store.spent(scope, claims[0].period, holders)
        assert found == {claim.scope_id: await ledger.spent(claim) for claim in claims}
        assert all(amount > 0 for amount in found.values())

    assert await store.spent(Scope.USER, a_claim(Scope.USER, "nobody", kind).period, ["nobody"]) == {}
