"""The engine and `transaction()`: what a database that is away, frozen, busy or restarted looks like from outside."""

from __future__ import annotations

import asyncio
import tempfile
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, date
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import SystemClock
from app.database import open_engine, transaction
from app.domain.limits import Scope
from app.embedded import PostgresServer
from app.exceptions import DependencyUnavailable
from app.storage.migrate import migrate
from app.storage.ports import LogFilter
from app.storage.sealing import Sealer
from app.storage.sql_catalog import SqlCatalogStore
from app.storage.sql_identity import SqlKeyStore
from app.storage.sql_reports import SqlReportStore
from app.storage.sql_usage import SqlUsageStore
from app.telemetry import without_statements
from tests.kit.stalls import stalled_s
from tests.storage.conftest import quiet, url_of
from tests.storage.records import KEY_A, NOON, a_claim, a_content, a_record

Work = Callable[[AsyncEngine], Awaitable[object]]


def keys_of(engine: AsyncEngine) -> SqlKeyStore:
    return SqlKeyStore(engine, clock=SystemClock(), zone=UTC)


def catalogs_of(engine: AsyncEngine) -> SqlCatalogStore:
    return SqlCatalogStore(
        engine, sealer=Sealer("a secret key"), fallback_price=lambda _provider, _model, _api_base: None
    )


async def exported(engine: AsyncEngine) -> object:
    return [record async for record in SqlReportStore(engine).export(LogFilter())]


WHAT_CALLS_WAIT_ON: dict[str, Work] = {
    "identity_of_key": lambda e: keys_of(e).identity_of_key(b"digest"),
    "mark_expired": lambda e: keys_of(e).mark_expired("u"),
    "revision": lambda e: catalogs_of(e).revision(),
    "changes_since": lambda e: catalogs_of(e).changes_since(0),
    "spent": lambda e: SqlUsageStore(e).spent(a_claim(Scope.USER, "u")),
}
THE_REST: dict[str, Work] = {
    "mark_used": lambda e: keys_of(e).mark_used([(KEY_A, NOON)]),
    "load": lambda e: catalogs_of(e).load(),
    "write": lambda e: SqlUsageStore(e).write([a_record()]),
    "write_content": lambda e: SqlUsageStore(e).write_content([a_content(a_record())]),
    "log_page": lambda e: SqlReportStore(e).log_page(LogFilter(), limit=1, cursor=None),
    "record": lambda e: SqlReportStore(e).record(a_record().request_id),
    "content": lambda e: SqlReportStore(e).content(a_record().request_id),
    "summary": lambda e: SqlReportStore(e).summary(group_by="day", since=date.min, until=date.max),
    "export": exported,
}
ALL = WHAT_CALLS_WAIT_ON | THE_REST


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server of this module's own, to be stopped and frozen."""
    with tempfile.TemporaryDirectory(prefix="gateway-postgres-") as home:
        server = PostgresServer(Path(home) / "postgres", durable=False, on_progress=quiet)
        asyncio.run(migrate(url_of(server.start(), "postgres"), quiet))
        yield server
        server.resume()
        server.stop()


@pytest.fixture
async def own(server: PostgresServer) -> AsyncIterator[AsyncEngine]:
    """An engine on it, with a connection in its pool that has worked."""
    engine = open_engine(url_of(server.url, "postgres"), pool_size=2)
    await catalogs_of(engine).revision()
    yield engine
    server.resume()
    await engine.dispose()


async def run(engine: AsyncEngine, *statements: str) -> None:
    """All of them in one transaction."""
    async with transaction(engine) as connection:
        for statement in statements:
            await connection.execute(text(statement))


async def refused_after_s(work: Awaitable[object], *, least_s: float = 0.0) -> float:
    began = time.monotonic()
    with pytest.raises(DependencyUnavailable):
        await asyncio.wait_for(work, 20)
    taken_s = time.monotonic() - began
    assert taken_s >= least_s
    return taken_s - stalled_s(began)


@pytest.mark.parametrize("what", ALL)
async def test_a_database_that_is_not_there_is_said_to_be_unavailable_at_once(what: str) -> None:
    nowhere = open_engine("postgresql+asyncpg://gateway@127.0.0.1:1/none")
    assert await refused_after_s(ALL[what](nowhere)) < 1


async def test_a_database_that_refuses_us_is_unavailable_too(postgres_url: str) -> None:
    engine = open_engine(url_of(postgres_url, "there_is_no_such_database"))
    assert await refused_after_s(catalogs_of(engine).revision()) < 2


@pytest.mark.parametrize("what", WHAT_CALLS_WAIT_ON)
async def test_a_frozen_database_is_unavailable_within_two_seconds_for_a_call(
    server: PostgresServer, own: AsyncEngine, what: str
) -> None:
    server.pause()
    assert await refused_after_s(WHAT_CALLS_WAIT_ON[what](own)) < 2.6
    server.resume()
    assert await catalogs_of(own).revision() == 1


async def test_connecting_to_a_frozen_database_is_given_up_within_two_seconds(server: PostgresServer) -> None:
    engine = open_engine(url_of(server.url, "postgres"))
    server.pause()
    try:
        assert await refused_after_s(SqlUsageStore(engine).write([a_record()])) < 3
    finally:
        server.resume()


async def test_a_restarted_database_fails_nobody(server: PostgresServer, own: AsyncEngine) -> None:
    await asyncio.gather(*(catalogs_of(own).revision() for _ in range(4)))
    server.kill()
    assert await refused_after_s(catalogs_of(own).revision()) < 2
    await asyncio.to_thread(server.start)
    assert await asyncio.gather(*(catalogs_of(own).revision() for _ in range(4))) == [1] * 4


async def test_a_statement_cut_short_by_the_server_is_unavailable(engine: AsyncEngine) -> None:
    with pytest.raises(DependencyUnavailable):
        await run(engine, "SET LOCAL statement_timeout = 20", "SELECT pg_sleep(10)")


async def test_a_statement_cancelled_by_an_operator_is_unavailable(engine: AsyncEngine) -> None:
    sleeping = asyncio.create_task(sleep(engine, 9))
    cancel = text("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
    cancelled = False
    async with asyncio.timeout(5):
        while not cancelled:
            async with transaction(engine) as connection:
                cancelled = bool((await connection.execute(cancel)).scalars().all())
    with pytest.raises(DependencyUnavailable):
        await sleeping


async def test_a_lock_that_does_not_come_is_unavailable(engine: AsyncEngine) -> None:
    async with transaction(engine) as holder:
        await holder.execute(text("LOCK TABLE users"))
        with pytest.raises(DependencyUnavailable):
            await run(engine, "SET LOCAL lock_timeout = 20", "SELECT * FROM users")


async def test_a_used_up_pool_is_unavailable_within_two_seconds(own: AsyncEngine) -> None:
    async with transaction(own), transaction(own):
        assert await refused_after_s(catalogs_of(own).revision(), least_s=1.0) < 2.6


async def sleep(engine: AsyncEngine, seconds: float) -> None:
    async with transaction(engine) as connection:
        await connection.execute(text("SELECT 'asleep', pg_sleep(:seconds)"), {"seconds": seconds})


async def test_who_is_cancelled_leaves_no_statement_behind(engine: AsyncEngine) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(sleep(engine, 9), 0.2)
    left = text("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT ''asleep%' AND state = 'active'")
    async with asyncio.timeout(6), transaction(engine) as connection:
        while (await connection.execute(left)).scalar_one():
            await connection.execute(text("SELECT pg_stat_clear_snapshot()"))


async def test_a_frozen_server_does_not_keep_a_cancelled_task_waiting(server: PostgresServer, own: AsyncEngine) -> None:
    sleeping = asyncio.create_task(sleep(own, 30))
    await asyncio.sleep(0.1)  # until it sleeps; if it does not yet, it is cancelled while connecting, which is as good
    server.pause()
    began = time.monotonic()
    sleeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sleeping
    assert time.monotonic() - began - stalled_s(began) < 1
    server.resume()
    assert await catalogs_of(own).revision() == 1


async def test_an_exception_undoes_everything_and_a_normal_end_keeps_it(engine: AsyncEngine) -> None:
    insert = text("INSERT INTO users (oid) VALUES (:oid)")
    async with transaction(engine) as connection:
        await connection.execute(insert, {"oid": "kept"})
    with pytest.raises(IntegrityError):
        await run(engine, "INSERT INTO users (oid) VALUES ('lost')", "INSERT INTO users (oid) VALUES ('kept')")
    async with transaction(engine) as connection:
        assert (await connection.execute(text("SELECT oid FROM users"))).scalars().all() == ["kept"]


async def test_a_broken_constraint_is_the_statements_fault_not_the_databases(engine: AsyncEngine) -> None:
    with pytest.raises(IntegrityError):
        async with transaction(engine) as connection:
            await connection.execute(text("INSERT INTO users (oid, payment_status) VALUES ('u', 'rich')"))


async def test_a_snapshot_can_not_write(engine: AsyncEngine) -> None:
    with pytest.raises(DependencyUnavailable):
        async with transaction(engine, read_only_snapshot=True) as connection:
            await connection.execute(text("INSERT INTO users (oid) VALUES ('u')"))
    async with transaction(engine) as connection:  # and the next user of the connection can
        await connection.execute(text("INSERT INTO users (oid) VALUES ('u')"))


@pytest.mark.parametrize(
    ("statements", "kind"),
    [
        (["INSERT INTO users (oid) VALUES ('canary\n\nof a caller')"] * 2, "UniqueViolationError"),
        (["SELECT *\n  FROM nowhere\n WHERE a[1] = 'canary'\n"], "UndefinedTableError"),
    ],
)
async def test_what_the_log_keeps_of_an_error_quotes_no_statement_and_no_value(
    engine: AsyncEngine, statements: list[str], kind: str
) -> None:
    """T104."""
    with pytest.raises(DBAPIError) as raised:
        await run(engine, *statements)
    told = "".join(traceback.format_exception(raised.value)).rstrip()
    assert "canary" in told

    kept = str(without_statements(None, "error", {"exception": told})["exception"])

    for word in ("canary", "INSERT INTO", "FROM nowhere", "of a caller"):
        assert word not in kept
    assert kind in kept
    assert kept.count("Traceback") == told.count("Traceback"), "where it was is still told"
