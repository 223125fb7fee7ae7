"""Alerts: a budget's spending has passed 50, 80 or 100 % of its hard limit, or its soft limit.

How there is exactly one per holder, period and threshold, and none on the hot path:
1. Whoever moves records into the ledger tells `noticed` of each batch, after it was written and before it is confirmed: a process
   that dies in between leaves the batch to the next one, which comes here again.
2. What each touched budget has spent is kept in memory while this process goes on draining: the first batch reads it from SQL,
   the next ones add what they brought. That sum is never too small (a record written twice is added twice), and is read anew
   before it is believed, and every few seconds.
3. A threshold that SQL confirms is inserted. The table allows it once, so of two processes that see it one makes the alert; the
   outbox row for the webhook is written in the same transaction.
4. An elected chore sends what is due, signed, and again with growing pauses until the receiver says 2xx, for a day at the most.
   At least once: the id stays the same, for receivers to tell repeats.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from uuid import uuid4

from app.clock import Clock
from app.domain.alerts import BudgetAlert, LimitSide, Sent, Threshold, WatchedBudget, event_body, passed
from app.domain.budget import QUARTER_S, Budget, Period, PeriodKind, period_at
from app.domain.limits import Scope
from app.domain.money import NANO_PER_USD, NanoUsd
from app.domain.record import CallRecord
from app.exceptions import Conflict
from app.storage.alert_ports import AlertRow, AlertStore, AlertsUnreadable, Delivery, Holder, WebhookSender
from app.storage.management_ports import Page
from app.telemetry import logger

TENURE_S = 3.0
"""A drainer comes by every second, and another one can only take over after five: a longer silence may hide what others wrote."""
KNOWN_FOR_S = 10.0
"""How long a sum is added to before it is read anew: a process that stops writes records beside the elected drainer."""
KNOWN_MAX = 50_000
"""Budgets remembered at most, some 300 bytes each."""
QUARTER_MS = QUARTER_S * 1000
"""What began in the same quarter of an hour was booked to the same periods."""
DELIVERIES_AT_ONCE = 20
CLAIM_S = 30.0
"""A delivery taken by a process that then dies is free again after this; well above the time one sending may take."""
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 3600.0
GIVE_UP_AFTER = timedelta(hours=24)


@dataclass(slots=True)
class _Known:
    """What a budget has spent in one period, at most, and which of its thresholds have had their alert."""

    read_at_s: float
    spent_nanousd: int
    told: set[str] = field(default_factory=set)


class Alerts:
    def __init__(self, *, store: AlertStore, clock: Clock, zone: tzinfo, webhook: WebhookSender | None) -> None:
        self._store = store
        self._clock = clock
        self._zone = zone
        self._webhook = webhook
        self._known: dict[str, _Known] = {}
        self._last_noticed_s = float("-inf")

    async def noticed(self, records: Sequence[CallRecord]) -> None:
        """These records (perhaps none) were written to the ledger just now. Raises: DependencyUnavailable."""
        self._forget_after_a_silence()
        by_holder = _costs_by_holder(records)
        if by_holder:
            try:
                await self._look_at(by_holder)
            except AlertsUnreadable as error:
                # An alert that cannot be made must not hold up the ledger: the same batch would come for ever.
                logger.error("alerts_not_made", why=str(error))
                self._known.clear()
        self._last_noticed_s = self._clock.monotonic()

    async def deliver_due(self) -> int:
        """Send what is due. Returns how many were tried."""
        if self._webhook is None:
            return 0
        now = self._clock.now()
        until = now + timedelta(seconds=CLAIM_S)
        due = await self._store.claim_due(now=now, until=until, limit=DELIVERIES_AT_ONCE)
        outcomes = await asyncio.gather(*(self._webhook.send(each.alert.id, event_body(each.alert)) for each in due))
        for delivery, sent in zip(due, outcomes, strict=True):
            await self._book(delivery, sent)
        return len(due)

    async def send_test(self) -> tuple[str, Sent]:
        """Send a test event now, once. Returns its id and what came of it. Raises: Conflict without a webhook."""
        if self._webhook is None:
            raise Conflict("No webhook is configured: set ALERT_WEBHOOK_URL and ALERT_WEBHOOK_SECRET.")
        sample = Threshold(LimitSide.HARD, 80, NanoUsd(10 * NANO_PER_USD))
        now = self._clock.now()
        period = period_at(PeriodKind.MONTHLY, now, self._zone)
        spent = NanoUsd(8 * NANO_PER_USD)
        alert = BudgetAlert(str(uuid4()), now, Scope.KEY, "test", PeriodKind.MONTHLY, period.name, sample, spent)
        return alert.id, await self._webhook.send(alert.id, event_body(alert, type_="test"))

    async def page(self, *, limit: int, cursor: str | None) -> Page[AlertRow]:
        return await self._store.page(limit=limit, cursor=cursor)

    async def budgets_of(self, holders: Sequence[Holder]) -> Mapping[Holder, tuple[Budget, ...]]:
        """The budgets that these holders have now."""
        return await self._store.budgets_of(holders) if holders else {}

    # ── Thresholds ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _forget_after_a_silence(self) -> None:
        if self._clock.monotonic() - self._last_noticed_s > TENURE_S or len(self._known) > KNOWN_MAX:
            self._known.clear()

    async def _look_at(self, by_holder: Mapping[Holder, Mapping[int, int]]) -> None:
        touched, brought = await self._touched(by_holder)
        suspects = [watched for watched in touched if self._may_have_passed(watched, brought[watched.counter])]
        if suspects:
            await self._look_closely(suspects)

    async def _touched(
        self, by_holder: Mapping[Holder, Mapping[int, int]]
    ) -> tuple[list[WatchedBudget], defaultdict[str, int]]:
        """The budgets that these records were booked to, and by how much. A call belongs to the period that it began in."""
        touched: dict[str, WatchedBudget] = {}
        brought: defaultdict[str, int] = defaultdict(int)
        for (scope, scope_id), budgets in (await self._store.budgets_of(list(by_holder))).items():
            for budget in budgets:
                for quarter, cost_nanousd in by_holder[scope, scope_id].items():
                    began_at = datetime.fromtimestamp(quarter * QUARTER_MS / 1000, UTC)
                    watched = WatchedBudget(scope, scope_id, budget, period_at(budget.period, began_at, self._zone))
                    touched.setdefault(watched.counter, watched)
                    brought[watched.counter] += cost_nanousd
        return list(touched.values()), brought

    def _may_have_passed(self, watched: WatchedBudget, brought_nanousd: int) -> bool:
        known = self._known.get(watched.counter)
        if known is None or self._clock.monotonic() - known.read_at_s > KNOWN_FOR_S:
            return True
        known.spent_nanousd += brought_nanousd
        return bool(passed(watched.budget, known.spent_nanousd, but=known.told))

    async def _look_closely(self, suspects: Iterable[WatchedBudget]) -> None:
        """Read what was spent, and make an alert of every threshold that was passed and has none yet."""
        groups: defaultdict[tuple[Scope, Period], list[WatchedBudget]] = defaultdict(list)
        for watched in suspects:
            groups[watched.scope, watched.period].append(watched)
        found: list[BudgetAlert] = []
        looked_at: dict[str, _Known] = {}
        for (scope, period), group in groups.items():
            spent = await self._store.spent(scope, period, [watched.scope_id for watched in group])
            for watched in group:
                before = self._known.get(watched.counter)
                now = _Known(self._clock.monotonic(), spent.get(watched.scope_id, NanoUsd(0)))
                now.told |= before.told if before else set()
                looked_at[watched.counter] = now
                crossed = passed(watched.budget, now.spent_nanousd, but=now.told)
                found += [self._alert(watched, threshold, now.spent_nanousd) for threshold in crossed]
                now.told |= {threshold.name for threshold in crossed}
        if found:
            for alert in await self._store.keep(found, for_delivery=self._webhook is not None):
                _log(alert)
        self._known |= looked_at  # only now: what could not be stored must be seen again

    def _alert(self, watched: WatchedBudget, threshold: Threshold, spent_nanousd: int) -> BudgetAlert:
        return BudgetAlert(
            id=str(uuid4()),
            at=self._clock.now(),
            scope=watched.scope,
            scope_id=watched.scope_id,
            period_kind=watched.budget.period,
            period_name=watched.period.name,
            threshold=threshold,
            spent_nanousd=NanoUsd(spent_nanousd),
        )

    # ── The webhook ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _book(self, delivery: Delivery, sent: Sent) -> None:
        """Write down what came of a sending, and when it is to be repeated."""
        alert, now = delivery.alert, self._clock.now()
        if sent.is_delivered:
            await self._store.delivered(alert.id, sent, now)
            return
        again_at = now + timedelta(seconds=pause_s(delivery.attempts))
        is_over = again_at - delivery.since > GIVE_UP_AFTER
        await self._store.not_delivered(alert.id, sent, again_at=None if is_over else again_at, at=now)
        if is_over:
            logger.error("alert_not_delivered", alert_id=alert.id, attempts=delivery.attempts, why=sent.error)


def pause_s(attempts: int) -> float:
    """How long to wait after so many attempts in vain: 1 s, 2 s, 4 s … one hour."""
    return float(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(attempts - 1, 30)))


def _costs_by_holder(records: Iterable[CallRecord]) -> dict[Holder, defaultdict[int, int]]:
    """What these records cost everybody whose budgets they were booked to, by the quarter of an hour in which they began."""
    found: defaultdict[Holder, defaultdict[int, int]] = defaultdict(lambda: defaultdict(int))
    for record in records:
        cost_nanousd = record.cost_nanousd
        if not cost_nanousd or record.is_refusal:
            continue
        quarter = record.created_at_ms // QUARTER_MS
        found[Scope.USER, record.user_oid][quarter] += cost_nanousd
        found[Scope.MODEL, record.served_model][quarter] += cost_nanousd
        if record.key_id:
            found[Scope.KEY, record.key_id][quarter] += cost_nanousd
        if record.app_id:
            found[Scope.APP, record.app_id][quarter] += cost_nanousd
    return found


def _log(alert: BudgetAlert) -> None:
    logger.warning(
        "budget_threshold",
        alert_id=alert.id,
        scope=str(alert.scope),
        holder=alert.scope_id,
        period=alert.period_name,
        limit=str(alert.threshold.side),
        threshold_percent=alert.threshold.percent,
        limit_nanousd=alert.threshold.limit_nanousd,
        spent_nanousd=alert.spent_nanousd,
    )
