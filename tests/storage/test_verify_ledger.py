"""`verify-ledger` on the real stores: books that agree, and every kind of drift by its name."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from rich.console import Console
from sqlalchemy import insert, text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.database import transaction
from app.domain.budget import Budget, BudgetClaim, Need, PeriodKind, period_at
from app.domain.ids import unix_ms_of
from app.domain.limits import Claim, Limit, LimitKind, Scope
from app.domain.money import NanoUsd, PicoUsd
from app.domain.pricing import Price, Rates, Usage, cost_of
from app.domain.record import CallRecord, CostLineDetail, RecordDetail, decode_record, encode_record
from app.models.tables import prices
from app.proofs import as_mapping, journaled, print_proof
from app.redis_client import RedisClient
from app.services.fallback import Entry
from app.services.verify_ledger import Drift, LedgerVerification, Proof, claim_of
from app.storage.journal import frame
from app.storage.ports import Admitted, Reservation, Settlement
from app.storage.redis_counters import RedisCounters, RedisUsageSink
from app.storage.redis_verify import RedisCounterProof
from app.storage.sql_rows import rates_value
from app.storage.sql_usage import SqlUsageStore
from app.storage.sql_verify import SqlLedgerProof
from tests.storage.conform_lost import lost_of
from tests.storage.records import ENDPOINT, KEY_A, NOON, a_record, a_refusal, an_id

ROOT = Path(__file__).parents[2]
PRICE_ID = "0192cccc-0000-7000-8000-000000000001"
PRICE = Price(PRICE_ID, Rates(PicoUsd(2_500_000), PicoUsd(10_000_000), cached_input=PicoUsd(1_250_000)))
HOUR = timedelta(hours=1)
USED = Usage(100, 50, cached_tokens=40)
IN_USE = "user:user-1:monthly:2026-11-01"


def a_bill(at: datetime = NOON, *, usage: Usage = USED, **changes: object) -> CallRecord:
    """A record whose money is right: its cost is its arithmetic, and that its usage at its price."""
    cost = cost_of(usage, PRICE)
    lines = tuple(CostLineDetail(line.what, line.quantity, line.unit_pico) for line in cost.lines)
    fields = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cached_tokens": usage.cached_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "cost_nanousd": cost.nanousd,
        "price_id": PRICE_ID,
        "detail": RecordDetail(arithmetic=lines, usage=usage),
    }
    return a_record(at, **{**fields, **changes})


@pytest.fixture
async def usage(engine: AsyncEngine) -> SqlUsageStore:
    async with transaction(engine) as connection:
        await connection.execute(insert(prices).values(id=PRICE_ID, model="gpt-4", rates=rates_value(PRICE)))
    return SqlUsageStore(engine)


@pytest.fixture
def verify(engine: AsyncEngine, redis: RedisClient) -> Callable[[], Awaitable[Proof]]:
    async def at_once(_seconds: float) -> None:
        """No pause: what is injected here does not go away."""

    def run() -> Awaitable[Proof]:
        proofs = RedisCounterProof(redis)
        return LedgerVerification(SqlLedgerProof(engine), proofs, UTC, lambda _id: None, sleep=at_once).run()

    return run


Verify = Callable[[], Awaitable[Proof]]


async def sql(engine: AsyncEngine, statement: str, **values: object) -> None:
    async with transaction(engine) as connection:
        assert (await connection.execute(text(statement), values)).rowcount == 1


def claims(at: datetime = NOON) -> tuple[BudgetClaim, ...]:
    held = [(Scope.USER, "user-1", PeriodKind.MONTHLY), (Scope.KEY, KEY_A, PeriodKind.TOTAL)]
    hard = NanoUsd(10**12)
    return tuple(
        BudgetClaim(scope, holder, Budget(kind, None, hard), period_at(kind, at, UTC), NanoUsd(0), NanoUsd(7))
        for scope, holder, kind in held
    )


async def admitted(counters: RedisCounters, call_id: str, fixed_nanousd: int = 900_000) -> None:
    """One call that takes a slot and reserves from two budgets."""
    slot = Claim(Scope.KEY, KEY_A, Limit(LimitKind.CONCURRENCY, 100, 0), 1)
    need = Need(NanoUsd(fixed_nanousd), PicoUsd(0), 0, 0, is_elastic=False)
    record = encode_record(lost_of(a_bill(request_id=call_id, created_at_ms=unix_ms_of(call_id))))
    answer = await counters.admit(Reservation(call_id, (slot,), claims(), 60, record, need))
    assert isinstance(answer, Admitted)


async def settled(counters: RedisCounters, record: CallRecord) -> None:
    await admitted(counters, record.request_id)
    await counters.settle(Settlement(record.request_id, NanoUsd(record.cost_nanousd), 150, encode_record(record)))


async def drained(sink: RedisUsageSink, usage: SqlUsageStore, *, limit: int) -> None:
    batch = await sink.pending(limit=limit, wait_s=0.01)
    await usage.write([decode_record(pending.packed) for pending in batch])
    await sink.confirm(batch)


@pytest.fixture
async def books(redis: RedisClient, usage: SqlUsageStore) -> list[CallRecord]:
    """Twenty calls: six in the ledger before the budgets were made, nine drained since, three in the stream, two that run."""
    counters, sink = RedisCounters(redis), RedisUsageSink(redis)
    records = [a_bill(NOON + i % 4 * HOUR) for i in range(18)]
    await usage.write(records[:6])
    for claim in claims():
        await counters.seed(claim, await usage.spent(claim))
    for record in records[6:]:
        await settled(counters, record)
    await drained(sink, usage, limit=9)
    for _ in range(2):
        await admitted(counters, an_id())
    return records


async def test_books_that_agree_are_proved_to(books: list[CallRecord], verify: Verify) -> None:
    proof = await verify()
    assert (proof.drifts, proof.notes, proof.holds) == ([], [], True)
    assert (proof.records, proof.counters, proof.reservations, proof.on_their_way) == (15, 2, 2, 3)
    assert proof.months == ["2026-11"]


async def test_empty_stores_agree(usage: SqlUsageStore, verify: Verify) -> None:
    assert (await verify()).holds


async def test_one_wrong_rollup_one_wrong_cost_and_one_wrong_counter_are_each_named_exactly(
    engine: AsyncEngine, redis: RedisClient, books: list[CallRecord], verify: Verify
) -> None:
    """T126."""
    at_noon, at_one = NOON, NOON + HOUR
    wrong = next(record for record in books[:6] if record.created_at == at_one)
    await sql(engine, "UPDATE usage_rollups SET completion_tokens = completion_tokens + 3 WHERE hour = :at", at=at_noon)
    await sql(
        engine, "UPDATE usage_records SET cost_nanousd = cost_nanousd + 1 WHERE request_id = :id", id=wrong.request_id
    )
    async with redis.bounded() as client:
        await client.hincrby(f"{{ag}}:b:{IN_USE}", "s", 5)

    proof = await verify()

    cost = wrong.cost_nanousd
    of_hour = f"user user-1, key {KEY_A}, model gpt-4, endpoint {ENDPOINT}"
    assert proof.drifts == [
        Drift("rollup", f"2026-11-23T12:00Z, {of_hour}", "completion_tokens", 200, 203),
        Drift("rollup", f"2026-11-23T13:00Z, {of_hour}", "cost_nanousd", 4 * cost + 1, 4 * cost),
        Drift("cost", f"record {wrong.request_id}", "cost_nanousd", cost, cost + 1),
        Drift("budget counter", IN_USE, "spent", 18 * cost, 18 * cost + 5),
    ]
    assert not proof.holds


async def test_a_wrong_latency_count_is_named_and_a_changed_record_is_named_once(
    engine: AsyncEngine, books: list[CallRecord], verify: Verify
) -> None:
    await sql(
        engine,
        "UPDATE endpoint_rollups SET duration_3 = duration_3 + 2, requests = requests + 1 WHERE hour = :at",
        at=NOON,
    )
    drifts = (await verify()).drifts

    assert [(drift.kind, drift.column) for drift in drifts] == [
        ("endpoint rollup", "requests"),
        ("endpoint rollup", "duration_3"),
    ]
    assert all(isinstance(d.found, int) and isinstance(d.expected, int) and d.found > d.expected for d in drifts)


async def test_a_wrong_sum_of_a_day_is_named(engine: AsyncEngine, books: list[CallRecord], verify: Verify) -> None:
    await sql(engine, "UPDATE day_rollups SET cost_nanousd = cost_nanousd + 7, errors = errors + 1")
    drifts = (await verify()).drifts

    assert [(drift.kind, drift.where, drift.column) for drift in drifts] == [
        ("day rollup", f"2026-11-23T00:00Z, user user-1, key {KEY_A}", "errors"),
        ("day rollup", f"2026-11-23T00:00Z, user user-1, key {KEY_A}", "cost_nanousd"),
    ]
    assert all(isinstance(d.found, int) and isinstance(d.expected, int) and d.found > d.expected for d in drifts)


async def test_a_wrong_count_of_refusals_is_named(
    engine: AsyncEngine, usage: SqlUsageStore, books: list[CallRecord], verify: Verify
) -> None:
    await usage.write([a_refusal(NOON, error_code="rate_limit_exceeded", http_status=429) for _ in range(3)])
    assert (await verify()).holds
    await sql(engine, "UPDATE refusal_rollups SET requests = 5")
    assert [(d.kind, d.where, d.expected, d.found) for d in (await verify()).drifts] == [
        ("refusals", "2026-11-23T12:00Z, 429 rate_limit_exceeded", 3, 5)
    ]


async def test_a_rollup_of_nothing_and_a_record_without_rollup_are_drifts(
    engine: AsyncEngine, books: list[CallRecord], verify: Verify
) -> None:
    await sql(engine, "UPDATE usage_rollups SET model = 'other' WHERE hour = :at", at=NOON)
    proof = await verify()
    named = {(drift.column, drift.found == 0 or drift.expected == 0) for drift in proof.drifts}
    assert named == {
        (column, True) for column in ("requests", "prompt_tokens", "completion_tokens", "cached_tokens", "cost_nanousd")
    }
    assert len(proof.drifts) == 10


@pytest.mark.parametrize(
    ("change", "kind", "column"),
    [
        ("prompt_tokens = -1", "negative", "prompt_tokens"),
        ("prompt_tokens = prompt_tokens + 1", "usage", "prompt_tokens"),
        ("reasoning_tokens = 4", "usage", "reasoning_tokens"),
        ("price_id = '0192cccc-0000-7000-8000-00000000dead'", "price", "price_id"),
        ("detail = jsonb_set(detail, '{arithmetic,0,quantity}', '1')", "arithmetic", "detail.arithmetic"),
        ("detail = jsonb_set(detail, '{arithmetic}', '[]')", "arithmetic", "detail.arithmetic"),
        ("detail = jsonb_set(detail, '{usage,prompt_tokens}', '\"many\"')", "explanation", "detail"),
        ("cost_nanousd = 0", "cost", "cost_nanousd"),
    ],
)
async def test_a_row_that_was_changed_is_named(
    engine: AsyncEngine, books: list[CallRecord], verify: Verify, change: str, kind: str, column: str
) -> None:
    changed = books[2]
    await sql(engine, f"UPDATE usage_records SET {change} WHERE request_id = :id", id=changed.request_id)
    proof = await verify()
    about_the_row = [drift for drift in proof.drifts if drift.where == f"record {changed.request_id}"]
    assert (about_the_row[0].kind, about_the_row[0].column) == (kind, column)
    assert {drift.kind for drift in proof.drifts if drift not in about_the_row} <= {"rollup"}


async def test_a_price_whose_history_was_rewritten_shows_at_every_row_that_used_it(
    engine: AsyncEngine, books: list[CallRecord], verify: Verify
) -> None:
    dearer = rates_value(replace(PRICE, rates=replace(PRICE.rates, output=PicoUsd(10_000_001))))
    async with transaction(engine) as connection:
        await connection.execute(prices.update().values(rates=dearer))
    proof = await verify()
    assert {(drift.kind, drift.column) for drift in proof.drifts} == {("price", "cost_nanousd")}
    assert proof.drifts_found == 15


async def test_money_reserved_for_nobody_is_a_drift(
    redis: RedisClient, books: list[CallRecord], verify: Verify
) -> None:
    async with redis.bounded() as client:
        await client.hincrby(f"{{ag}}:b:key:{KEY_A}:total", "r", 11)
    assert (await verify()).drifts == [
        Drift("budget counter", f"key:{KEY_A}:total", "reserved", 1_800_000, 1_800_011),
    ]


async def test_what_nobody_will_give_back_is_named(redis: RedisClient, books: list[CallRecord], verify: Verify) -> None:
    leaked, orphan = an_id(), an_id()
    await admitted(RedisCounters(redis), orphan)
    slots = f"key:{KEY_A}:concurrency:0"
    async with redis.bounded() as client:
        await client.zrem("{ag}:leases", orphan)
        await client.zadd(f"{{ag}}:l:{slots}", {leaked: 9e12})
        await client.xadd("{ag}:ledger", {"r": b"no record"})
    named = {(drift.kind, drift.where, drift.found) for drift in (await verify()).drifts}
    assert named >= {("slot", slots, leaked), ("reservation", orphan, "none")}
    assert [kind for kind, *_ in sorted(named)] == ["reservation", "slot", "stream"]


async def test_a_counter_nobody_can_have_is_named(redis: RedisClient, books: list[CallRecord], verify: Verify) -> None:
    async with redis.bounded() as client:
        await client.hset("{ag}:b:user:someone:fortnightly:2026-11-01", mapping={"s": 1, "r": 0})
        await client.hset("{ag}:b:user:nobody:total", mapping={"s": "much", "r": 0})
    assert [(drift.where, drift.column) for drift in (await verify()).drifts] == [
        ("user:nobody:total", "spent"),
        ("user:someone:fortnightly:2026-11-01", "name"),
    ]


async def test_the_truth_about_a_lost_call_counts_before_it_has_reached_the_ledger(
    redis: RedisClient, usage: SqlUsageStore, verify: Verify
) -> None:
    counters, record = RedisCounters(redis), a_bill()
    for claim in claims():
        await counters.seed(claim, NanoUsd(0))
    await usage.write([lost_of(record, 7)])
    await settled(counters, record)
    assert (await verify()).drifts == []


async def test_months_whose_records_are_gone_are_passed_over_and_said_so(usage: SqlUsageStore, verify: Verify) -> None:
    await usage.write([a_bill(datetime(2026, 7, 5, tzinfo=UTC)), a_bill()])
    await usage.drop_before(datetime(2026, 9, 1, tzinfo=UTC))
    proof = await verify()
    assert (proof.holds, proof.months_skipped, proof.months) == (True, ["2026-07"], ["2026-11"])


async def test_many_pages_are_all_read(usage: SqlUsageStore, verify: Verify) -> None:
    await usage.write([a_bill(NOON + timedelta(seconds=i % 7)) for i in range(4_500)])
    proof = await verify()
    assert (proof.records, proof.drifts) == (4_500, [])


async def test_calls_that_go_on_meanwhile_are_no_drift(
    redis: RedisClient, usage: SqlUsageStore, engine: AsyncEngine
) -> None:
    counters, sink = RedisCounters(redis), RedisUsageSink(redis)
    for claim in claims():
        await counters.seed(claim, NanoUsd(0))
    is_over = False

    async def calls() -> None:
        for _ in range(60):
            await settled(counters, a_bill())
            await drained(sink, usage, limit=3)

    async def proofs() -> list[Proof]:
        verification = LedgerVerification(SqlLedgerProof(engine), RedisCounterProof(redis), UTC, lambda _id: None)
        found = [await verification.run()]
        while not is_over:
            found.append(await verification.run())
        return [*found, await verification.run()]

    proving = asyncio.create_task(proofs())
    await calls()
    is_over = True
    found = await proving
    assert [drift for proof in found for drift in proof.drifts] == []
    assert found[-1].notes == []


@pytest.mark.parametrize("is_booked", [True, False])
async def test_a_record_in_a_journal_may_be_booked_already_or_not_yet(
    engine: AsyncEngine, redis: RedisClient, books: list[CallRecord], tmp_path: Path, is_booked: bool
) -> None:
    record = a_bill()
    entry = Entry(record.request_id, record.cost_nanousd, 1, encode_record(record), (), "", must_book=True)
    (tmp_path / "1.journal").write_bytes(frame(msgspec.msgpack.encode(entry)) + frame(b"torn"[:2]) + b"torn")
    if is_booked:
        async with redis.bounded() as client:
            for claim in claims():
                await client.hincrby(f"{{ag}}:b:{claim.counter}", "s", record.cost_nanousd)

    async def journal() -> list[CallRecord]:
        return journaled(tmp_path)

    proofs = SqlLedgerProof(engine), RedisCounterProof(redis)
    proof = await LedgerVerification(*proofs, UTC, lambda _id: None, journal).run()
    assert (proof.drifts, proof.on_their_way) == ([], 4)


@pytest.mark.parametrize(
    ("name", "scope", "scope_id", "period"),
    [
        ("user:alice:total", Scope.USER, "alice", "total"),
        ("user:a:b:total", Scope.USER, "a:b", "total"),
        ("model:org/m:7b:daily:2026-03-29", Scope.MODEL, "org/m:7b", "daily:2026-03-29"),
        ("app:daily:2026-01-01:weekly:2026-01-05", Scope.APP, "daily:2026-01-01", "weekly:2026-01-05"),
    ],
)
def test_a_counters_name_tells_whose_it_is(name: str, scope: Scope, scope_id: str, period: str) -> None:
    claim = claim_of(name, UTC)
    assert claim is not None
    assert (claim.scope, claim.scope_id, claim.period.name) == (scope, scope_id, period)


@pytest.mark.parametrize(
    "name", ["", "user", "user:x", "team:x:total", "user:x:daily:2026-02-30", "user:x:weekly:2026-01-06"]
)
def test_what_is_no_counters_name_is_nobodys(name: str) -> None:
    assert claim_of(name, UTC) is None


# ── The command ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def command(database: str, redis_url: str, folder: Path, *arguments: str) -> tuple[int, str]:
    """Run it as an operator does: exit status and standard output."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "app", *arguments],
        cwd=folder,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "250",
            "DATABASE_URL": database,
            "REDIS_URL": redis_url,
            "SECRET_KEY": "a-secret-key-for-the-proofs-long-enough-0123",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout


async def test_the_command_says_by_its_status_whether_the_books_agree(
    engine: AsyncEngine, database: str, redis_url: str, books: list[CallRecord], tmp_path: Path
) -> None:
    """T126."""
    status, said = await command(database, redis_url, tmp_path, "verify-ledger")
    assert (status, said.strip().splitlines()[-1]) == (0, "The books agree."), said

    await sql(engine, "UPDATE usage_rollups SET cost_nanousd = cost_nanousd + 1 WHERE hour = :at", at=NOON)
    status, said = await command(database, redis_url, tmp_path, "verify-ledger", "--json")
    found = json.loads(said)
    assert (status, found["ok"], found["drifts_found"]) == (1, False, 1)
    assert found["drifts"][0]["column"] == "cost_nanousd"
    assert found["drifts"][0]["found"] == found["drifts"][0]["expected"] + 1
    status, said = await command(database, redis_url, tmp_path, "verify-ledger")
    assert status == 1
    assert "2026-11-23T12:00Z" in said
    assert "The books do not agree: 1 drifts." in said


async def test_the_command_proves_the_audit_trail(database: str, redis_url: str, tmp_path: Path) -> None:
    status, said = await command(database, redis_url, tmp_path, "verify-audit", "--json")
    assert (status, json.loads(said)) == (0, {"ok": True, "verified": 0, "first_invalid_id": None})


def test_a_drift_of_money_is_shown_in_dollars() -> None:
    proof = Proof(months_skipped=["2025-01"], notes=["A note."], on_their_way=3)
    proof.add([Drift("cost", "record 1", "cost_nanousd", 1, 1_500_000_000), Drift("slot", "s", "call", "open", "[x]")])
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115 - the console's for its life
    print_proof(console, proof)
    said = console.export_text()
    assert "$1.500000000" in said
    assert "[x]" in said
    assert "A note." in said
    assert as_mapping(proof)["drifts_found"] == 2
