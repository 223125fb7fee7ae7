"""T133: what moves records, cut short in the middle a hundred times, on the real stores: no row is lost, none is there twice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import SystemClock
from app.database import transaction
from app.domain.identity import LogContent
from app.domain.money import NanoUsd
from app.domain.record import decode_record, encode_record
from app.exceptions import DependencyUnavailable
from app.redis_client import RedisClient
from app.services.usage_log import UsageLog
from app.storage.journal import Journal
from app.storage.ports import LimitRefused, Settlement
from app.storage.redis_counters import RedisCounters, RedisUsageSink
from app.storage.retention import Retention, keep_partitions
from app.storage.sql_reports import SqlReportStore
from app.storage.sql_usage import SqlUsageStore
from tests.services.test_fallback import fallback
from tests.storage.conform_counters import reservation, slots
from tests.storage.conform_usage import ALWAYS, everything
from tests.storage.records import NOON, a_record, a_refusal

CUTS = 100
LONGEST_S = 0.03
"""Longer than a batch takes, so that some are cut at every stage and some get through. As many moments lie between one millisecond and two
as between ten and twenty: so it is on a machine that is many times as quick, too."""


async def cut_short(work: Callable[[], Awaitable[object]]) -> int:
    """Begin it again and again, and cancel it at some moment. Returns how often it was in the middle of something."""
    chance, cut = random.Random(133), 0
    for _ in range(CUTS):
        moment_s = LONGEST_S * 1000 ** -chance.random()
        task = asyncio.ensure_future(work())
        await asyncio.wait([task], timeout=moment_s)
        cut += task.cancel()
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            assert isinstance(error, DependencyUnavailable), "a connection that was cut is no fault of our own"
    return cut


@pytest.fixture
def log(redis: RedisClient, engine: AsyncEngine) -> UsageLog:
    return UsageLog(
        sink=RedisUsageSink(redis),
        store=SqlUsageStore(engine),
        clock=SystemClock(),
        log_content=LogContent.METADATA,
        content_max_bytes=1_000,
    )


async def test_the_drainer(redis: RedisClient, engine: AsyncEngine, log: UsageLog) -> None:
    """T133."""
    sink, reports, sent = RedisUsageSink(redis), SqlReportStore(engine), 0

    async def more_and_drain() -> None:
        nonlocal sent
        for _ in range(5):
            sent += 1
            record = a_record(NOON + timedelta(minutes=sent), cost_nanousd=1_500) if sent % 5 else a_refusal()
            await sink.append(record.request_id, encode_record(record))
        await log.drain_once(wait_s=0.01)

    cut = await cut_short(more_and_drain)
    while await log.drain_once(wait_s=0.01):
        pass

    stored = await everything(reports)
    assert cut > CUTS / 4
    assert await sink.depth() == 0
    # A cancelled append may have arrived or not; nobody was told that it had.
    assert sent - cut <= len(stored) <= sent
    charged = [record for record in stored if not record.is_refusal]
    (sums,) = await reports.summary(group_by="user", **ALWAYS)
    assert (sums.requests, sums.cost_nanousd) == (len(charged), 1_500 * len(charged))


async def test_the_replay_of_a_journal(redis: RedisClient, engine: AsyncEngine, log: UsageLog, tmp_path: Path) -> None:
    """T133."""
    journal = Journal(tmp_path)
    gone = fallback(redis, tmp_path, journal=journal)
    gone._note_away()
    records = [a_record(cost_nanousd=1_500) for _ in range(1000)]
    await asyncio.gather(*(gone.append(record.request_id, encode_record(record)) for record in records))
    journal.close()
    living = fallback(redis, tmp_path / "mine")

    cut = await cut_short(lambda: living.adopt(tmp_path))
    await living.adopt(tmp_path)
    while await log.drain_once(wait_s=0.01):
        pass

    assert cut > 0
    assert journal.size_bytes, "there was something to replay"
    assert len(await everything(SqlReportStore(engine))) == 1000


async def test_the_catching_up_with_a_store_that_is_back(
    redis: RedisClient, engine: AsyncEngine, log: UsageLog, tmp_path: Path
) -> None:
    """T133: of calls that began without it some run, some have ended; however often it is cut short, each is known there once."""
    journal = Journal(tmp_path)
    counters = fallback(redis, tmp_path, journal=journal)
    await counters.watch()
    counters._note_away()
    records = [a_record(cost_nanousd=1_500) for _ in range(300)]
    running = [reservation(f"runs-{n}", slots(100)) for n in range(100)]
    await asyncio.gather(*(counters.admit(each) for each in running))
    await asyncio.gather(*(counters.admit(reservation(record.request_id)) for record in records))
    ended = [Settlement(record.request_id, NanoUsd(1_500), 5, encode_record(record)) for record in records]
    await asyncio.gather(*map(counters.settle, ended))

    cut = await cut_short(counters.watch)
    await counters.watch()
    while await log.drain_once(wait_s=0.01):
        pass

    assert cut > 0
    assert journal.size_bytes == 0
    assert len(await everything(SqlReportStore(engine))) == 300
    assert isinstance(await RedisCounters(redis).admit(reservation("one more", slots(100))), LimitRefused)
    assert await counters.renew([each.call_id for each in running], 60) == []
    journal.close()


async def test_the_writer_of_what_could_not_be_sent(redis: RedisClient, log: UsageLog) -> None:
    """T133."""
    sink = RedisUsageSink(redis)
    records = [a_refusal() for _ in range(2_000)]
    log._unsent.extend((record.request_id, encode_record(record)) for record in records)

    await cut_short(log.send_unsent)
    await log.send_unsent()

    held = await sink.pending(limit=10_000, wait_s=0.01)
    assert {decode_record(each.packed).request_id for each in held} == {record.request_id for record in records}


async def test_retention(engine: AsyncEngine) -> None:
    """T133: a month is made or dropped whole, whenever it is cut short."""
    store = SqlUsageStore(engine)
    old = NOON - timedelta(days=150)
    await store.write([a_record(old), a_record(NOON)])

    await cut_short(lambda: keep_partitions(engine, Retention(30, 60), NOON))
    await keep_partitions(engine, Retention(30, 60), NOON)

    async with transaction(engine) as connection:
        left = (await connection.execute(text("SELECT created_at FROM usage_records"))).scalars().all()
    assert left == [NOON]
    assert await store.write([a_record(NOON + timedelta(days=31))]) == 1
