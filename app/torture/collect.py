"""Reads the evidence: the ledger and its sums from PostgreSQL, the counters from Valkey, after quiet.

The statements are our own on purpose: a second reading of the gateway's tables, not the gateway's reading of them.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final

import asyncpg
import redis.asyncio

from app.torture.chaos import Chaos
from app.torture.clients import Clients
from app.torture.evidence import BudgetCounter, Counters, Evidence, LedgerRow, Rollup
from app.torture.keeper import ROOT
from app.torture.plan import LEASE_S
from app.torture.processes import Gateway
from app.torture.stage import MODELS, Stage

QUIET_WITHIN_S: Final = 45.0
"""After the last answer: leases run out, the reaper comes round, journals are replayed, the stream is drained."""
SETTLED_FOR_S: Final = 2.0
"""Quiet is when nothing has been open for this long: a settlement kept in some process's memory may come late."""
VERIFY_WITHIN_S: Final = 60.0

LEDGER = """
    SELECT request_id::text, client_request_id, extract(epoch FROM created_at)::float8, user_oid, key_id::text, app_id, served_model,
           endpoint_id::text, outcome, usage_quality, prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens, cost_nanousd,
           (detail -> 'attempts' -> 0 ->> 'started_ms')::int,
           (SELECT coalesce(sum((tried ->> 'cost_nanousd')::bigint), 0)::bigint
            FROM jsonb_array_elements(coalesce(detail -> 'attempts', '[]')) AS tried)
    FROM usage_records
"""
REFUSED = "SELECT request_id::text, client_request_id FROM refused_calls"
ROLLUPS = """
    SELECT (extract(epoch FROM hour) / 3600)::bigint::text, user_oid, key_id, app_id, model, endpoint_id,
           requests, errors, prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens, cost_nanousd
    FROM usage_rollups
"""
COUNT = "SELECT (SELECT count(*) FROM usage_records) + (SELECT count(*) FROM refused_calls)"


async def quiet(stage: Stage) -> bool:
    """Wait until nothing is open any more. False when something still is after `QUIET_WITHIN_S`: the judge will name it."""
    deadline_s = time.monotonic() + QUIET_WITHIN_S
    quiet_since_s, rows_before = time.monotonic(), -1
    while time.monotonic() < deadline_s:
        counters, rows = await _counters(stage), await _rows(stage)
        is_open = (
            counters.open_reservations
            or counters.leases
            or counters.undrained_records
            or stage.upstream.in_flight
            or any(map(_waits_in_journals, stage.gateways))
        )
        if is_open or rows != rows_before:
            quiet_since_s, rows_before = time.monotonic(), rows
        elif time.monotonic() - quiet_since_s >= SETTLED_FOR_S:
            return True
        await asyncio.sleep(0.25)
    return False


async def collect(stage: Stage, clients: Clients, chaos: Chaos) -> Evidence:
    """Everything the judge looks at."""
    connection = await asyncpg.connect(stage.postgres.url, timeout=10)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            rows = [LedgerRow(*record) for record in await connection.fetch(LEDGER)]
            refused = [(record[0], record[1]) for record in await connection.fetch(REFUSED)]
            rollups = [Rollup(tuple(record[:6]), tuple(record[6:])) for record in await connection.fetch(ROLLUPS)]
    finally:
        await connection.close()
    return Evidence(
        lease_s=LEASE_S,
        prices=MODELS,
        limits=stage.rules.limits,
        budgets=stage.rules.budgets,
        notes=clients.notes,
        lines=stage.upstream.lines,
        rows=rows,
        refused=refused,
        rollups=rollups,
        counters=await _counters(stage),
        redis_spans=chaos.redis_spans,
        gateway_spans={gateway.number: gateway.spans_down for gateway in stage.gateways},
        gateways_missing={g.number: why for g in stage.gateways if (why := await g.missing(stage.session))},
        gateways_undrained=chaos.undrained,
        gateway_errors=[line for gateway in stage.gateways for line in gateway.errors()],
        ledger_check=await _verify_ledger(stage),
    )


async def _rows(stage: Stage) -> int:
    connection = await asyncpg.connect(stage.postgres.url, timeout=10)
    try:
        count: int = await connection.fetchval(COUNT)
    finally:
        await connection.close()
    return count


async def _counters(stage: Stage) -> Counters:
    client = redis.asyncio.Redis.from_url(stage.valkey.url, socket_timeout=10)
    try:
        slots = [
            (name.removeprefix("{ag}:l:"), call_id)
            async for name in _names(client, "{ag}:l:*:concurrency:*")
            # Entries whose time is over are forgotten at the next admission; they hold nothing.
            for call_id in _texts(await client.zrangebyscore(name, int(time.time() * 1000), "+inf"))
        ]
        budgets = [await _budget(client, name) async for name in _names(client, "{ag}:b:*:total")]
        # What has ended may leave a tombstone under the same name; only what holds claims is open.
        calls = [name async for name in _names(client, "{ag}:call:*")]
        is_open = [bool(await client.hexists(name, "c")) for name in calls]
        return Counters(
            open_reservations=tuple(
                name.removeprefix("{ag}:call:") for name, holds in zip(calls, is_open, strict=True) if holds
            ),
            leases=tuple(_texts(await client.zrange("{ag}:leases", 0, -1))),
            slots=tuple(slots),
            undrained_records=await client.xlen("{ag}:ledger"),
            budgets=tuple(budgets),
        )
    finally:
        await client.aclose()


async def _budget(client: redis.asyncio.Redis, name: str) -> BudgetCounter:
    scope, _, holder = name.removeprefix("{ag}:b:").removesuffix(":total").partition(":")
    spent, reserved = await client.hmget(name, ["s", "r"])
    return BudgetCounter(scope, holder, None if spent is None else int(spent), int(reserved or 0))


def _waits_in_journals(gateway: Gateway) -> bool:
    """Whether a journal holds anything: its process has not replayed it yet, or died and nobody has adopted it."""
    for journal in (gateway.home / "data" / "journal").glob("*.journal"):
        with suppress(FileNotFoundError):  # it was adopted meanwhile
            if journal.stat().st_size:
                return True
    return False


def _texts(members: object) -> list[str]:
    """The members of a sorted set, which the client types as anything at all."""
    return [member.decode() for member in members if isinstance(member, bytes)] if isinstance(members, list) else []


async def _names(client: redis.asyncio.Redis, pattern: str) -> AsyncIterator[str]:
    async for name in client.scan_iter(pattern, count=500):
        yield name.decode()


async def _verify_ledger(stage: Stage) -> str | None:
    """What the operator's own check says of this data; None when it is content."""
    if importlib.util.find_spec("app.services.verify_ledger") is None:
        return None
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app", "verify-ledger"),
        env={**stage.gateways[0].env, "PYTHONPATH": str(ROOT), "DATA_DIR": str(stage.gateways[0].home / "data")},
        cwd=stage.gateways[0].home / "cwd",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(VERIFY_WITHIN_S):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return None if process.returncode == 0 else json.dumps(said.decode("utf-8", "replace")[-2000:])
