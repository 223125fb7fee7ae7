"""T154: an index of a large table is built beside those who write to it, and an attempt that failed can be repeated."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.database import transaction
from app.storage.concurrent_index import build_index
from app.storage.sql_partitions import ensure_partitions
from app.storage.sql_usage import SqlUsageStore
from tests.storage.records import a_record

NOW = datetime(2026, 11, 25, tzinfo=UTC)
MONTHS = ((2026, 9), (2026, 10), (2026, 11))
NAME, WHAT = "ix_of_a_test", "(cost_nanousd) WHERE cost_nanousd > 7"
VALID = "SELECT indexrelid::regclass::text FROM pg_index WHERE indisvalid AND indexrelid::regclass::text LIKE '%ix_of_a_test' ORDER BY 1"


async def built(engine: AsyncEngine, *, table: str = "usage_records") -> None:
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text("SET statement_timeout = 0"))  # as while migrating
        await connection.run_sync(build_index, NAME, table, WHAT)
        await connection.execute(text("RESET statement_timeout"))


async def valid(engine: AsyncEngine) -> list[str]:
    async with transaction(engine) as connection:
        return list((await connection.execute(text(VALID))).scalars())


@pytest.fixture
async def partitioned(engine: AsyncEngine) -> AsyncEngine:
    await ensure_partitions(engine, MONTHS)
    return engine


EVERYWHERE = [NAME, *(f"usage_records_p{year}_{month:02d}_{NAME}" for year, month in MONTHS)]


async def test_every_partition_has_its_part_and_new_ones_bring_theirs(partitioned: AsyncEngine) -> None:
    await built(partitioned)
    await ensure_partitions(partitioned, [(2026, 12)])

    assert await valid(partitioned) == EVERYWHERE
    async with transaction(partitioned) as connection:
        found = await connection.execute(
            text("SELECT count(*) FROM pg_inherits WHERE inhparent = to_regclass(:i)"), {"i": NAME}
        )
        assert found.scalar_one() == len(MONTHS) + 1


async def test_who_writes_all_the_time_goes_on_while_it_is_built(partitioned: AsyncEngine) -> None:
    """A transaction that has written and stays open would hold up an index that is built in the plain way, and that one all others."""
    store = SqlUsageStore(partitioned)
    async with transaction(partitioned) as open_one:
        await open_one.execute(text("DELETE FROM usage_records_p2026_11"))
        building = asyncio.create_task(built(partitioned))
        async with asyncio.timeout(20):
            while await waiting(partitioned) == 0:
                await asyncio.sleep(0.02)
        await store.write([a_record(NOW)])
        assert not building.done()
    await building

    assert await valid(partitioned) == EVERYWHERE


async def waiting(engine: AsyncEngine) -> int:
    query = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'CREATE INDEX%'")
    async with transaction(engine) as connection:
        return int((await connection.execute(query)).scalar_one())


async def test_what_a_failed_attempt_left_behind_is_mended_by_the_next(partitioned: AsyncEngine) -> None:
    async with transaction(partitioned) as open_one:
        await open_one.execute(text("DELETE FROM usage_records_p2026_10"))
        building = asyncio.create_task(built(partitioned))
        async with asyncio.timeout(20):
            while await waiting(partitioned) == 0:
                await asyncio.sleep(0.02)
        async with transaction(partitioned) as other:
            await other.execute(
                text(
                    "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONC%' AND pid <> pg_backend_pid()"
                )
            )
        with pytest.raises(Exception, match="cancel"):
            await building
    assert await valid(partitioned) != EVERYWHERE

    await built(partitioned)

    assert await valid(partitioned) == EVERYWHERE


async def test_a_table_without_partitions_gets_one_index(engine: AsyncEngine) -> None:
    await built(engine, table="usage_rollups")
    await built(engine, table="usage_rollups")

    assert await valid(engine) == [NAME]


async def test_the_waits_for_locks_of_what_follows_are_bounded_again(partitioned: AsyncEngine) -> None:
    async with partitioned.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        before = (await connection.execute(text("SHOW lock_timeout"))).scalar_one()
        await connection.run_sync(build_index, NAME, "usage_records", WHAT)
        assert (await connection.execute(text("SHOW lock_timeout"))).scalar_one() == before
