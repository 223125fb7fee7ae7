"""PostgreSQL or Redis away: what is known goes on, nothing that is unknown is called wrong, and all is made good afterwards."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis.asyncio

from app.embedded import PostgresServer, ValkeyServer
from tests.e2e.conftest import environment
from tests.e2e.house import House, Json, error_of, request_id_of
from tests.kit import raw_http
from tests.kit.processes import GatewayProcess, UpstreamProcess
from tests.kit.raw_http import RawResponse
from tests.kit.stalls import stalled_s

pytestmark = pytest.mark.timeout(90)

REDIS_TIMEOUT_MS = 1_500
"""Long beside the pauses of a machine that stalls: a Redis that is there is not to seem away."""
REDIS_BOUND_S = 4 * REDIS_TIMEOUT_MS / 1000
"""One round trip may be under way on each connection, then ours, then the refusal's own record."""
DATABASE_BOUND_S = 3.0


class Stores:
    """A PostgreSQL and a Valkey that may be hurt: durable ones, or a kill would lose what they had acknowledged."""

    def __init__(self, home: Path) -> None:
        self.postgres = PostgresServer(home / "postgres", durable=True, on_progress=lambda _: None)
        self.valkey = ValkeyServer(home / "valkey", durable=True, on_progress=lambda _: None)

    def start(self) -> None:
        self.postgres.start()
        self.valkey.start()

    def stop(self) -> None:
        self.postgres.stop()
        self.valkey.stop()


@pytest.fixture(scope="module")
def fragile() -> Iterator[tuple[Stores, House]]:
    with tempfile.TemporaryDirectory(prefix="gw-outage-") as home:
        stores = Stores(Path(home))
        stores.start()
        env = environment(stores.postgres.url, stores.valkey.url) | {
            "REDIS_TIMEOUT_MS": str(REDIS_TIMEOUT_MS),
            "ON_REDIS_DOWN": "refuse",  # what `local` does is told in test_redis_outage.py
        }
        gateway, upstream = GatewayProcess(env, name="fragile"), UpstreamProcess()
        try:
            asyncio.run(_started(gateway, upstream))
            yield stores, House(gateway, upstream, stores.postgres.url, stores.valkey.url, env)
        finally:
            gateway.destroy()
            upstream.destroy()
            stores.stop()


async def _started(gateway: GatewayProcess, upstream: UpstreamProcess) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(gateway.start())
        group.create_task(upstream.start())


@pytest.fixture
def stores(fragile: tuple[Stores, House]) -> Iterator[Stores]:
    """The stores, well again when the test is over."""
    stores, _ = fragile
    yield stores
    stores.start()


@pytest.fixture
async def house(fragile: tuple[Stores, House], stores: Stores) -> House:
    """The gateway on those stores, once it has got over what the test before did to them."""
    _, house = fragile
    await health_until(house, status="ok")
    return house


@pytest.fixture
async def counters(house: House) -> AsyncIterator[redis.asyncio.Redis]:
    client = redis.asyncio.Redis.from_url(house.redis_url, socket_timeout=5)
    yield client
    await client.aclose()


async def health_until(house: House, **wanted: str) -> Json:
    """The health report, once it says what is wanted."""
    health: Json = {}
    async with asyncio.timeout(30):
        while not health.items() >= wanted.items():
            health = json.loads((await raw_http.call(house.gateway.port, "GET", "/health")).body)
            await asyncio.sleep(0.02)
    return health


async def status_of(house: House, path: str) -> int:
    return (await raw_http.call(house.gateway.port, "GET", path)).status


async def timed_chat(house: House, key: str, model: str) -> tuple[RawResponse, float]:
    began = time.monotonic()
    answer = await house.chat(key, model)
    return answer, time.monotonic() - began - stalled_s(began)


# ── PostgreSQL ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["stopped", "killed", "frozen"])
async def test_while_postgresql_is_away_known_keys_work_and_records_wait(
    house: House, stores: Stores, counters: redis.asyncio.Redis, how: str
) -> None:
    """T098."""
    known, unknown, model = await house.key(), await house.key(), await house.model()
    before = request_id_of(await house.chat(known, model))
    await house.record(before)
    match how:
        case "stopped":
            stores.postgres.stop()
        case "killed":
            stores.postgres.kill()
        case _:
            stores.postgres.pause()

    answers = [await timed_chat(house, known, model) for _ in range(5)]
    refused, refused_after_s = await timed_chat(house, unknown, model)
    health = await health_until(house, database="down")

    assert [answer.status for answer, _ in answers] == [200] * 5
    assert max(took_s for _, took_s in answers) < 1.0
    assert (refused.status, error_of(refused)["code"]) == (503, "dependency_unavailable")
    assert refused.header("retry-after")
    assert refused_after_s < DATABASE_BOUND_S
    assert (health["status"], health["redis"]) == ("degraded", "ok")
    assert [await status_of(house, path) for path in ("/health", "/health/live", "/health/ready")] == [200] * 3
    assert await counters.xlen("{ag}:ledger") >= 5
    if how == "frozen":
        stores.postgres.resume()
    else:
        stores.postgres.start()
    for answer, _ in answers:
        record = await house.record(request_id_of(answer), within_s=30)
        assert (record["outcome"], record["cost_usd"] > "0.000000000") == ("ok", True)
    assert (await house.chat(unknown, model)).status == 200
    assert (await health_until(house, database="ok"))["status"] == "ok"


async def test_each_record_reaches_the_ledger_once_and_the_sums_agree(house: House, stores: Stores) -> None:
    """T099: the outage comes while calls are under way, so batches are written, lost in between and written again."""
    key, model = await house.key(), await house.model()
    first = await house.chat(key, model)
    assert first.status == 200
    ids = [request_id_of(first)]

    async def call_on() -> None:
        for _ in range(40):
            answer = await house.chat(key, model)
            assert answer.status == 200
            ids.append(request_id_of(answer))

    async with asyncio.TaskGroup() as group:
        callers = [group.create_task(call_on()) for _ in range(2)]
        while len(ids) < 10:
            await asyncio.sleep(0.005)
        await asyncio.to_thread(stores.postgres.kill)
        await asyncio.gather(*callers)
        await asyncio.to_thread(stores.postgres.start)

    costs = [(await house.record(request_id, within_s=30))["cost_usd"] for request_id in ids]
    assert len(set(ids)) == 81
    assert len(set(costs)) == 1
    summary = await house.admin("GET", "usage/summary?group_by=model", expect=200)
    (row,) = [item for item in summary["items"] if item["model"] == model]
    assert row["requests"] == 81


async def test_no_credential_is_called_wrong_and_no_command_half_done_while_postgresql_is_away(
    house: House, stores: Stores
) -> None:
    unknown_to_all = await house.key()
    user = await house.user()
    stores.postgres.stop()

    listed = await raw_http.call(
        house.gateway.port, "GET", "/v1/models", headers={"Authorization": f"Bearer {unknown_to_all}"}
    )
    written = await raw_http.call(
        house.gateway.port,
        "POST",
        "/admin/api/keys",
        headers={"Authorization": f"Bearer {house.env['ADMIN_TOKEN']}"},
        json_body={"user_oid": user},
    )
    malformed = await house.chat("sk-ag-nonsense", "any")

    assert (listed.status, error_of(listed)["code"]) == (503, "dependency_unavailable")
    assert (written.status, error_of(written)["code"]) == (503, "dependency_unavailable")
    assert malformed.status == 401, "its checksum is wrong: that needs no database"


async def test_a_process_started_while_postgresql_is_away_is_alive_and_heals_by_itself(
    house: House, stores: Stores
) -> None:
    """T099. Until it has its configuration it says "not now", never "no such key" or "no such model"."""
    key, model = await house.key(), await house.model()
    stores.postgres.stop()
    gateway = GatewayProcess(house.env, name="early", ready_path="/health/live")
    early = House(gateway, house.upstream, house.database_url, house.redis_url, house.env)
    async with gateway:
        assert await status_of(early, "/health/ready") == 503
        refused = await early.chat(key, model)
        assert (refused.status, error_of(refused)["code"]) == (503, "dependency_unavailable")

        starting = asyncio.create_task(asyncio.to_thread(stores.postgres.start))
        seen: list[int] = []
        async with asyncio.timeout(40):
            while not seen or seen[-1] != 200:
                seen.append((await early.chat(key, model)).status)
                await asyncio.sleep(0.02)
        await starting

        assert set(seen) <= {200, 503}
        async with asyncio.timeout(20):
            while await status_of(early, "/health/ready") != 200:
                await asyncio.sleep(0.02)


# ── Redis ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_while_redis_is_away_calls_are_refused_in_time_and_served_again_once_it_is_back(
    house: House, stores: Stores, how: str
) -> None:
    key, model = await house.key(), await house.model()
    assert (await house.chat(key, model)).status == 200
    sent_before = (await house.upstream.invoice()).requests_by_model[model]
    if how == "killed":
        stores.valkey.kill()
    else:
        stores.valkey.pause()

    refusals = [await timed_chat(house, key, model) for _ in range(3)]
    health = await health_until(house, redis="down")

    for refused, took_s in refusals:
        assert (refused.status, error_of(refused)["code"]) == (503, "dependency_unavailable")
        assert refused.header("retry-after")
        assert took_s < REDIS_BOUND_S
    assert (await house.upstream.invoice()).requests_by_model[model] == sent_before, "what is not counted is not sent"
    assert (health["status"], health["database"]) == ("down", "ok")
    assert await status_of(house, "/health") == 503
    assert await status_of(house, "/health/live") == 200
    if how == "killed":
        stores.valkey.start()
    else:
        stores.valkey.resume()
    async with asyncio.timeout(20):
        while (await house.chat(key, model)).status != 200:
            await asyncio.sleep(0.02)
    assert (await health_until(house, redis="ok"))["status"] == "ok"
    for refused, _ in refusals:
        record = await house.record(request_id_of(refused), within_s=30)
        assert (record["outcome"], record["http_status"]) == ("refused", 503)


async def test_a_call_that_ends_while_redis_is_away_is_settled_once_it_is_back(house: House, stores: Stores) -> None:
    from tests.kit.scenario import Scenario

    key = await house.key(limits=[{"kind": "concurrency", "limit": 1, "window_seconds": 0}])
    model = await house.model(Scenario(delay_ms=600))
    call = asyncio.create_task(house.chat(key, model))
    while model not in (await house.upstream.invoice()).requests_by_model:
        await asyncio.sleep(0.01)

    stores.valkey.kill()
    answer = await call
    stores.valkey.start()

    assert answer.status == 200
    record = await house.record(request_id_of(answer), within_s=30)
    assert (record["outcome"], record["usage_quality"]) == ("ok", "exact")
    assert (await house.chat(key, model)).status == 200, "its slot is free"
