"""Monthly partitions of the ledger, its bodies and the refusals: made before they are needed, dropped when they are old.

A partition is built beside its table and then attached: that takes a lock which readers and writers do not notice, where
`CREATE TABLE … PARTITION OF` would take one that stops both.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from sqlalchemy import Table, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.database import transaction
from app.models.tables import PARTITIONED

ADVISORY_LOCK = 7_235_142_930_413
"""Held while partitions are made or dropped, by one process at a time."""
DDL_LOCK_TIMEOUT_MS = 2_000
"""Dropping waits for readers, and everybody else waits behind it: not for long, it is tried again an hour later."""

Month = tuple[int, int]


def month_of(moment: datetime) -> Month:
    """The month in UTC, as (year, month)."""
    moment = moment.astimezone(UTC)
    return moment.year, moment.month


def month_after(month: Month) -> Month:
    year, number = month
    return (year + 1, 1) if number == 12 else (year, number + 1)


def partition_name(table: Table, month: Month) -> str:
    return f"{table.name}_p{month[0]:04d}_{month[1]:02d}"


async def ensure_partitions(engine: AsyncEngine, months: Iterable[Month]) -> list[str]:
    """Make the partitions of these months for all partitioned tables, where they are missing. Returns those made."""
    wanted = [(table, month) for month in sorted(set(months)) for table in PARTITIONED]
    async with transaction(engine) as connection:
        if not await _missing(connection, wanted):
            return []
    async with transaction(engine) as connection:
        await _lock(connection)
        missing = await _missing(connection, wanted)
        for table, month in missing:
            await _make(connection, table, month)
    return [partition_name(table, month) for table, month in missing]


async def drop_partitions_before(engine: AsyncEngine, moment: datetime) -> list[str]:
    """Drop the partitions that end before `moment`: all they hold is older. Returns those dropped."""
    dropped: list[str] = []
    oldest_kept = month_of(moment)
    for table in PARTITIONED:
        for name in await _partitions(engine, table):
            if name < partition_name(table, oldest_kept):
                async with transaction(engine) as connection:
                    await _lock(connection)
                    await connection.execute(text(f"DROP TABLE IF EXISTS {name}"))
                dropped.append(name)
    return dropped


async def _lock(connection: AsyncConnection) -> None:
    await connection.execute(text(f"SET LOCAL lock_timeout = {DDL_LOCK_TIMEOUT_MS}"))
    await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": ADVISORY_LOCK})


async def _missing(connection: AsyncConnection, wanted: list[tuple[Table, Month]]) -> list[tuple[Table, Month]]:
    names = [partition_name(table, month) for table, month in wanted]
    # Asked of the catalog, not of to_regclass(): that one answers from a cache which may have missed what another process
    # made while we waited for the lock.
    query = text(
        "SELECT relname FROM pg_class "
        "WHERE relname = ANY(CAST(:names AS text[])) AND relnamespace = CAST(current_schema() AS regnamespace)"
    )
    found = await connection.execute(query, {"names": names})
    there = set(found.scalars())
    return [pair for pair, name in zip(wanted, names, strict=True) if name not in there]


async def _make(connection: AsyncConnection, table: Table, month: Month) -> None:
    # Identifiers and bounds are built from our own tables' names and two integers; DDL takes no parameters.
    name, after = partition_name(table, month), month_after(month)
    begins, ends = (f"{year:04d}-{number:02d}-01 00:00:00+00" for year, number in (month, after))
    await connection.execute(text(f"CREATE TABLE {name} (LIKE {table.name} INCLUDING DEFAULTS INCLUDING CONSTRAINTS)"))
    await connection.execute(
        text(f"ALTER TABLE {table.name} ATTACH PARTITION {name} FOR VALUES FROM ('{begins}') TO ('{ends}')")
    )


async def _partitions(engine: AsyncEngine, table: Table) -> list[str]:
    """The names that sort by time; a partition somebody made by hand under another name is left alone."""
    query = text(
        "SELECT child.relname FROM pg_inherits JOIN pg_class child ON child.oid = inhrelid "
        "WHERE inhparent = to_regclass(:parent) AND child.relname ~ :pattern ORDER BY child.relname"
    )
    async with transaction(engine) as connection:
        found = await connection.execute(
            query, {"parent": table.name, "pattern": rf"^{table.name}_p[0-9]{{4}}_[0-9]{{2}}$"}
        )
        return list(found.scalars())
