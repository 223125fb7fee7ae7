"""AlertStore on PostgreSQL: alerts, their outbox, and what budgets have spent, asked for many holders at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, Table, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.database import transaction
from app.domain.alerts import BudgetAlert, LimitSide, Sent, Threshold
from app.domain.budget import Budget, Period, PeriodKind, ReserveMode
from app.domain.limits import Scope
from app.domain.money import NanoUsd
from app.models.tables import budget_alerts, budgets, day_rollups, usage_records, usage_rollups, webhook_deliveries
from app.storage.alert_ports import AlertRow, AlertsUnreadable, Delivery, DeliveryState, Holder
from app.storage.keyset import after, page_of
from app.storage.management_ports import Page
from app.storage.sql_rows import HOLDER_COLUMN, AnyRow, BudgetRow, budget_of, is_uuid

LEDGER_COLUMN = {**HOLDER_COLUMN, Scope.MODEL: "served_model"}

_alerts_with_deliveries = select(
    budget_alerts,
    *(webhook_deliveries.c.state, webhook_deliveries.c.attempts, webhook_deliveries.c.next_attempt_at),
    *(webhook_deliveries.c.last_attempt_at, webhook_deliveries.c.last_status, webhook_deliveries.c.last_error),
).outerjoin(webhook_deliveries, webhook_deliveries.c.alert_id == budget_alerts.c.id)

ROWS_AT_ONCE = 1_000
"""A statement takes 32,767 parameters and an alert has ten."""


class SqlAlertStore:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def budgets_of(self, holders: Sequence[Holder]) -> Mapping[Holder, tuple[Budget, ...]]:
        ids: defaultdict[Scope, list[str]] = defaultdict(list)
        for scope, scope_id in holders:
            if is_uuid(scope_id) if scope is Scope.KEY else "\x00" not in scope_id:
                ids[scope].append(scope_id)
        if not ids:
            return {}
        wanted = (budgets.c[HOLDER_COLUMN[scope]].in_(of_scope) for scope, of_scope in ids.items())
        async with _readable(self._engine) as connection:
            rows = await connection.execute(select(budgets).where(or_(*wanted)).order_by(budgets.c.id))
            found: defaultdict[Holder, list[Budget]] = defaultdict(list)
            for row in rows:
                found[_holder_of(row)].append(_budget_of(row))
        return {holder: tuple(held) for holder, held in found.items()}

    async def spent(self, scope: Scope, period: Period, scope_ids: Sequence[str]) -> Mapping[str, NanoUsd]:
        """Whole hours from the rollups, what is left of the first and last hour (zones with half hours) from the ledger."""
        totals: defaultdict[str, int] = defaultdict(int)
        async with _readable(self._engine) as connection:
            for statement in spent_statements(scope, period, scope_ids):
                for holder, spent in await connection.execute(statement):
                    totals[str(holder)] += int(spent)
        return {holder: NanoUsd(spent) for holder, spent in totals.items()}

    async def keep(self, alerts: Sequence[BudgetAlert], *, for_delivery: bool) -> list[BudgetAlert]:
        """One transaction. The rows go in sorted, so that two processes that see the same never wait for each other in a ring."""
        ordered = sorted(
            alerts, key=lambda alert: (alert.scope, alert.scope_id, alert.period_name, alert.threshold.name)
        )
        kept: list[BudgetAlert] = []
        async with _readable(self._engine) as connection:
            for start in range(0, len(ordered), ROWS_AT_ONCE):
                kept += await _insert(connection, ordered[start : start + ROWS_AT_ONCE], for_delivery=for_delivery)
        return kept

    async def claim_due(self, *, now: datetime, until: datetime, limit: int) -> list[Delivery]:
        outbox = webhook_deliveries
        due = (
            select(outbox.c.alert_id)
            .where(outbox.c.state == "pending", outbox.c.next_attempt_at <= now)
            .order_by(outbox.c.next_attempt_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        claim = (
            update(outbox)
            .where(outbox.c.alert_id.in_(due), outbox.c.alert_id == budget_alerts.c.id)
            .values(attempts=outbox.c.attempts + 1, next_attempt_at=until, last_attempt_at=now)
            .returning(budget_alerts, outbox.c.attempts, outbox.c.created_at.label("since"))
        )
        async with transaction(self._engine) as connection:
            rows = (await connection.execute(claim)).all()
        return [Delivery(_alert_of(row), row.attempts, row.since) for row in rows]

    async def delivered(self, alert_id: str, sent: Sent, at: datetime) -> None:
        await self._book(alert_id, state="delivered", last_status=sent.status, last_error=None, last_attempt_at=at)

    async def not_delivered(self, alert_id: str, sent: Sent, *, again_at: datetime | None, at: datetime) -> None:
        outcome = {"last_status": sent.status, "last_error": sent.error, "last_attempt_at": at}
        if again_at is None:
            await self._book(alert_id, state="failed", **outcome)
        else:
            await self._book(alert_id, next_attempt_at=again_at, **outcome)

    async def page(self, *, limit: int, cursor: str | None) -> Page[AlertRow]:
        place = budget_alerts.c.created_at, budget_alerts.c.id
        async with transaction(self._engine) as connection:
            rows = (await connection.execute(after(_alerts_with_deliveries, cursor, *place, limit))).all()
        return page_of([_row_of(row) for row in rows], limit, lambda row: (row.alert.at, row.alert.id))

    async def _book(self, alert_id: str, **values: object) -> None:
        """A delivery that was already booked as delivered stays so."""
        outbox = webhook_deliveries
        async with transaction(self._engine) as connection:
            await connection.execute(
                update(outbox).where(outbox.c.alert_id == alert_id, outbox.c.state == "pending").values(**values)
            )


@asynccontextmanager
async def _readable(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A transaction whose statements' own faults are told apart from a database that is away. Raises: AlertsUnreadable."""
    try:
        async with transaction(engine) as connection:
            yield connection
    except (DBAPIError, ValueError) as error:
        raise AlertsUnreadable(str(error).partition("\n")[0][:300]) from error


# ── What was spent ────────────────────────────────────────────────────────────────────────────────────────────────────


def spent_statements(
    scope: Scope, period: Period, scope_ids: Sequence[str], *, by_day: bool = False
) -> list[Select[Any]]:
    """With `by_day` whole days from their own sums: few rows, but nothing to enforce a budget by, see `day_rollups`."""
    rollup, hour = usage_rollups.c[HOLDER_COLUMN[scope]], usage_rollups.c.hour
    by_day = by_day and scope is not Scope.MODEL
    start, end = period.starts_at, period.ends_at
    if start is None or end is None:
        table = day_rollups if by_day else usage_rollups
        return [_sums(table, table.c[HOLDER_COLUMN[scope]], scope_ids)]
    first_hour, last_hour = _next_hour(start), end.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    days, hours = whole_days(first_hour, last_hour) if by_day else (None, [(first_hour, last_hour)])
    statements = [_sums(usage_rollups, rollup, scope_ids, hour >= a, hour < b) for a, b in hours]
    if days is not None:
        day = day_rollups.c.day
        holder = day_rollups.c[HOLDER_COLUMN[scope]]
        statements.append(_sums(day_rollups, holder, scope_ids, day >= days[0], day < days[1]))
    edges = [(a, b) for a, b in ((start, first_hour), (last_hour, end)) if a < b]
    if edges:
        at = usage_records.c.created_at
        in_edges = or_(*((at >= a) & (at < b) for a, b in edges))
        statements.append(_sums(usage_records, usage_records.c[LEDGER_COLUMN[scope]], scope_ids, in_edges))
    return statements


Stretch = tuple[datetime, datetime]


def whole_days(since: datetime, until: datetime) -> tuple[Stretch | None, list[Stretch]]:
    """The whole days (UTC) between two hours, and what is left before and after them."""
    first = since.astimezone(UTC).replace(hour=0)
    first = first if first == since else first + timedelta(days=1)
    last = until.astimezone(UTC).replace(hour=0)
    if first >= last:
        return None, [(since, until)]
    return (first, last), [(a, b) for a, b in ((since, first), (last, until)) if a < b]


def _sums(
    table: Table, holder: ColumnElement[Any], scope_ids: Sequence[str], *where: ColumnElement[bool]
) -> Select[Any]:
    total = func.sum(table.c.cost_nanousd)
    return select(holder, total).where(holder.in_(scope_ids), *where).group_by(holder)


def _next_hour(moment: datetime) -> datetime:
    """The first whole hour (UTC) at this moment or after it."""
    floor = moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    return floor if floor == moment else floor + timedelta(hours=1)


# ── Rows ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _insert(
    connection: AsyncConnection, alerts: Sequence[BudgetAlert], *, for_delivery: bool
) -> list[BudgetAlert]:
    statement = insert(budget_alerts).values([_values_of(alert) for alert in alerts])
    unlike = statement.on_conflict_do_nothing(constraint="uq_budget_alerts_threshold")
    new = set((await connection.execute(unlike.returning(budget_alerts.c.id))).scalars())
    kept = [alert for alert in alerts if alert.id in new]
    if kept and for_delivery:
        rows = [{"alert_id": each.id, "created_at": each.at, "next_attempt_at": each.at} for each in kept]
        await connection.execute(insert(webhook_deliveries).values(rows))
    return kept


def _holder_of(row: AnyRow) -> Holder:
    for scope, column in HOLDER_COLUMN.items():
        holder = getattr(row, column)
        if holder is not None:
            return scope, holder
    raise ValueError("a budget without a holder")  # the table's own check forbids it


def _budget_of(row: AnyRow) -> Budget:
    limits = row.soft_limit_nanousd, row.hard_limit_nanousd
    return budget_of(BudgetRow(PeriodKind(row.period), *limits, ReserveMode(row.reserve)))


def _values_of(alert: BudgetAlert) -> dict[str, object]:
    return {
        "id": alert.id,
        "created_at": alert.at,
        "scope": alert.scope.value,
        "scope_id": alert.scope_id,
        "period_kind": alert.period_kind.value,
        "period": alert.period_name,
        "side": alert.threshold.side.value,
        "percent": alert.threshold.percent,
        "limit_nanousd": alert.threshold.limit_nanousd,
        "spent_nanousd": alert.spent_nanousd,
    }


def _alert_of(row: AnyRow) -> BudgetAlert:
    return BudgetAlert(
        id=row.id,
        at=row.created_at,
        scope=Scope(row.scope),
        scope_id=row.scope_id,
        period_kind=PeriodKind(row.period_kind),
        period_name=row.period,
        threshold=Threshold(LimitSide(row.side), row.percent, NanoUsd(row.limit_nanousd)),
        spent_nanousd=NanoUsd(row.spent_nanousd),
    )


def _row_of(row: AnyRow) -> AlertRow:
    alert = _alert_of(row)
    if row.state is None:
        return AlertRow(alert, DeliveryState.NONE)
    state = DeliveryState(row.state)
    return AlertRow(
        alert,
        state,
        attempts=row.attempts,
        next_attempt_at=row.next_attempt_at if state is DeliveryState.PENDING else None,
        delivered_at=row.last_attempt_at if state is DeliveryState.DELIVERED else None,
        last_status=row.last_status,
        last_error=row.last_error,
    )
