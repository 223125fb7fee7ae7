"""The dashboard's sums in SQL. Ranges are whole hours; what a range costs grows with its hours and endpoints, not with its calls."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, CompoundSelect, FromClause, Select, Table, cast, func, literal, select, union_all
from sqlalchemy.dialects.postgresql import UUID
from sqlalchemy.ext.asyncio import AsyncEngine

from app.database import transaction
from app.domain.budget import Period
from app.domain.histogram import percentile_ms
from app.domain.limits import Scope
from app.domain.money import NanoUsd
from app.models.tables import (
    DURATION_COUNTS,
    FIRST_TOKEN_COUNTS,
    day_rollups,
    endpoint_rollups,
    keys,
    prices,
    refusal_rollups,
    usage_rollups,
)
from app.storage.overview_ports import HourOfEndpoint, PriceRow, Refusals, Traffic
from app.storage.ports import UsageSums
from app.storage.sql_alerts import Stretch, spent_statements
from app.storage.sql_rows import AnyRow, is_uuid, price_of

_SUMS = ("requests", "errors", "prompt_tokens", "completion_tokens", "cost_nanousd")
_by = endpoint_rollups.c
_HOUR, _DAY = 'YYYY-MM-DD"T"HH24:00:00"Z"', 'YYYY-MM-DD"T"00:00:00"Z"'
_TOP = {"model": "model", "user": "user_oid", "key": "key_id", "app": "app_id"}
HISTORY_ROWS = 100
DAY = timedelta(days=1)


class SqlOverview:
    """OverviewStore on PostgreSQL."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def traffic(
        self, since: datetime, until: datetime, *, by_day: bool, model: str | None = None
    ) -> list[Traffic]:
        began = func.to_char(func.timezone("UTC", _by.hour), _DAY if by_day else _HOUR)
        statement = _traffic(began, since, until).order_by("grp")
        if model is not None:
            statement = statement.where(_by.model == model)
        return [_traffic_of(row) for row in await self._rows(statement)]

    async def endpoints(self, since: datetime, until: datetime) -> list[Traffic]:
        return [_traffic_of(row) for row in await self._rows(_traffic(_by.endpoint_id, since, until))]

    async def endpoint_hours(self, since: datetime, until: datetime) -> list[HourOfEndpoint]:
        counts = [func.sum(_by[name]).label(name) for name in DURATION_COUNTS]
        statement = (
            select(_by.endpoint_id, _by.hour, func.sum(_by.requests).label("requests"), func.sum(_by.errors), *counts)
            .where(_by.hour >= _hour_of(since), _by.hour < until)
            .group_by(_by.endpoint_id, _by.hour)
            .order_by(_by.endpoint_id, _by.hour)
        )
        return [
            HourOfEndpoint(row[0], row[1], int(row[2]), int(row[3]), percentile_ms([int(n) for n in row[4:]], 50))
            for row in await self._rows(statement)
        ]

    async def top(self, group_by: str, since: datetime, until: datetime, *, limit: int) -> list[UsageSums]:
        if group_by != "model":
            return (await self.tops([group_by], since, until, limit=limit))[group_by]
        models = _rows_of(endpoint_rollups, ["model"], endpoint_rollups.c.hour, (_hour_of(since), until)).subquery()
        statement = _dearest(models, models.c.model).limit(limit)
        return [_sums_of(row) for row in await self._rows(statement)]

    async def tops(
        self, groups: Sequence[str], since: datetime, until: datetime, *, limit: int
    ) -> dict[str, list[UsageSums]]:
        names = [_TOP[group] for group in groups]
        rows = union_all(*_signed_rows(names, _hour_of(since), until)).subquery()
        sums = [func.sum(rows.c[name]).label(name) for name in _SUMS]
        # One pass over all rows, whatever is asked for; what is left of it is few.
        held = select(*(rows.c[name] for name in names), *sums).group_by(*(rows.c[name] for name in names)).cte("held")
        lists = [
            select(literal(group).label("list"), _dearest(held, held.c[_TOP[group]]).limit(limit).subquery())
            for group in groups
        ]
        found: dict[str, list[UsageSums]] = {group: [] for group in groups}
        for row in await self._rows(union_all(*lists)):
            found[row.list].append(_sums_of(row))
        return found

    async def refusals(self, since: datetime, until: datetime, *, by_day: bool) -> list[Refusals]:
        counted, requests = refusal_rollups.c, func.sum(refusal_rollups.c.requests).label("requests")
        began = func.to_char(func.timezone("UTC", counted.hour), _DAY if by_day else _HOUR).label("began")
        statement = (
            select(began, counted.error_code, counted.http_status, requests)
            .where(counted.hour >= _hour_of(since), counted.hour < until)
            .group_by(began, counted.error_code, counted.http_status)
            .order_by(began)
        )
        rows = await self._rows(statement)
        return [Refusals(row.began, row.error_code, row.http_status, int(row.requests)) for row in rows]

    async def spent(self, scope: Scope, period: Period, scope_ids: Sequence[str]) -> Mapping[str, NanoUsd]:
        totals: defaultdict[str, int] = defaultdict(int)
        async with transaction(self._engine) as connection:
            for statement in spent_statements(scope, period, scope_ids, by_day=True):
                for holder, spent in await connection.execute(statement):
                    totals[str(holder)] += int(spent)
        return {holder: NanoUsd(spent) for holder, spent in totals.items()}

    async def key_names(self, key_ids: list[str]) -> dict[str, str]:
        wanted = [key_id for key_id in key_ids if is_uuid(key_id)]
        if not wanted:
            return {}
        statement = select(keys.c.id, keys.c.name, keys.c.key_prefix).where(
            keys.c.id.in_([cast(each, UUID(as_uuid=False)) for each in wanted])
        )
        return {str(row.id): row.name or f"{row.key_prefix}…" for row in await self._rows(statement)}

    async def prices(self, model: str) -> list[PriceRow]:
        statement = (
            select(prices)
            .where(prices.c.model == model)
            .order_by(prices.c.valid_from.desc(), prices.c.id.desc())
            .limit(HISTORY_ROWS)
        )
        return [_price_row(row) for row in await self._rows(statement)]

    async def _rows(self, statement: Select[Any] | CompoundSelect[Any]) -> list[AnyRow]:
        async with transaction(self._engine) as connection:
            return list((await connection.execute(statement)).all())


def _dearest(rows: FromClause, group: ColumnElement[Any]) -> Select[Any]:
    sums = [func.sum(rows.c[name]).label(name) for name in _SUMS]
    return (
        select(group.label("grp"), *sums)
        .where(group != "")
        .group_by(group)
        .having(sums[0] > 0)
        .order_by(sums[-1].desc(), sums[0].desc(), group)
    )


def _sums_of(row: AnyRow) -> UsageSums:
    return UsageSums(row.grp, **{name: int(row._mapping[name]) for name in _SUMS}, subgroup=None)


SHORT = timedelta(hours=12)
"""What is not longer is summed by hours; of any day longer than this, the day's sums less those of its other hours are fewer rows."""


def _signed_rows(names: Sequence[str], since: datetime, until: datetime) -> Iterator[Select[Any]]:
    """The sums of these hours: those of days, and those of hours that are missing or too much."""
    hour, day = usage_rollups.c.hour, day_rollups.c.day
    days, hours = _days_and_hours(since, until)
    if days[0] < days[1]:
        yield _rows_of(day_rollups, names, day, days)
    for sign, stretch in hours:
        yield _rows_of(usage_rollups, names, hour, stretch, sign=sign)


def _days_and_hours(since: datetime, until: datetime) -> tuple[Stretch, list[tuple[int, Stretch]]]:
    """Whole days (UTC), and the hours to add to them (1) or to take from them (-1)."""
    if until - since <= SHORT:
        return (since, since), [(1, (since, until))]
    begins, ends = _midnight(since), _midnight(until)
    hours: list[tuple[int, Stretch]] = []
    if since - begins >= SHORT:
        hours, begins = [(1, (since, begins + DAY))], begins + DAY
    elif since > begins:
        hours = [(-1, (begins, since))]
    if until - ends > SHORT:
        hours, ends = [*hours, (-1, (until, ends + DAY))], ends + DAY
    elif until > ends:
        hours = [*hours, (1, (ends, until))]
    return (begins, ends), hours


def _midnight(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def _rows_of(
    table: Table, names: Sequence[str], at: ColumnElement[Any], between: Stretch, *, sign: int = 1
) -> Select[Any]:
    sums = [table.c[name] if sign > 0 else (-table.c[name]).label(name) for name in _SUMS]
    return select(*(table.c[name] for name in names), *sums).where(at >= between[0], at < between[1])


def _traffic(group: ColumnElement[str], since: datetime, until: datetime) -> Select[*tuple[Any, ...]]:
    sums = [func.sum(_by[name]).label(name) for name in (*_SUMS, *DURATION_COUNTS, *FIRST_TOKEN_COUNTS)]
    labelled = group.label("grp")
    return select(labelled, *sums).where(_by.hour >= _hour_of(since), _by.hour < until).group_by(labelled)


def _traffic_of(row: AnyRow) -> Traffic:
    told: dict[str, Any] = dict(row._mapping)
    durations = tuple(int(told[name]) for name in DURATION_COUNTS)
    first_tokens = tuple(int(told[name]) for name in FIRST_TOKEN_COUNTS)
    sums = {name: int(told[name]) for name in _SUMS}
    return Traffic(group=row.grp, **sums, durations=durations, first_tokens=first_tokens)


def _price_row(row: AnyRow) -> PriceRow:
    price = None if row.rates is None else price_of(str(row.id), row.rates)
    return PriceRow(row.valid_from, row.endpoint_id and str(row.endpoint_id), price)


def _hour_of(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)
