"""What SQL does: rows a second of the drainer, and pages of a log of millions. On a PostgreSQL of its own, by the clock on the wall."""

from __future__ import annotations

import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import asyncpg
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from app.database import open_engine
from app.domain.ids import uuid7
from app.domain.pricing import Usage
from app.domain.record import AttemptDetail, BudgetDetail, CallRecord, CostLineDetail, LimitDetail, RecordDetail
from app.embedded import PostgresServer
from app.services.usage_log import BATCH
from app.storage.migrate import migrate
from app.storage.ports import LogFilter
from app.storage.sql_reports import SqlReportStore
from app.storage.sql_usage import SqlUsageStore
from bench.measure import Ratio, Work, in_turns

KEY_ID, ENDPOINT_ID = "0192aaaa-0000-7000-8000-000000000001", "0192bbbb-0000-7000-8000-000000000001"
DETAIL = RecordDetail(
    attempts=(AttemptDetail(ENDPOINT_ID, "openai", 1, "ok", upstream_status=200, first_byte_ms=40, ended_ms=90),),
    limits=tuple(LimitDetail("key", KEY_ID, kind, 100, 60, 1, 99) for kind in ("requests", "tokens", "concurrency")),
    budgets=tuple(BudgetDetail(scope, KEY_ID, "monthly:2026-11-01", 10**12, 10**6, 0, 0) for scope in ("key", "user")),
    arithmetic=(CostLineDetail("input", 230, 2_500), CostLineDetail("output", 64, 10_000)),
    price_source="operator",
    finish_reason="stop",
    usage=Usage(prompt_tokens=230, completion_tokens=64),
)
_numbers = count(1)


@asynccontextmanager
async def database() -> AsyncIterator[tuple[AsyncEngine, asyncpg.Connection]]:
    """Migrated and empty, durable as in production; and a bare connection to the same server."""
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as home:
        server = PostgresServer(Path(home) / "postgres", on_progress=lambda _: None)
        try:
            plain = server.start()
            url = make_url(plain).set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)
            await migrate(url, lambda _: None)
            engine = open_engine(url)
            bare = await asyncpg.connect(plain)
            yield engine, bare
            await bare.close()
            await engine.dispose()
        finally:
            server.stop()


def records(number: int, at: datetime) -> list[CallRecord]:
    """Calls that went well, each a millisecond after the other."""
    return [_record(at + timedelta(milliseconds=position)) for position in range(number)]


def _record(at: datetime) -> CallRecord:
    at_ms = int(at.timestamp() * 1000)
    return CallRecord(
        request_id=uuid7(at_ms, next(_numbers).to_bytes(10, "big")),
        created_at_ms=at_ms,
        client_request_id=None,
        user_oid="alice",
        key_id=KEY_ID,
        app_id=None,
        requested_model="bench",
        served_model="bench",
        endpoint_id=ENDPOINT_ID,
        provider="openai",
        dialect="chat",
        is_stream=False,
        outcome="ok",
        http_status=200,
        error_code=None,
        error_reason=None,
        prompt_tokens=230,
        completion_tokens=64,
        cached_tokens=0,
        reasoning_tokens=0,
        usage_quality="exact",
        cost_nanousd=1_215_000,
        price_id="p1",
        first_token_ms=40,
        duration_ms=90,
        attempts=1,
        detail=DETAIL,
    )


async def drain(*, is_short: bool) -> Ratio:
    """Batches as the drainer writes them: rows, rollups and their indexes, committed. The floor: their bytes by COPY, unindexed."""
    batches = 2 if is_short else 20
    async with database() as (engine, bare):
        store, began = SqlUsageStore(engine), datetime.now(UTC)
        await bare.execute("CREATE TABLE floor (id uuid, at timestamptz, who text, cost int8, detail text)")
        packed = str(DETAIL)

        async def written() -> int:
            for _ in range(batches):
                await store.write(records(BATCH, began))
            return batches * BATCH

        async def copied() -> int:
            for _ in range(batches):
                rows = [(r.request_id, r.created_at, r.user_oid, r.cost_nanousd, packed) for r in records(BATCH, began)]
                await bare.copy_records_to_table("floor", records=rows)
            return batches * BATCH

        cost, floor = await in_turns(written, copied, clock=time.perf_counter)
    return Ratio(f"drainer: one row of a batch of {BATCH} ({1e6 / cost:,.0f}/s)", cost, "COPY into a bare table", floor)


async def reports(*, is_short: bool) -> list[Ratio]:
    """The newest page of one key's log, and a month's sums, in a ledger of millions. The floor: the same in one of a thousand."""
    rows, times = (50_000, 5) if is_short else (3_000_000, 20)
    asked = LogFilter(key_id=KEY_ID)
    now = datetime.now(UTC)
    since, until = now - timedelta(days=31), now + timedelta(days=1)
    async with database() as (small, _), database() as (large, bare):
        for engine in (small, large):
            await SqlUsageStore(engine).write(records(1_000, now))
        await _multiply(bare, rows)

        def page(engine: AsyncEngine) -> Work:
            async def read() -> int:
                for _ in range(times):
                    assert len((await SqlReportStore(engine).log_page(asked, limit=50, cursor=None)).items) == 50
                return times

            return read

        def sums(engine: AsyncEngine) -> Work:
            async def read() -> int:
                for _ in range(times):
                    assert await SqlReportStore(engine).summary(group_by="model", since=since, until=until)
                return times

            return read

        cost, floor, sum_cost, sum_floor = await in_turns(
            page(large), page(small), sums(large), sums(small), clock=time.perf_counter
        )
    return [
        Ratio(f"reports: newest page of a key among {rows:,} rows", cost, "among a thousand", floor),
        Ratio(f"reports: a month's sums over {rows:,} rows", sum_cost, "over a thousand", sum_floor),
    ]


async def _multiply(bare: asyncpg.Connection, rows: int) -> None:
    """Copies of the first thousand rows under new ids, half a second apart into the past within the month's partition.

    Over a connection of its own: the pool's give no statement the minutes that this one takes.
    """
    names: str = await bare.fetchval(_COLUMNS)
    kept = ", ".join(name for name in names.split(",") if name not in ("request_id", "created_at"))
    await bare.execute(
        f"INSERT INTO usage_records (request_id, created_at, {kept}) "
        "SELECT gen_random_uuid(), greatest(date_trunc('month', now()), created_at - n * interval '0.5 second') "
        f"+ random() * interval '1 hour', {kept} FROM usage_records, generate_series(1, {rows // 1000}) AS n"
    )
    await bare.execute("ANALYZE")


_COLUMNS = "SELECT string_agg(column_name, ',') FROM information_schema.columns WHERE table_name = 'usage_records'"
