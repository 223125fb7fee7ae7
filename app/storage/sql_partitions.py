"""Monthly partitions of the ledger, its bodies and the refusals: made before they are needed, dropped when they are old.

A partition is built beside its table and then attached: that takes a lock which readers and writers do not notice, where
`CREATE TABLE … PARTITION OF` would take one that stops both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime

import asyncpg
from sqlalchemy import Table, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.database import transaction
from app.exceptions import DependencyUnavailable
from app.models.tables import PARTITIONED

ADVISORY_LOCK = 7_235_142_930_413
"""Held while partitions are made or dropped, by one process at a time."""
DDL_LOCK_TIMEOUT_MS = 2_000
DROP_LOCK_TIMEOUT_MS = 200
"""Detaching waits for readers, and every call's record waits behind it: not for long, and then it is tried again."""
DROP_TRIES = 5
DROP_REST_S = 1.0


class NotTheOwner(Exception):
    """This role may use the tables and not change them: partitions are its owner's business (`python -m app maintain`)."""


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


async def drop_partitions_before(
    engine: AsyncEngine, moment: datetime, tables: Sequence[Table] = PARTITIONED, *, but: Collection[Month] = ()
) -> list[str]:
    """Drop the partitions of these tables that end before `moment`, `but` those: all they hold is older. Returns those dropped.

    One that is in use all the time is left for the next round. Raises: NotTheOwner.
    """
    dropped: list[str] = []
    oldest_kept = month_of(moment)
    for table in tables:
        for month in sorted(await months_kept(engine, table) - set(but)):
            name = partition_name(table, month)
            if month < oldest_kept and await _dropped(engine, table, name):
                dropped.append(name)
    return dropped


async def months_kept(engine: AsyncEngine, table: Table) -> set[Month]:
    """The months that have a partition, also one that was detached and not dropped yet; a partition that somebody made by hand under
    another name is left alone."""
    query = text(
        "SELECT relname FROM pg_class WHERE relname ~ :pattern AND relkind = 'r' "
        "AND relnamespace = CAST(current_schema() AS regnamespace)"
    )
    async with transaction(engine) as connection:
        found = await connection.execute(query, {"pattern": rf"^{table.name}_p[0-9]{{4}}_[0-9]{{2}}$"})
        return {(int(name[-7:-3]), int(name[-2:])) for name in found.scalars()}


async def _dropped(engine: AsyncEngine, table: Table, name: str) -> bool:
    """Detach, which stops everybody for an instant, and then drop, which may take as long as it takes to give a disk back."""
    for tries_left in reversed(range(DROP_TRIES)):
        try:
            async with transaction(engine) as connection:
                await _lock(connection, DROP_LOCK_TIMEOUT_MS)
                if await _is_attached(connection, table, name):
                    await _as_owner(connection, f"ALTER TABLE {table.name} DETACH PARTITION {name}")
            async with transaction(engine) as connection:
                await _lock(connection)
                await _as_owner(connection, f"DROP TABLE IF EXISTS {name}")
        except DependencyUnavailable:  # somebody reads it, or the database is away: the next round will tell
            if tries_left:
                await asyncio.sleep(DROP_REST_S)
        else:
            return True
    return False


async def _as_owner(connection: AsyncConnection, statement: str) -> None:
    try:
        await connection.execute(text(statement))
    except ProgrammingError as error:
        if isinstance(error.orig.__cause__ if error.orig else None, asyncpg.InsufficientPrivilegeError):
            raise NotTheOwner from error
        raise


async def _is_attached(connection: AsyncConnection, table: Table, name: str) -> bool:
    query = text(
        "SELECT 1 FROM pg_inherits JOIN pg_class child ON child.oid = inhrelid "
        "WHERE inhparent = to_regclass(:parent) AND child.relname = :name"
    )
    return (await connection.execute(query, {"parent": table.name, "name": name})).scalar() is not None


async def _lock(connection: AsyncConnection, timeout_ms: int = DDL_LOCK_TIMEOUT_MS) -> None:
    await connection.execute(text(f"SET LOCAL lock_timeout = {timeout_ms}"))
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
    await _as_owner(connection, f"CREATE TABLE {name} (LIKE {table.name} INCLUDING DEFAULTS INCLUDING CONSTRAINTS)")
    await _as_owner(
        connection, f"ALTER TABLE {table.name} ATTACH PARTITION {name} FOR VALUES FROM ('{begins}') TO ('{ends}')"
    )
