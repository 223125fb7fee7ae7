"""`LedgerProof` on PostgreSQL. Sums are made and compared by the database, a few hours at a time, so that no statement runs long
and no snapshot is held; each statement sees ledger and rollups as of one moment."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.database import transaction
from app.domain.budget import BudgetClaim
from app.domain.histogram import BOUNDS_MS
from app.domain.limits import Scope
from app.domain.pricing import Price, Usage
from app.domain.record import AttemptDetail, CostLineDetail
from app.models.tables import DURATION_COUNTS, FIRST_TOKEN_COUNTS, budgets, prices, usage_records
from app.storage.sql_partitions import Month, month_after, month_of
from app.storage.sql_rows import HOLDER_COLUMN, is_uuid, price_of
from app.storage.sql_usage import ENDPOINT_SUMS, NO_ERRORS, ROLLUP_KEY, SUMS, spent_statement
from app.storage.verify_ports import Bill, Booked, RefusalGap, RollupGap, RollupKey, RollupSlice, Standing

SLICE = timedelta(hours=6)
"""A month of a hundred million records has 800,000 in six hours, which are summed well within a statement's time."""
PAGE_ROWS = 2_000
STATEMENT_TIMEOUT_MS = 60_000

_KEYS = ", ".join(ROLLUP_KEY)
_LEDGER_SUMS = ", ".join(
    (
        "count(*) AS requests",
        f"count(*) FILTER (WHERE outcome NOT IN ({', '.join(repr(outcome) for outcome in NO_ERRORS)})) AS errors",
        *(f"sum({name})::bigint AS {name}" for name in SUMS[2:]),
    )
)
_LEDGER_OF = "coalesce(ledger.{0}, 0) AS ledger_{0}"
_ROLLED_OF = "coalesce(rolled.{0}, 0) AS rolled_{0}"
GAPS = f"""
    WITH ledger AS (
        SELECT date_trunc('hour', created_at) AS hour, user_oid, coalesce(key_id::text, '') AS key_id,
               coalesce(app_id, '') AS app_id, served_model AS model, coalesce(endpoint_id::text, '') AS endpoint_id,
               {_LEDGER_SUMS}
        FROM usage_records WHERE created_at >= $1 AND created_at < $2 GROUP BY 1, 2, 3, 4, 5, 6
    ), rolled AS (
        SELECT {_KEYS}, {", ".join(SUMS)} FROM usage_rollups WHERE hour >= $1 AND hour < $2
    )
    SELECT {_KEYS}, {", ".join(_LEDGER_OF.format(name) for name in SUMS)},
           {", ".join(_ROLLED_OF.format(name) for name in SUMS)}
    FROM ledger FULL JOIN rolled USING ({_KEYS})
    WHERE {" OR ".join(f"coalesce(ledger.{name}, 0) <> coalesce(rolled.{name}, 0)" for name in SUMS)}
    ORDER BY {_KEYS}
"""  # noqa: S608 - our own names


def _counted(name: str, column: str, where: str) -> str:
    """A bucket's count, as SQL says it."""
    bucket = int(name.rpartition("_")[2])
    above = f" AND {column} > {BOUNDS_MS[bucket - 1]}" if bucket else ""
    upto = f" AND {column} <= {BOUNDS_MS[bucket]}" if bucket < len(BOUNDS_MS) else ""
    return f"count(*) FILTER (WHERE outcome = 'ok'{where}{above}{upto}) AS {name}"


_COUNTS = ", ".join(
    (
        *(_counted(name, "duration_ms", "") for name in DURATION_COUNTS),
        *(_counted(name, "first_token_ms", " AND is_stream") for name in FIRST_TOKEN_COUNTS),
    )
)
ENDPOINT_GAPS = f"""
    WITH ledger AS (
        SELECT date_trunc('hour', created_at) AS hour, served_model AS model, coalesce(endpoint_id::text, '') AS endpoint_id,
               {_LEDGER_SUMS}, {_COUNTS}
        FROM usage_records WHERE created_at >= $1 AND created_at < $2 GROUP BY 1, 2, 3
    ), rolled AS (
        SELECT * FROM endpoint_rollups WHERE hour >= $1 AND hour < $2
    )
    SELECT hour, model, endpoint_id, {", ".join(_LEDGER_OF.format(name) for name in ENDPOINT_SUMS)},
           {", ".join(_ROLLED_OF.format(name) for name in ENDPOINT_SUMS)}
    FROM ledger FULL JOIN rolled USING (hour, model, endpoint_id)
    WHERE {" OR ".join(f"coalesce(ledger.{name}, 0) <> coalesce(rolled.{name}, 0)" for name in ENDPOINT_SUMS)}
    ORDER BY hour, model, endpoint_id
"""  # noqa: S608 - our own names
DAY_GAPS = f"""
    WITH ledger AS (
        SELECT date_trunc('day', hour, 'UTC') AS hour, user_oid, key_id, app_id,
               {", ".join(f"sum({name})::bigint AS {name}" for name in SUMS)}
        FROM usage_rollups WHERE hour >= $1 AND hour < $2 GROUP BY 1, 2, 3, 4
    ), rolled AS (
        SELECT day AS hour, user_oid, key_id, app_id, {", ".join(SUMS)} FROM day_rollups WHERE day >= $1 AND day < $2
    )
    SELECT hour, user_oid, key_id, app_id, '' AS model, '' AS endpoint_id,
           {", ".join(_LEDGER_OF.format(name) for name in SUMS)}, {", ".join(_ROLLED_OF.format(name) for name in SUMS)}
    FROM ledger FULL JOIN rolled USING (hour, user_oid, key_id, app_id)
    WHERE {" OR ".join(f"coalesce(ledger.{name}, 0) <> coalesce(rolled.{name}, 0)" for name in SUMS)}
    ORDER BY hour, user_oid, key_id, app_id
"""  # noqa: S608 - our own names
REFUSAL_GAPS = """
    WITH refused AS (
        SELECT date_trunc('hour', created_at) AS hour, coalesce(error_code, '') AS error_code, http_status, count(*) AS requests
        FROM refused_calls WHERE created_at >= $1 AND created_at < $2 GROUP BY 1, 2, 3
    ), counted AS (
        SELECT hour, error_code, http_status, requests FROM refusal_rollups WHERE hour >= $1 AND hour < $2
    )
    SELECT hour, error_code, http_status,
           coalesce(refused.requests, 0) AS in_log, coalesce(counted.requests, 0) AS in_rollups
    FROM refused FULL JOIN counted USING (hour, error_code, http_status)
    WHERE coalesce(refused.requests, 0) <> coalesce(counted.requests, 0)
    ORDER BY hour, error_code, http_status
"""
BILLS = f"""
    SELECT created_at, request_id, outcome, price_id, cost_nanousd, prompt_tokens, completion_tokens, cached_tokens,
           reasoning_tokens, (detail->'usage')::text AS usage, (detail->'arithmetic')::text AS lines,
           CASE WHEN attempts > 0 THEN (detail->'attempts')::text END AS tries
    FROM usage_records
    WHERE created_at >= $1 AND created_at < $2 AND (created_at, request_id) > ($1, $3::uuid)
    ORDER BY created_at, request_id LIMIT {PAGE_ROWS}
"""  # noqa: S608 - our own numbers
BOOKED = (
    "SELECT request_id, cost_nanousd, coalesce(error_code = 'lost' AND outcome IN ('lost', 'interrupted'), false) AS is_lost "
    "FROM usage_records WHERE request_id = ANY($1::uuid[])"
)
_MONTHS_KEPT = text(
    "SELECT child.relname FROM pg_inherits JOIN pg_class child ON child.oid = inhrelid "
    "WHERE inhparent = to_regclass('usage_records') ORDER BY child.relname"
)
_MONTHS_SUMMED = text("SELECT DISTINCT date_trunc('month', hour) AS month FROM usage_rollups ORDER BY month")
_ROWS = text(
    "SELECT coalesce(sum(greatest(child.reltuples, 0)), 0) FROM pg_inherits JOIN pg_class child ON child.oid = inhrelid "
    "WHERE inhparent = to_regclass('usage_records')"
)
NO_ID = "00000000-0000-0000-0000-000000000000"

_usage = msgspec.json.Decoder(Usage | None)
_lines = msgspec.json.Decoder(tuple[CostLineDetail, ...])
_attempts = msgspec.json.Decoder(tuple[AttemptDetail, ...])


class SqlLedgerProof:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def months(self) -> list[Month]:
        async with transaction(self._engine) as connection:
            names = (await connection.execute(_MONTHS_KEPT)).scalars()
            return [month for name in names if (month := _month_in(name)) is not None]

    async def months_dropped(self) -> list[Month]:
        kept = set(await self.months())
        async with transaction(self._engine) as connection:
            summed = [month_of(moment) for moment in (await connection.execute(_MONTHS_SUMMED)).scalars()]
        return [month for month in summed if month not in kept]

    async def rows(self) -> int:
        async with transaction(self._engine) as connection:
            return int((await connection.execute(_ROWS)).scalar_one())

    async def rollup_gaps(self, month: Month) -> AsyncIterator[RollupSlice]:
        start, end = _bounds(month)
        while start < end:
            until = min(start + SLICE, end)
            async with transaction(self._engine) as connection:
                await _allow_time(connection)
                rows = (await connection.exec_driver_sql(GAPS, (start, until))).mappings().all()
                others = (await connection.exec_driver_sql(ENDPOINT_GAPS, (start, until))).mappings().all()
                refusals = (await connection.exec_driver_sql(REFUSAL_GAPS, (start, until))).mappings().all()
                ends_a_day = until.hour == 0
                day = (until - timedelta(days=1), until)
                of_day = (await connection.exec_driver_sql(DAY_GAPS, day)).mappings().all() if ends_a_day else []
            gaps, endpoint_gaps = [_gap(dict(row)) for row in rows], [_endpoint_gap(dict(row)) for row in others]
            yield RollupSlice(
                until - timedelta(microseconds=1),
                gaps,
                endpoint_gaps,
                [_gap(dict(row)) for row in of_day],
                [RefusalGap(**dict(row)) for row in refusals],
            )
            start = until

    async def bills(self, month: Month) -> AsyncIterator[Sequence[Bill]]:
        place, end = _bounds(month)
        after = NO_ID
        while True:
            async with transaction(self._engine) as connection:
                await _allow_time(connection)
                rows = (await connection.exec_driver_sql(BILLS, (place, end, after))).mappings().all()
            if rows:
                yield [_bill(dict(row)) for row in rows]
            if len(rows) < PAGE_ROWS:
                return
            place, after = rows[-1]["created_at"], str(rows[-1]["request_id"])

    async def price(self, price_id: str) -> Price | None:
        if not is_uuid(price_id):
            return None
        async with transaction(self._engine) as connection:
            rates = (await connection.execute(select(prices.c.rates).where(prices.c.id == price_id))).scalar()
        return None if rates is None else price_of(price_id, rates)

    async def budgets_opened(self) -> dict[str, int]:
        async with transaction(self._engine) as connection:
            rows = (await connection.execute(select(budgets))).mappings().all()
        return {
            f"{scope}:{row[column]}:{row['period']}": row["opened_ms"]
            for row in rows
            for scope, column in HOLDER_COLUMN.items()
            if row[column] is not None
        }

    async def standing(self, claims: Sequence[BudgetClaim], call_ids: Collection[str]) -> Standing:
        async with transaction(self._engine, read_only_snapshot=True) as connection:
            spent = [await _spent(connection, claim) for claim in claims]
            ids = [call_id for call_id in call_ids if is_uuid(call_id)]
            rows = (await connection.exec_driver_sql(BOOKED, (ids,))).mappings().all() if ids else []
        booked = {str(row["request_id"]): Booked(row["cost_nanousd"], row["is_lost"]) for row in rows}
        return Standing(spent, booked)


async def _spent(connection: AsyncConnection, claim: BudgetClaim) -> int:
    if claim.scope is Scope.KEY and not is_uuid(claim.scope_id):
        return 0
    return int((await connection.execute(spent_statement(claim))).scalar_one())


async def _allow_time(connection: AsyncConnection) -> None:
    """Nobody waits for this one; it may take longer than what serves calls."""
    await connection.execute(text(f"SET LOCAL statement_timeout = {STATEMENT_TIMEOUT_MS}"))


def _bounds(month: Month) -> tuple[datetime, datetime]:
    begins, ends = (datetime(year, number, 1, tzinfo=UTC) for year, number in (month, month_after(month)))
    return begins, ends


def _month_in(partition: str) -> Month | None:
    year, _, number = partition.removeprefix(f"{usage_records.name}_p").partition("_")
    return (int(year), int(number)) if year.isdecimal() and number.isdecimal() else None


def _gap(row: dict[str, Any]) -> RollupGap:
    return RollupGap(
        key=RollupKey(**{name: row[name] for name in ROLLUP_KEY}),
        in_ledger={name: int(row[f"ledger_{name}"]) for name in SUMS},
        in_rollups={name: int(row[f"rolled_{name}"]) for name in SUMS},
    )


def _endpoint_gap(row: dict[str, Any]) -> RollupGap:
    return RollupGap(
        key=RollupKey(row["hour"], "", "", "", row["model"], row["endpoint_id"]),
        in_ledger={name: int(row[f"ledger_{name}"]) for name in ENDPOINT_SUMS},
        in_rollups={name: int(row[f"rolled_{name}"]) for name in ENDPOINT_SUMS},
    )


def _bill(row: dict[str, Any]) -> Bill:
    usage, lines, tries = row.pop("usage"), row.pop("lines"), row.pop("tries")
    del row["created_at"]
    try:
        shown, used = _lines.decode(lines or "[]"), _usage.decode(usage or "null")
        attempts = _attempts.decode(tries or "[]")
    except msgspec.DecodeError:
        shown, used, attempts = None, None, ()
    return Bill(**{**row, "request_id": str(row["request_id"])}, usage=used, lines=shown, attempts=attempts)
