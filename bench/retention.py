"""What dropping old months costs those who call meanwhile: `python -m bench.retention --rows 5000000`.

Starts a PostgreSQL, a Valkey and a gateway of its own, writes that many records with their bodies, spread over thirteen months, and calls
steadily. Windows in which nothing is dropped take turns with windows in which month after month goes, by the code and the rules that the
gateway and `python -m app maintain` use, bodies and refusals first, the ledger's records four months later. What is told: how long calls
took in the ones and in the others, the longest wait of anybody for a table's lock, how long a step took, the gateway's memory, the disk.
With `--data FOLDER` the filled database is kept there, and each run works on a copy of it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import asyncpg
import uvloop

from app.database import open_engine
from app.embedded import PostgresServer, ValkeyServer
from app.storage.retention import Retention, keep_partitions
from app.storage.sql_partitions import Month, month_after, month_of
from bench.large import fill, filled_with
from bench.measure import Ratio
from tests.e2e.conftest import environment
from tests.e2e.house import House
from tests.kit.load import Load, percentile
from tests.kit.locks import watched_locks
from tests.kit.processes import GatewayProcess, UpstreamProcess
from tests.kit.scenario import Scenario

DAYS = 395
"""Thirteen months: ten of them go, as with 90 days of retention."""
LOG_DAYS = 90
LEDGER_LONGER_DAYS = 122
"""Four months that the ledger's records outlive what was said in their calls."""
CALLS_PER_SECOND = 80.0
UPSTREAM_MS = 20.0
FOR_EVER = {"LOG_RETENTION_DAYS": "36500", "LEDGER_RETENTION_DAYS": "0"}
"""The gateway's own rule: months are dropped when it is measured, not before."""

ORPHANS = """
SELECT count(*) FROM usage_content AS body
WHERE NOT EXISTS (SELECT 1 FROM usage_records AS call WHERE call.created_at = body.created_at AND call.request_id = body.request_id)
  AND NOT EXISTS (SELECT 1 FROM refused_calls AS call WHERE call.created_at = body.created_at AND call.request_id = body.request_id)
"""
LEFT_OVER = """
SELECT relname FROM pg_class WHERE relkind = 'r' AND relname ~ '_p[0-9]{4}_[0-9]{2}$'
  AND NOT EXISTS (SELECT 1 FROM pg_inherits WHERE inhrelid = pg_class.oid)
"""
SUMS = "SELECT sum(requests)::bigint FROM usage_rollups"
OLDEST = "SELECT min(created_at) FROM {table}"


@dataclass(slots=True)
class Outcome:
    at: datetime
    """Months are counted back from here."""
    quiet_ms: list[float] = field(default_factory=list)
    """What calls took while nothing was dropped."""
    dropping_ms: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    steps_s: list[float] = field(default_factory=list)
    """How long each round of retention took: a month of three tables at most."""
    dropped: list[str] = field(default_factory=list)
    lock_wait_s: float = 0.0
    """The longest that anybody was seen to wait for a table's lock."""
    memory_bytes: list[int] = field(default_factory=list)
    """Of the gateway, at the end of each pair of windows."""
    disk_before_bytes: int = 0
    disk_after_bytes: int = 0
    calls: int = 0
    summed: int = 0
    """Calls that the hourly sums have gained meanwhile: all that were made, and none less for what was dropped."""
    orphans: int = 0
    left_over: list[str] = field(default_factory=list)
    oldest_content: datetime | None = None
    oldest_record: datetime | None = None

    @property
    def ratios(self) -> list[Ratio]:
        promise = "retention: time of a call while months are dropped"
        return [
            Ratio(f"{promise}, p{share}", percentile(self.dropping_ms, share) * 1000, "while none is", quiet_us)
            for share in (50, 99)
            for quiet_us in [percentile(self.quiet_ms, share) * 1000]
        ]

    @property
    def lines(self) -> list[str]:
        return [
            f"{self.calls:,} calls, {len(self.failed)} failed; {self.summed:,} summed",
            f"{len(self.dropped)} partitions dropped, a round p50 {median(self.steps_s):.2f} s, longest {max(self.steps_s):.2f} s",
            f"longest wait for a table's lock {self.lock_wait_s * 1000:.0f} ms",
            f"memory of the gateway {', '.join(f'{each / 1e6:.0f}' for each in self.memory_bytes)} MB",
            f"disk {self.disk_before_bytes / 1e9:.2f} GB before, {self.disk_after_bytes / 1e9:.2f} GB after",
            f"{self.orphans} bodies without a record; tables left over: {', '.join(self.left_over) or 'none'}",
            f"oldest body {self.oldest_content:%Y-%m-%d}, oldest record {self.oldest_record:%Y-%m-%d}",
        ]


def rules(now: datetime, *, days: int = DAYS) -> list[Retention]:
    """One month less with each, down to `LOG_DAYS`; each ledger's rule is the longer one."""
    month, found = month_of(datetime.fromtimestamp(now.timestamp() - days * 86_400, UTC)), []
    while (kept := _days_since(month := month_after(month), now)) >= LOG_DAYS:
        found.append(Retention(log_days=kept, ledger_days=kept + LEDGER_LONGER_DAYS))
    return found


def _days_since(month: Month, now: datetime) -> int:
    return (now - datetime(*month, 1, tzinfo=UTC)).days


async def dropping(
    postgres: PostgresServer, redis_url: str, *, rows: int, rounds: int, window_s: float, rate: float
) -> Outcome:
    env = environment(postgres.url, redis_url) | FOR_EVER
    gateway, upstream = GatewayProcess(env), UpstreamProcess()
    try:
        await asyncio.gather(gateway.start(timeout_s=120), upstream.start())
        if not await filled_with(postgres.url):
            await fill(postgres.url, rows, days=DAYS, has_more=True)
        return await _measured(House(gateway, upstream, postgres.url, redis_url, env), postgres, rounds, window_s, rate)
    finally:
        gateway.destroy()
        upstream.destroy()


async def _measured(house: House, postgres: PostgresServer, rounds: int, window_s: float, rate: float) -> Outcome:
    now = datetime.now(UTC)
    outcome = Outcome(now)
    model, key = await house.model(Scenario(delay_ms=UPSTREAM_MS)), await house.key()
    await house.chat(key, model)
    connection = await asyncpg.connect(postgres.url)
    await connection.execute("CHECKPOINT")
    await _written(connection, model, 1)
    outcome.disk_before_bytes, before = _disk_bytes(postgres.home), await connection.fetchval(SUMS)
    load = Load(house.gateway.port, key, model, per_second=rate)
    load.start()
    await load.until(window_s)  # memory and caches warm
    async with _dropper(postgres.url) as dropper, watched_locks(postgres.url) as waits:
        for steps in _dealt(rules(now), rounds):
            began = len(load.outcomes)
            await load.until(window_s)
            middle = len(load.outcomes)
            await _drop(dropper, steps, outcome, window_s)
            outcome.quiet_ms += [each.took_s * 1000 for each in load.outcomes[began:middle]]
            outcome.dropping_ms += [each.took_s * 1000 for each in load.outcomes[middle:]]
            outcome.memory_bytes.append(house.gateway.rss_bytes())
    outcome.lock_wait_s = waits.longest_s
    answers = await load.stop()
    outcome.calls = len(answers)
    outcome.failed = [f"{each.status} {each.code}" for each in answers if each.status != 200]
    await _written(connection, model, 1 + outcome.calls - len(outcome.failed))
    async with _dropper(postgres.url) as dropper:
        await _drop(dropper, rules(now)[-1:], outcome, 0)  # what was in use all the time
    outcome.summed = await connection.fetchval(SUMS) - before
    outcome.orphans = await connection.fetchval(ORPHANS)
    outcome.left_over = [row["relname"] for row in await connection.fetch(LEFT_OVER)]
    outcome.oldest_content = await connection.fetchval(OLDEST.format(table="usage_content"))
    outcome.oldest_record = await connection.fetchval(OLDEST.format(table="usage_records"))
    await connection.execute("CHECKPOINT")
    await connection.close()
    outcome.disk_after_bytes = _disk_bytes(postgres.home)
    return outcome


def _dealt(rules: Sequence[Retention], rounds: int) -> list[Sequence[Retention]]:
    each = -(-len(rules) // rounds)
    return [rules[first : first + each] for first in range(0, len(rules), each)]


async def _drop(
    dropper: asyncio.subprocess.Process, steps: Sequence[Retention], outcome: Outcome, window_s: float
) -> None:
    """Spread over the window, which is longer when the steps take longer."""
    assert dropper.stdin is not None
    assert dropper.stdout is not None
    for retention in steps:
        dropper.stdin.write(f"{outcome.at.timestamp()} {retention.log_days} {retention.ledger_days}\n".encode())
        took, *dropped = (await dropper.stdout.readline()).decode().split()
        outcome.steps_s.append(float(took))
        outcome.dropped += dropped
        await asyncio.sleep(max(0.0, window_s / len(steps) - float(took)))


@asynccontextmanager
async def _dropper(url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process of its own, as `python -m app maintain` is: what it does is no part of the callers' or the gateway's own work."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.retention", "--drop", url),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        await process.wait()


async def _drop_as_told(url: str) -> None:
    """Each line of standard input is a moment and two rules in days; each of standard output how long it took, and what went."""
    logging.disable()
    engine = open_engine(url.replace("postgresql://", "postgresql+asyncpg://"))
    while line := await asyncio.to_thread(sys.stdin.readline):
        at, log_days, ledger_days = line.split()
        began = time.monotonic()
        with contextlib.redirect_stdout(sys.stderr):  # its log
            retention = Retention(int(log_days), int(ledger_days))
            _, dropped = await keep_partitions(engine, retention, datetime.fromtimestamp(float(at), UTC))
        print(time.monotonic() - began, *dropped, flush=True)
    await engine.dispose()


async def _written(connection: asyncpg.Connection, model: str, calls: int) -> None:
    """Until so many calls have their record. Raises: TimeoutError."""
    async with asyncio.timeout(60):
        while True:
            if (
                await connection.fetchval("SELECT count(*) FROM usage_records WHERE requested_model = $1", model)
                >= calls
            ):
                return
            await asyncio.sleep(0.2)


def _disk_bytes(home: Path) -> int:
    """What the tables take; the log of changes is taken and given back in its own time."""
    done = subprocess.run(
        ["du", "-s", "--block-size=1", *home.glob("*/base")], capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[0])


@contextmanager
def _home(kept: Path | None, rows: int) -> Iterator[Path]:
    """A folder to work in, with the kept database in it."""
    with tempfile.TemporaryDirectory(prefix="bench-retention-", dir=kept) as away:
        if kept is not None:
            filled = kept / f"filled-{rows}"
            if not filled.exists():
                asyncio.run(_filled(filled, rows))
            subprocess.run(["cp", "-a", "--reflink=auto", f"{filled}/.", away], check=True)
        yield Path(away)


async def _filled(home: Path, rows: int) -> None:
    with _stores(home, is_durable=False) as (postgres, valkey):
        gateway = GatewayProcess(environment(postgres.url, valkey.url) | FOR_EVER)
        async with gateway:  # it migrates
            await fill(postgres.url, rows, days=DAYS, has_more=True)


@contextmanager
def _stores(home: Path, *, is_durable: bool) -> Iterator[tuple[PostgresServer, ValkeyServer]]:
    postgres = PostgresServer(home / "postgres", durable=is_durable, on_progress=lambda _: None)
    valkey = ValkeyServer(home / "valkey", durable=False, on_progress=lambda _: None)
    postgres.start()
    valkey.start()
    try:
        yield postgres, valkey
    finally:
        valkey.stop()
        postgres.stop()


def measured(
    rows: int, *, rounds: int = 5, window_s: float = 10.0, rate: float = CALLS_PER_SECOND, kept: Path | None = None
) -> Outcome:
    """Fill, call, drop and tell."""
    with _home(kept, rows) as home, _stores(home, is_durable=True) as (postgres, valkey):
        return uvloop.run(dropping(postgres, valkey.url, rows=rows, rounds=rounds, window_s=window_s, rate=rate))


async def retention(*, is_short: bool) -> Sequence[Ratio]:
    rows, rounds, window_s, rate = (60_000, 2, 2.0, 20.0) if is_short else (5_000_000, 5, 10.0, CALLS_PER_SECOND)
    with _home(None, rows) as home, _stores(home, is_durable=True) as (postgres, valkey):
        outcome = await dropping(postgres, valkey.url, rows=rows, rounds=rounds, window_s=window_s, rate=rate)
    return outcome.ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, help="keep the filled database in this folder, and use what is in it")
    parser.add_argument("--drop", metavar="URL", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.drop:
        asyncio.run(_drop_as_told(asked.drop))
        return
    if asked.data is not None:
        asked.data.mkdir(parents=True, exist_ok=True)
    outcome = measured(asked.rows, rounds=asked.rounds, kept=asked.data)
    for line in (*outcome.ratios, *outcome.lines):
        print(line, flush=True)


if __name__ == "__main__":
    main()
