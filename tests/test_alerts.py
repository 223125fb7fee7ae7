"""Alerts as a service: when they are made, when their webhook is tried again, and when it is given up."""

# ruff: noqa: F811 - fixtures are imported by name and asked for by name

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import httpx2
import msgspec
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from app.domain.alerts import BudgetAlert, Sent
from app.domain.budget import Budget, Period, PeriodKind
from app.domain.identity import LogContent
from app.domain.limits import Scope
from app.domain.money import NanoUsd
from app.domain.record import CallRecord, encode_record
from app.exceptions import DependencyUnavailable
from app.services.alerts import KNOWN_FOR_S, TENURE_S, Alerts, pause_s
from app.services.usage_log import UsageLog
from app.storage.alert_ports import AlertRow, Delivery, Holder
from app.storage.management_ports import Page
from app.storage.ports import PendingRecord
from app.storage.sql_usage import SqlUsageStore
from tests.admin_fixtures import (  # noqa: F401
    api,
    database,
    engine,
    gateway,
    open_app,
    open_client,
    open_gateway,
    postgres_url,
    template,
)
from tests.kit.clock import ManualClock
from tests.storage.records import NOON, a_record, a_refusal

MONTHLY = Budget(PeriodKind.MONTHLY, NanoUsd(700), NanoUsd(1000))


@dataclass(slots=True)
class FakeStore:
    """An AlertStore in memory. `ledger` is what SQL would say was spent; `reads` counts how often it was asked."""

    budgets: dict[Holder, tuple[Budget, ...]] = field(default_factory=dict)
    ledger: dict[str, int] = field(default_factory=dict)
    kept: list[BudgetAlert] = field(default_factory=list)
    outbox: dict[str, tuple[Delivery, datetime]] = field(default_factory=dict)
    booked: list[tuple[str, Sent, datetime | None]] = field(default_factory=list)
    reads: int = 0
    keeps: int = 0
    is_away: bool = False

    async def budgets_of(self, holders: Sequence[Holder]) -> Mapping[Holder, tuple[Budget, ...]]:
        return {holder: self.budgets[holder] for holder in holders if holder in self.budgets}

    async def spent(self, scope: Scope, period: Period, scope_ids: Sequence[str]) -> Mapping[str, NanoUsd]:
        self.reads += 1
        return {each: NanoUsd(self.ledger.get(f"{each}:{period.name}", 0)) for each in scope_ids}

    async def keep(self, alerts: Sequence[BudgetAlert], *, for_delivery: bool) -> list[BudgetAlert]:
        self.keeps += 1
        if self.is_away:
            raise DependencyUnavailable("database")
        there = {(each.scope, each.scope_id, each.period_name, each.threshold.name) for each in self.kept}
        new = [
            each for each in alerts if (each.scope, each.scope_id, each.period_name, each.threshold.name) not in there
        ]
        self.kept += new
        if for_delivery:
            self.outbox |= {each.id: (Delivery(each, 0, each.at), each.at) for each in new}
        return new

    async def claim_due(self, *, now: datetime, until: datetime, limit: int) -> list[Delivery]:
        due = [delivery for delivery, at in self.outbox.values() if at <= now][:limit]
        taken = [Delivery(each.alert, each.attempts + 1, each.since) for each in due]
        self.outbox |= {each.alert.id: (each, until) for each in taken}
        return taken

    async def delivered(self, alert_id: str, sent: Sent, at: datetime) -> None:
        self.booked.append((alert_id, sent, None))
        del self.outbox[alert_id]

    async def not_delivered(self, alert_id: str, sent: Sent, *, again_at: datetime | None, at: datetime) -> None:
        self.booked.append((alert_id, sent, again_at))
        if again_at is None:
            del self.outbox[alert_id]
        else:
            self.outbox[alert_id] = (self.outbox[alert_id][0], again_at)

    async def page(self, *, limit: int, cursor: str | None) -> Page[AlertRow]:
        return Page([], None)


@dataclass(slots=True)
class FakeWebhook:
    """Answers with `answers` in turn, the last one for ever."""

    answers: list[Sent] = field(default_factory=lambda: [Sent(200)])
    received: list[tuple[str, bytes]] = field(default_factory=list)

    async def send(self, event_id: str, body: bytes) -> Sent:
        self.received.append((event_id, body))
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOON)


@pytest.fixture
def store() -> FakeStore:
    return FakeStore({(Scope.USER, "user-1"): (MONTHLY,)})


@pytest.fixture
def webhook() -> FakeWebhook:
    return FakeWebhook()


@pytest.fixture
def alerts(store: FakeStore, clock: ManualClock, webhook: FakeWebhook) -> Alerts:
    return Alerts(store=store, clock=clock, zone=UTC, webhook=webhook)


async def written(alerts: Alerts, store: FakeStore, *costs: int, at: datetime = NOON) -> None:
    """Records of these costs reach the ledger in one batch."""
    store.ledger["user-1:monthly:2026-11-01"] = store.ledger.get("user-1:monthly:2026-11-01", 0) + sum(costs)
    await alerts.noticed([a_record(at, cost_nanousd=cost) for cost in costs])


def told(store: FakeStore) -> list[str]:
    return [alert.threshold.name for alert in store.kept]


# ── Thresholds ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_each_threshold_is_told_once_as_it_is_passed(alerts: Alerts, store: FakeStore) -> None:
    seen = []
    for cost in (499, 1, 199, 1, 100, 199, 1, 500):
        await written(alerts, store, cost)
        seen.append(list(told(store)))

    assert seen[0] == []
    assert seen[1:3] == [["hard:50"]] * 2
    assert seen[3] == ["hard:50", "soft:100"]
    assert seen[4:6] == [["hard:50", "soft:100", "hard:80"]] * 2
    assert seen[6:] == [["hard:50", "soft:100", "hard:80", "hard:100"]] * 2
    assert [alert.spent_nanousd for alert in store.kept] == [500, 700, 800, 1000]


async def test_one_batch_may_pass_all_of_them(alerts: Alerts, store: FakeStore) -> None:
    await written(alerts, store, *[100] * 12)

    assert sorted(told(store)) == ["hard:100", "hard:50", "hard:80", "soft:100"]


async def test_the_ledger_is_not_asked_again_while_nothing_can_have_been_passed(
    alerts: Alerts, store: FakeStore
) -> None:
    for _ in range(40):
        await written(alerts, store, 10)

    assert store.reads == 1


async def test_what_has_had_its_alert_is_not_stored_again_each_time_the_ledger_is_read(
    alerts: Alerts, store: FakeStore, clock: ManualClock
) -> None:
    for _ in range(3 * int(KNOWN_FOR_S)):
        await written(alerts, store, 600)
        await clock.advance(1.0)

    assert store.keeps == 2, "one that passed 50 %, one that passed the rest"
    assert 2 < store.reads < 8


async def test_a_batch_that_was_written_twice_makes_no_alert_of_money_that_was_spent_once(
    alerts: Alerts, store: FakeStore
) -> None:
    records = [a_record(cost_nanousd=300)]
    store.ledger["user-1:monthly:2026-11-01"] = 300

    await alerts.noticed(records)
    await alerts.noticed(records)

    assert told(store) == []
    assert store.reads == 2, "the sum seemed to have passed, and the ledger said no"


@pytest.mark.parametrize("silence_s", [TENURE_S + 0.1, KNOWN_FOR_S + 0.1])
async def test_what_another_process_wrote_meanwhile_counts(
    alerts: Alerts, store: FakeStore, clock: ManualClock, silence_s: float
) -> None:
    await written(alerts, store, 100)
    store.ledger["user-1:monthly:2026-11-01"] += 399  # by another drainer, while this one was not elected
    await clock.advance(silence_s)

    await written(alerts, store, 1)

    assert told(store) == ["hard:50"]


async def test_what_is_written_beside_a_steady_drainer_counts_after_a_while(
    alerts: Alerts, store: FakeStore, clock: ManualClock
) -> None:
    await written(alerts, store, 100)
    store.ledger["user-1:monthly:2026-11-01"] += (
        399  # by a process that stops, which drains once more without being elected
    )
    for _ in range(int(KNOWN_FOR_S) + 1):
        await clock.advance(1.0)
        await alerts.noticed([])

    await written(alerts, store, 1)

    assert told(store) == ["hard:50"]


async def test_an_alert_that_could_not_be_stored_is_made_with_the_same_batch_later(
    alerts: Alerts, store: FakeStore
) -> None:
    store.is_away = True
    with pytest.raises(DependencyUnavailable):
        await written(alerts, store, 500)
    store.is_away = False

    await alerts.noticed([a_record(cost_nanousd=500)])

    assert told(store) == ["hard:50"]


async def test_a_database_that_does_not_know_alerts_holds_up_no_ledger(engine: AsyncEngine, clock: ManualClock) -> None:
    """After a downgrade, say: the records go on, and it is said."""
    opened = open_gateway(engine)
    await opened.execute("DROP TABLE webhook_deliveries")
    await opened.execute("DROP TABLE budget_alerts")
    await opened.execute("INSERT INTO users (oid) VALUES ('user-1')")
    await opened.execute(
        "INSERT INTO budgets (user_oid, period, hard_limit_nanousd) VALUES ('user-1', 'monthly', 1000)"
    )
    records = [a_record(cost_nanousd=600)]
    await opened.usage.write(records)

    with capture_logs() as lines:
        await opened.alerts.noticed(records)

    assert [line["event"] for line in lines] == ["alerts_not_made"]


async def test_a_call_counts_in_the_period_it_began_in(alerts: Alerts, store: FakeStore) -> None:
    last_month = datetime(2026, 10, 31, 23, 59, 59, tzinfo=UTC)
    store.ledger["user-1:monthly:2026-10-01"] = 500

    await alerts.noticed([a_record(last_month, cost_nanousd=500), a_record(NOON, cost_nanousd=1)])

    assert [(alert.period_name, alert.threshold.name) for alert in store.kept] == [("monthly:2026-10-01", "hard:50")]


async def test_refusals_and_calls_that_cost_nothing_are_nobodys_spending(alerts: Alerts, store: FakeStore) -> None:
    store.ledger["user-1:monthly:2026-11-01"] = 900

    await alerts.noticed([a_refusal(), a_record(cost_nanousd=0)])

    assert (told(store), store.reads) == ([], 0)


async def test_each_scope_of_a_call_is_looked_at(store: FakeStore, alerts: Alerts) -> None:
    record: CallRecord = a_record(app_id="crm", cost_nanousd=1000)
    holders = [(Scope.USER, "user-1"), (Scope.KEY, str(record.key_id)), (Scope.APP, "crm"), (Scope.MODEL, "gpt-4")]
    store.budgets = dict.fromkeys(holders, (MONTHLY,))
    store.ledger = {f"{name}:monthly:2026-11-01": 1000 for _, name in holders}

    await alerts.noticed([record])

    assert {(alert.scope, alert.scope_id) for alert in store.kept} == set(holders)
    assert len(store.kept) == 4 * 4


# ── From the drainer ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class FakeSink:
    records: list[bytes]
    confirmed: int = 0

    async def append(self, call_id: str, packed: bytes) -> str:
        self.records.append(packed)
        return str(len(self.records) - 1)

    async def pending(self, *, limit: int, wait_s: float) -> list[PendingRecord]:
        return [PendingRecord(str(number), packed) for number, packed in enumerate(self.records)]

    async def confirm(self, records: Sequence[PendingRecord]) -> None:
        self.confirmed += len(records)
        del self.records[: len(records)]

    async def depth(self) -> int:
        return len(self.records)


async def test_a_batch_is_confirmed_only_after_its_alerts_were_stored(
    engine: AsyncEngine, alerts: Alerts, store: FakeStore, clock: ManualClock
) -> None:
    """Whoever drains next, after a kill or an outage in between, comes by here with the same records."""
    sink = FakeSink([encode_record(a_record(cost_nanousd=500))])
    store.ledger["user-1:monthly:2026-11-01"] = 500
    log = UsageLog(
        sink=sink,
        store=SqlUsageStore(engine),
        clock=clock,
        log_content=LogContent.METADATA,
        content_max_bytes=0,
        on_written=alerts.noticed,
    )
    store.is_away = True
    with pytest.raises(DependencyUnavailable):
        await log.drain_once()
    assert (sink.confirmed, told(store)) == (0, [])

    store.is_away = False
    await log.drain_once()

    assert (sink.confirmed, told(store)) == (1, ["hard:50"])


# ── The webhook ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_delivery_is_repeated_with_growing_pauses_until_it_is_taken(
    alerts: Alerts, store: FakeStore, clock: ManualClock, webhook: FakeWebhook
) -> None:
    webhook.answers = [Sent(500, "status_500"), Sent(None, "connect_failed"), Sent(302, "status_302"), Sent(204)]
    await written(alerts, store, 500)

    sent_at = []
    for second in range(12):
        if await alerts.deliver_due():
            sent_at.append(second)
        await clock.advance(1.0)

    assert sent_at == [0, 1, 3, 7]
    assert len({(event_id, body) for event_id, body in webhook.received}) == 1, "the same id and bytes each time"
    assert store.outbox == {}
    event = msgspec.json.decode(webhook.received[0][1])
    assert event == {
        "type": "budget_threshold",
        "id": store.kept[0].id,
        "at": "2026-11-23T12:00:00.000000Z",
        "scope": "user",
        "holder": "user-1",
        "period": "monthly",
        "period_name": "monthly:2026-11-01",
        "limit": "hard",
        "threshold": 50,
        "limit_usd": "0.000001000",
        "spent_usd": "0.000000500",
    }


async def test_a_delivery_is_given_up_after_a_day(
    alerts: Alerts, store: FakeStore, clock: ManualClock, webhook: FakeWebhook
) -> None:
    webhook.answers = [Sent(None, "connect_failed")]
    await written(alerts, store, 500)

    while store.outbox:
        await alerts.deliver_due()
        await clock.advance(60.0)

    assert timedelta(hours=22) < clock.now() - NOON <= timedelta(hours=24, minutes=1)
    pauses = [pause_s(attempt) for attempt in range(1, 15)]
    assert pauses[:4] == [1, 2, 4, 8]
    assert pauses[-2:] == [3600, 3600]
    assert 30 < len(webhook.received) < 45


async def test_without_a_webhook_alerts_are_made_and_nothing_waits_to_be_sent(
    store: FakeStore, clock: ManualClock
) -> None:
    quiet = Alerts(store=store, clock=clock, zone=UTC, webhook=None)
    await written(quiet, store, 500)

    assert told(store) == ["hard:50"]
    assert (await quiet.deliver_due(), store.outbox) == (0, {})


# ── The admin API ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_test_button_sends_now_and_says_what_came_of_it(engine: AsyncEngine) -> None:
    hook = FakeWebhook([Sent(200), Sent(503, "status_503"), Sent(None, "dns_error")])
    opened = open_gateway(engine, webhook=hook)
    async with open_client(open_app(opened)) as client:
        answers = [(await client.post("/alerts/test")).json() for _ in range(3)]

    assert [(each["delivered"], each["status"], each["error"]) for each in answers] == [
        (True, 200, None),
        (False, 503, "status_503"),
        (False, None, "dns_error"),
    ]
    assert [event_id for event_id, _ in hook.received] == [each["id"] for each in answers]
    assert msgspec.json.decode(hook.received[0][1])["type"] == "test"
    rows = await opened.rows("SELECT action, object_id FROM audit_log ORDER BY id")
    assert [(row["action"], row["object_id"]) for row in rows] == [("alert.test", each["id"]) for each in answers]


async def test_the_test_button_without_a_webhook_says_what_to_set(api: httpx2.AsyncClient) -> None:
    answer = await api.post("/alerts/test")

    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")
    assert "ALERT_WEBHOOK_URL" in answer.json()["error"]["message"]


async def test_alerts_are_listed_with_their_delivery(engine: AsyncEngine) -> None:
    opened = open_gateway(engine)
    async with open_client(open_app(opened)) as client:
        user = {"user_oid": "user-1", "budgets": [{"period": "monthly", "hard_limit_usd": "0.000001"}]}
        assert (await client.post("/users", json=user)).status_code == 201
        records = [a_record(cost_nanousd=600)]
        await opened.usage.write(records)
        await opened.alerts.noticed(records)

        (alert,) = (await client.get("/alerts")).json()["items"]

    assert {
        name: alert[name] for name in ("scope", "holder", "period", "limit", "threshold", "limit_usd", "spent_usd")
    } == {
        "scope": "user",
        "holder": "user-1",
        "period": "monthly",
        "limit": "hard",
        "threshold": 50,
        "limit_usd": "0.000001000",
        "spent_usd": "0.000000600",
    }
    assert (alert["delivery"]["state"], alert["delivery"]["attempts"]) == ("none", 0)
