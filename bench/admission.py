"""What limits and money cost a call: its reservation and record built, claimed, settled. On a Valkey of its own, by the process's CPU.

Everything between `admitted` and the store is in it: expectations, needs, claims, both records, the fallback, the recovery, the client.
The floor is two bare scripts that do nothing, sent by as many callers at once over the same client.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

from app.clock import SystemClock
from app.domain.budget import Budget, BudgetClaim, PeriodKind
from app.domain.call import Attempt, Call, Estimate, Meter, Quality
from app.domain.catalog import EMPTY, Catalog, Endpoint, Model, ProviderKind
from app.domain.identity import Identity, Key, KeyStatus, PaymentStatus, User
from app.domain.ids import uuid7
from app.domain.limits import Limit, LimitKind
from app.domain.money import NanoUsd, PicoUsd
from app.domain.pricing import Price, Rates, Usage
from app.domain.record import CallContent, CallRecord
from app.embedded import ValkeyServer
from app.redis_client import RedisClient, Script, open_redis
from app.services.admission import Admission
from app.services.estimation import Estimation, NoTokenizer
from app.services.expectations import Expectations
from app.services.fallback import FallbackCounters
from app.services.recovery import RecoveringCounters
from app.storage.journal import Journal
from app.storage.local_counters import LocalCounters
from app.storage.redis_counters import RedisCounters, RedisUsageSink
from bench.measure import Ratio, in_turns

CALLERS = 32
AT_ONCE = 30
"""Calls of each caller until the drainer has passed: some 1,000 in all, what a process answers in a second."""
NOTHING = Script("nothing", "return 1", "e0e1f9fabfc9d4800c877a703b823ac0578ff8db")
ENDPOINT = Endpoint(
    "0192bbbb-0000-7000-8000-000000000001", "m", ProviderKind.OPENAI, "m", "https://upstream.example/v1"
)
PRICE = Price("p1", Rates(input=PicoUsd(2_500_000), output=PicoUsd(10_000_000)))
MODEL = Model("m", endpoints=(ENDPOINT,), price=PRICE)
CATALOG = Catalog.of(1, [MODEL])
BUDGET = Budget(PeriodKind.MONTHLY, NanoUsd(8 * 10**14), NanoUsd(10**15))
LIMITS = (
    Limit(LimitKind.REQUESTS, 10**9, 60),
    Limit(LimitKind.TOKENS, 10**12, 60),
    Limit(LimitKind.CONCURRENCY, 10**6, 0),
)
IDENTITY = Identity(
    User("alice", PaymentStatus.ACTIVE, None, budgets=(BUDGET,)),
    Key(
        "0192aaaa-0000-7000-8000-000000000001",
        KeyStatus.ACTIVE,
        None,
        frozenset({"*"}),
        limits=LIMITS,
        budgets=(BUDGET,),
    ),
)
CALL = Call(
    dialect="chat", model="m", is_stream=False, wants_usage=False, max_tokens=64, choices=1, prompt_bytes=900, images=0,
    body=b"{}", fields={},
)  # fmt: skip
_numbers = count(1)


class Ledger:
    """Nothing was ever spent."""

    async def write(self, records: Sequence[CallRecord]) -> int:
        return len(records)

    async def write_content(self, contents: Sequence[CallContent]) -> None: ...

    async def recorded(self, call_ids: Sequence[str]) -> dict[str, bool]:
        return {}

    async def spent(self, claim: BudgetClaim) -> NanoUsd:
        return NanoUsd(0)


def _meter(now: datetime, started_s: float) -> Meter:
    request_id = uuid7(int(now.timestamp() * 1000), next(_numbers).to_bytes(10, "big"))
    meter = Meter(request_id, None, IDENTITY, CALL, now, started_s)
    meter.estimate = Estimate(230, 64, prompt_bound=900)
    return meter


@asynccontextmanager
async def admissions() -> AsyncIterator[tuple[Admission, RedisClient, RecoveringCounters]]:
    clock = SystemClock()
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as home:
        server = ValkeyServer(Path(home) / "valkey", durable=False, on_progress=lambda _: None)
        server.start()
        redis = open_redis(server.url, timeout_ms=5_000)
        recovering = RecoveringCounters(
            RedisCounters(redis, quarantine_ms=0), sink=RedisUsageSink(redis), ledger=Ledger(), clock=clock
        )
        counters = FallbackCounters(
            recovering,
            local=LocalCounters(lambda: int(clock.monotonic() * 1000)),
            journal=Journal(Path(home) / "journal"),
            clock=clock,
            is_local=True,
        )
        made = Admission(
            counters=counters,
            clock=clock,
            conclude=lambda meter, error: None,
            default_limits=(),
            zone=UTC,
            lease_s=60,
            estimation=Estimation(NoTokenizer()),
            expectations=Expectations(),
            catalog=lambda: EMPTY,
        )
        try:
            async with redis.pumping():
                yield made, redis, recovering
        finally:
            server.stop()


async def admission(*, is_short: bool) -> Ratio:
    """One caller's call after the other, `CALLERS` of them at once: three limits, and a hard budget of the key and of the user."""
    rounds = 1 if is_short else 10
    async with admissions() as (admission, redis, recovering):
        sink = RedisUsageSink(redis)

        async def calls() -> None:
            for _ in range(AT_ONCE):
                meter = _meter(datetime.now(UTC), 0.0)
                async with admission.admitted(MODEL, meter, CATALOG):
                    meter.endpoint = ENDPOINT
                    meter.attempts.append(Attempt(ENDPOINT.id, "openai", 1, "ok", None, 200, 40, 90))
                    meter.usage, meter.quality, meter.finish_reason = Usage(230, 64), Quality.EXACT, "stop"

        async def pings() -> None:
            for _ in range(2 * AT_ONCE):
                await redis.run(NOTHING, ["{ag}:call:x"], [])

        async def called() -> int:
            for _ in range(rounds):
                await asyncio.gather(*(calls() for _ in range(CALLERS)))
                while records := await sink.pending(limit=500, wait_s=0.001):
                    await sink.confirm(records)  # what one process of all does, and the others learn
                await recovering.look()
            return CALLERS * AT_ONCE * rounds

        async def pinged() -> int:
            for _ in range(rounds):
                await asyncio.gather(*(pings() for _ in range(CALLERS)))
            return CALLERS * AT_ONCE * rounds

        cost, floor = await in_turns(called, pinged)
    return Ratio("admission: a call's limits and money, in and out", cost, "two empty scripts", floor)
