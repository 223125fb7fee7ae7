"""Migrations: complete, repeatable, reversible, and run by exactly one of many."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.database import open_engine, transaction
from app.exceptions import DependencyUnavailable
from app.models.tables import SCHEMA_REVISION
from app.storage import migrate as module
from app.storage.migrate import MigrationFailed, difference, downgrade, migrate, schema_state
from app.storage.sql_usage import SqlUsageStore
from tests.storage.conftest import quiet
from tests.storage.records import NOON, a_record, a_refusal

ROOT = Path(__file__).parents[2]


async def tables_in(url: str) -> set[str]:
    engine = open_engine(url)
    try:
        async with transaction(engine) as connection:
            found = await connection.execute(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"))
            return set(found.scalars())
    finally:
        await engine.dispose()


async def test_an_empty_database_becomes_the_declared_schema(empty_database: str) -> None:
    lines: list[str] = []
    assert await migrate(empty_database, lines.append)
    assert await difference(empty_database) == ""
    assert lines == [
        f"Migrating the database from empty to {SCHEMA_REVISION}.",
        f"The database is at {SCHEMA_REVISION}.",
    ]


async def test_a_difference_from_the_declared_schema_is_seen(database: str, engine: AsyncEngine) -> None:
    async with transaction(engine) as connection:
        await connection.execute(text("ALTER TABLE users DROP COLUMN email"))
    assert "email" in await difference(database)


async def test_partitions_are_no_difference(database: str, engine: AsyncEngine) -> None:
    async with transaction(engine) as connection:
        await connection.execute(
            text(
                "CREATE TABLE usage_records_p2026_11 PARTITION OF usage_records "
                "FOR VALUES FROM ('2026-11-01') TO ('2026-12-01')"
            )
        )
    assert await difference(database) == ""


async def test_a_second_run_changes_nothing_and_does_not_import_alembic(database: str) -> None:
    code = (
        "import asyncio, sys\n"
        "from app.storage.migrate import migrate\n"
        "print(asyncio.run(migrate(sys.argv[1], print)), 'alembic' in sys.modules)"
    )
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code, database], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]


async def test_of_three_that_start_at_once_exactly_one_migrates(empty_database: str) -> None:
    lines: list[str] = []
    did = await asyncio.gather(*(migrate(empty_database, lines.append) for _ in range(3)))
    assert sorted(did) == [False, False, True]
    assert lines.count(f"Migrating the database from empty to {SCHEMA_REVISION}.") == 1


async def test_down_leaves_nothing_and_up_again_leaves_all(database: str, engine: AsyncEngine) -> None:
    before = await tables_in(database)
    await downgrade(database, "base")
    assert await tables_in(database) == {"alembic_version"}
    assert await schema_state(engine) is None
    assert await migrate(database, quiet)
    assert await tables_in(database) == before
    assert await schema_state(engine) == SCHEMA_REVISION


async def test_the_alerts_can_be_taken_away_and_brought_back(database: str) -> None:
    before = await tables_in(database)
    await downgrade(database, "0001")
    assert {"budget_alerts", "webhook_deliveries"} <= before - await tables_in(database)
    assert await migrate(database, quiet)
    assert await tables_in(database) == before
    assert await difference(database) == ""


async def test_sums_by_endpoint_are_filled_from_the_ledger_that_was_there(database: str, engine: AsyncEngine) -> None:
    records = [a_record(NOON + timedelta(minutes=m), duration_ms=m * 40 + 1, is_stream=True) for m in range(100)]
    await SqlUsageStore(engine).write(records)
    written = await rows_of(engine, "endpoint_rollups")
    await downgrade(database, "0002")
    assert await migrate(database, quiet)
    assert await rows_of(engine, "endpoint_rollups") == written
    assert len(written) == 2


async def test_sums_by_day_are_filled_from_the_hours_that_were_there(database: str, engine: AsyncEngine) -> None:
    await SqlUsageStore(engine).write([a_record(NOON + timedelta(minutes=m * 20)) for m in range(100)])
    written = await rows_of(engine, "day_rollups")
    await downgrade(database, "0013")
    assert await migrate(database, quiet)
    assert await rows_of(engine, "day_rollups") == written
    assert len(written) == 2


async def test_refusals_are_counted_from_the_log_that_was_there(database: str, engine: AsyncEngine) -> None:
    codes = ("rate_limit_exceeded", "insufficient_quota", None)
    refused = [a_refusal(NOON + timedelta(minutes=m * 20), error_code=codes[m % 3]) for m in range(20)]
    await SqlUsageStore(engine).write(refused)
    written = await rows_of(engine, "refusal_rollups")
    await downgrade(database, "0015")
    assert await migrate(database, quiet)
    assert await rows_of(engine, "refusal_rollups") == written
    assert len(written) == 7 * 3 - 1


async def rows_of(engine: AsyncEngine, table: str) -> list[tuple[object, ...]]:
    async with transaction(engine) as connection:
        return [tuple(row) for row in await connection.execute(text(f"SELECT * FROM {table} ORDER BY 1, 2, 3"))]


async def test_a_newer_database_is_left_alone(database: str, engine: AsyncEngine) -> None:
    async with transaction(engine) as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    assert not await migrate(database, quiet)
    assert await schema_state(engine) == "9999"


async def test_a_migration_that_fails_half_way_leaves_nothing_and_can_be_run_again(empty_database: str) -> None:
    engine = open_engine(empty_database)
    try:
        async with transaction(engine) as connection:
            await connection.execute(text("CREATE TABLE audit_log (mine int)"))  # in the way of one of the last tables
        with pytest.raises(MigrationFailed, match="audit_log") as failed:
            await migrate(empty_database, quiet)
        assert "\n" not in str(failed.value)
        assert await tables_in(empty_database) <= {"audit_log", "alembic_version"}
        async with transaction(engine) as connection:
            await connection.execute(text("DROP TABLE audit_log"))
        assert await migrate(empty_database, quiet)
    finally:
        await engine.dispose()


async def test_a_busy_table_is_waited_for_in_short_turns(
    database: str, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await downgrade(database, "base")
    monkeypatch.setattr(module, "LOCK_TIMEOUT_MS", 50)
    monkeypatch.setattr(module, "REST_S", 0.01)
    busy = asyncio.Event()
    async with engine.connect() as holder:
        await holder.execute(text("LOCK TABLE alembic_version IN SHARE MODE"))
        migrating = asyncio.create_task(migrate(database, lambda line: busy.set() if "busy" in line else None))
        await asyncio.wait_for(busy.wait(), 10)
        await holder.rollback()
    assert await migrating


async def test_a_database_that_is_away_is_named() -> None:
    with pytest.raises(DependencyUnavailable):
        await migrate("postgresql+asyncpg://nobody@127.0.0.1:1/none", quiet)
