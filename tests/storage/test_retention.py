"""What was recorded goes when its time is over: by whole months, without stopping those who write."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from time import monotonic

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.database import open_engine, transaction
from app.storage.grants import grant_use
from app.storage.retention import Retention, keep_partitions
from app.storage.sql_partitions import NotTheOwner, ensure_partitions
from app.storage.sql_usage import SqlUsageStore
from tests.kit.stalls import stalled_s
from tests.storage.records import a_record

NOW = datetime(2026, 11, 25, tzinfo=UTC)
OLD = ((2026, 6), (2026, 7), (2026, 8), (2026, 9))


async def tables(engine: AsyncEngine, like: str) -> list[str]:
    async with transaction(engine) as connection:
        found = await connection.execute(
            text("SELECT relname FROM pg_class WHERE relkind = 'r' AND relname LIKE :like ORDER BY relname"),
            {"like": like},
        )
        return list(found.scalars())


async def test_content_and_refusals_go_while_the_ledger_is_kept(engine: AsyncEngine) -> None:
    """T140."""
    await ensure_partitions(engine, OLD)

    made, dropped = await keep_partitions(engine, Retention(log_days=90, ledger_days=0), NOW)

    assert {name[-7:] for name in made} == {"2026_11", "2026_12", "2027_01"}
    assert sorted(dropped) == sorted(
        f"{table}_p2026_{month}" for table in ("refused_calls", "usage_content") for month in ("06", "07")
    )
    assert "usage_records_p2026_06" in await tables(engine, "usage_records_p%")


async def test_the_ledger_goes_by_its_own_longer_rule_and_its_sums_stay(engine: AsyncEngine) -> None:
    """T140."""
    store = SqlUsageStore(engine)
    old = a_record(datetime(2026, 6, 3, 12, tzinfo=UTC))
    await store.write([old])

    await keep_partitions(engine, Retention(log_days=30, ledger_days=120), NOW)

    assert "usage_records_p2026_06" not in await tables(engine, "usage_records_p%")
    async with transaction(engine) as connection:
        kept = (await connection.execute(text("SELECT sum(requests) FROM usage_rollups"))).scalar_one()
    assert kept == 1


async def test_a_partition_that_is_read_all_the_time_stops_writers_for_no_longer_than_a_moment(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T140: whoever writes waits a fifth of a second at most, and the month is left for the next round."""
    monkeypatch.setattr("app.storage.sql_partitions.DROP_REST_S", 0.05)
    await ensure_partitions(engine, [*OLD, (2026, 11)])
    store = SqlUsageStore(engine)
    waits: list[float] = []
    is_over = asyncio.Event()

    async def write() -> None:
        while not is_over.is_set():
            began = monotonic()
            await store.write([a_record(NOW)])
            waits.append(monotonic() - began - stalled_s(began))

    async with asyncio.TaskGroup() as group:
        async with transaction(engine) as reading:
            await reading.execute(text("SELECT count(*) FROM refused_calls"))
            writing = group.create_task(write())
            _, dropped = await keep_partitions(engine, Retention(log_days=90, ledger_days=0), NOW)
            is_over.set()
            await writing
    again = (await keep_partitions(engine, Retention(log_days=90, ledger_days=0), NOW))[1]

    assert not [name for name in dropped if name.startswith("refused_calls")]
    assert [name for name in again if name.startswith("refused_calls")]
    assert waits
    assert max(waits) < 2.0  # a fifth of a second, and what a loaded machine adds


async def test_no_call_is_dropped_before_what_was_said_in_it(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T140: bodies that somebody reads all the time stay for the next round, and so do their records: none is left an orphan."""
    monkeypatch.setattr("app.storage.sql_partitions.DROP_REST_S", 0.05)
    await ensure_partitions(engine, OLD)
    same_for_both = Retention(log_days=90, ledger_days=90)

    async with transaction(engine) as reading:
        await reading.execute(text("SELECT count(*) FROM usage_content_p2026_06"))
        _, dropped = await keep_partitions(engine, same_for_both, NOW)
    again = (await keep_partitions(engine, same_for_both, NOW))[1]

    assert {name for name in dropped if name.startswith("usage_")} == {
        "usage_content_p2026_07",
        "usage_records_p2026_07",
    }
    assert {name for name in again if name.startswith("usage_")} == {"usage_content_p2026_06", "usage_records_p2026_06"}


async def test_what_was_detached_and_not_dropped_is_dropped_the_next_time(engine: AsyncEngine) -> None:
    """A process that dies between the two steps."""
    await ensure_partitions(engine, OLD)
    async with transaction(engine) as connection:
        await connection.execute(text("ALTER TABLE usage_content DETACH PARTITION usage_content_p2026_06"))

    _, dropped = await keep_partitions(engine, Retention(log_days=90, ledger_days=0), NOW)

    assert "usage_content_p2026_06" in dropped
    assert await tables(engine, "usage_content_p2026_06") == []


async def test_the_role_that_serves_can_use_everything_and_rewrite_no_trail(engine: AsyncEngine) -> None:
    """T033, T153: neither owner nor superuser; nothing is changed or removed in the trail of administrators."""
    now = datetime.now(UTC)
    await keep_partitions(engine, Retention(log_days=90, ledger_days=0), now)
    role = "gateway_app_of_a_test"
    async with transaction(engine) as connection:
        await connection.execute(text(f"DROP ROLE IF EXISTS {role}"))
        await connection.execute(text(f"CREATE ROLE {role} LOGIN PASSWORD 'of-a-test'"))
    await grant_use(engine, role)
    served = open_engine(engine.url.set(username=role, password="of-a-test").render_as_string(hide_password=False))
    try:
        await SqlUsageStore(served).write([a_record(now)])
        for statement in (
            "UPDATE audit_log SET actor = 'nobody'",
            "DELETE FROM audit_log",
            "TRUNCATE audit_log",
            "DROP TABLE usage_content",
            "DELETE FROM alembic_version",
            "CREATE TABLE of_my_own (a int)",
        ):
            with pytest.raises(ProgrammingError) as refused:
                async with transaction(served) as connection:
                    await connection.execute(text(statement))
            assert isinstance(refused.value.orig.__cause__, asyncpg.InsufficientPrivilegeError), statement  # type: ignore[union-attr]
        with pytest.raises(NotTheOwner):
            await keep_partitions(served, Retention(log_days=90, ledger_days=0), NOW + timedelta(days=400))
    finally:
        await served.dispose()
        async with transaction(engine) as connection:
            await connection.execute(text(f"DROP OWNED BY {role}"))
            await connection.execute(text(f"DROP ROLE {role}"))


async def test_a_role_whose_name_is_none_is_refused(engine: AsyncEngine) -> None:
    with pytest.raises(ValueError, match="not the name of a role"):
        await grant_use(engine, 'gateway"; DROP TABLE users; --')
