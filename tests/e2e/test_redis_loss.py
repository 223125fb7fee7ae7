"""Redis loses its memory while calls are under way: budgets stay exact, nothing is lost, and it mends itself."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis.asyncio

from app.embedded import PostgresServer, ValkeyServer
from tests.e2e.conftest import environment
from tests.e2e.house import HELLO, House
from tests.kit import raw_http
from tests.kit.invoice import Price
from tests.kit.processes import GatewayFleet, UpstreamProcess
from tests.kit.scenario import Scenario
from tests.kit.stalls import stalled_s

pytestmark = pytest.mark.timeout(120)

PRICE = Price(input_picousd=2_500_000, output_picousd=10_000_000)
HARD_NANOUSD = 30_000_000
CALLERS = 6
BACK_WITHIN_S = 10.0


@dataclass(slots=True)
class Household:
    """Two gateways on stores that may be hurt."""

    fleet: GatewayFleet
    house: House
    postgres: PostgresServer
    valkey: ValkeyServer


@dataclass(slots=True)
class Traffic:
    """Calls without pause until told to stop, on all gateways."""

    statuses: list[tuple[float, int]] = field(default_factory=list)
    is_over: bool = False

    async def run(self, household: Household, key: str, model: str) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(CALLERS):
                group.create_task(self._call_on(household, key, model, number))

    async def _call_on(self, household: Household, key: str, model: str, number: int) -> None:
        while not self.is_over:
            answer = await raw_http.call(
                household.fleet[number % 2].port,
                "POST",
                "/v1/chat/completions",
                headers={"Authorization": f"Bearer {key}"},
                json_body={"model": model, "messages": HELLO, "max_tokens": 8},
            )
            self.statuses.append((time.monotonic(), answer.status))

    def count(self, status: int) -> int:
        return sum(seen == status for _, seen in self.statuses)

    async def until(self, status: int, count: int, *, within_s: float = 30) -> None:
        async with asyncio.timeout(within_s):
            while self.count(status) < count:
                await asyncio.sleep(0.01)


@pytest.fixture(scope="module", params=[False, True], ids=["no log", "log"])
def household(request: pytest.FixtureRequest) -> Iterator[Household]:
    """Without a log of its own Redis restarts empty; with one it restarts without the last second."""
    with tempfile.TemporaryDirectory(prefix="gw-loss-") as home:
        postgres = PostgresServer(Path(home) / "postgres", durable=False, on_progress=lambda _: None)
        valkey = ValkeyServer(Path(home) / "valkey", durable=request.param, on_progress=lambda _: None)
        postgres.start()
        valkey.start()
        env = environment(postgres.url, valkey.url) | {"DATA_DIR": f"{home}/data", "RESERVATION_LEASE_SECONDS": "5"}
        fleet, upstream = GatewayFleet(2, env), UpstreamProcess()
        try:
            asyncio.run(_started(fleet, upstream))
            house = House(fleet[0], upstream, postgres.url, valkey.url, env)
            yield Household(fleet, house, postgres, valkey)
        finally:
            for gateway in fleet.gateways:
                gateway.destroy()
            upstream.destroy()
            valkey.stop()
            postgres.stop()


async def _started(fleet: GatewayFleet, upstream: UpstreamProcess) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(upstream.start())
        for gateway in fleet.gateways:
            group.create_task(gateway.start())


@pytest.fixture
async def counters(household: Household) -> AsyncIterator[redis.asyncio.Redis]:
    client = redis.asyncio.Redis.from_url(household.valkey.url, socket_timeout=5)
    yield client
    await client.aclose()


async def lose(household: Household, counters: redis.asyncio.Redis, how: str) -> None:
    if how == "flushed":
        await counters.flushall()
        return
    await asyncio.to_thread(household.valkey.kill)
    await asyncio.to_thread(household.valkey.start)


@pytest.mark.parametrize("how", ["flushed", "killed", "flushed twice"])
async def test_a_hard_budget_stays_exact_when_redis_forgets_everything(
    household: Household, counters: redis.asyncio.Redis, how: str
) -> None:
    """T096."""
    house = household.house
    model = await house.model(Scenario(delay_ms=60))
    user = await house.user(budgets=[{"period": "total", "hard_limit_usd": "0.03"}])
    key = await house.key(user)
    traffic = Traffic()
    calling = asyncio.create_task(traffic.run(household, key, model))
    await traffic.until(200, 40)

    await lose(household, counters, "flushed" if how == "flushed twice" else how)
    lost_at = time.monotonic()
    if how == "flushed twice":
        await asyncio.sleep(0.7)  # while the first loss is being made good
        await lose(household, counters, "flushed")
    await traffic.until(200, traffic.count(200) + 20, within_s=3 * BACK_WITHIN_S)
    served = (moment for moment, status in traffic.statuses if moment > lost_at + 0.5 and status == 200)
    back_s = next(served, lost_at) - lost_at - stalled_s(lost_at)
    await traffic.until(402, 20, within_s=60)
    traffic.is_over = True
    await calling

    assert back_s < BACK_WITHIN_S
    assert {status for _, status in traffic.statuses} <= {200, 402, 429, 503}
    await assert_exact(household, counters, user, model, answered=traffic.count(200))


async def assert_exact(
    household: Household, counters: redis.asyncio.Redis, user: str, model: str, *, answered: int
) -> None:
    """Ledger, upstream's invoice and counters say the same, within the budget, and nothing is held any more."""
    house = household.house
    invoice = (await house.upstream.settled()).of_model(model)
    due = invoice.cost_nanousd({model: PRICE})
    async with asyncio.timeout(30):
        while (row := await ledger_of(house, model))[0] != len(invoice.lines) or await counters.xlen("{ag}:ledger"):
            await asyncio.sleep(0.05)
        while await counters.zcard("{ag}:leases"):
            await asyncio.sleep(0.05)
    spent, reserved = await counters.hmget(f"{{ag}}:b:user:{user}:total", "s", "r")
    assert row[0] == len(invoice.lines) >= answered
    assert row[1] == due
    assert due <= HARD_NANOUSD, "overspent"
    assert due > HARD_NANOUSD * 8 // 10, "what can be paid for is not refused"
    assert (int(spent or -1), int(reserved or 0)) == (due, 0)


async def ledger_of(house: House, model: str) -> tuple[int, int]:
    """Rows and cost in nanodollars of one model."""
    summary = await house.admin("GET", "usage/summary?group_by=model", expect=200)
    for item in summary["items"]:
        if item["model"] == model:
            whole, _, part = item["cost_usd"].partition(".")
            return item["requests"], int(whole) * 10**9 + int(part.ljust(9, "0"))
    return 0, 0
