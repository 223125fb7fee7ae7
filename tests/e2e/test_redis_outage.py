"""Redis away, with ON_REDIS_DOWN=local: calls go on, on this replica's share of each limit, and no record is lost or doubled."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest
import redis.asyncio

from tests.e2e.house import HELLO, error_of, request_id_of
from tests.e2e.site import (
    BACK_WITHIN_S,
    PRICE,
    Site,
    assert_one_record_each,
    health_of,
    hurt,
    is_away,
    mend,
    nanousd,
    standing_site,
    switches,
    well,
)
from tests.kit.processes import GatewayProcess
from tests.kit.raw_http import SseStream, request_bytes
from tests.kit.scenario import Scenario
from tests.kit.stalls import stalled_s

pytestmark = pytest.mark.timeout(120)

OUTAGE_CALLS = int(os.environ.get("OUTAGE_CALLS", "500"))
BOUND_S = 0.3
"""No call takes longer than this because of Redis."""
TIMEOUT_S = 0.1
"""For which one round trip to Redis is waited for."""


@pytest.fixture(scope="module")
def standing() -> Iterator[Site]:
    with standing_site() as site:
        yield site


@pytest.fixture
async def site(standing: Site) -> AsyncIterator[Site]:
    async with well(standing):
        yield standing


@pytest.fixture
async def counters(site: Site) -> AsyncIterator[redis.asyncio.Redis]:
    client = redis.asyncio.Redis.from_url(site.valkey.url, socket_timeout=5)
    yield client
    await client.aclose()


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_calls_go_on_without_delay_while_redis_is_away_and_every_record_arrives_once(
    site: Site, how: str
) -> None:
    """T094, T095, T096."""
    key, model = await site.house.key(), await site.house.model()
    known = await site.known(key, model)
    before, began = [switches(gateway) for gateway in site.fleet.gateways], time.monotonic()
    await hurt(site, how)

    timed = [await site.timed(key, model, number) for number in range(60)]
    health = await health_of(site.fleet[0])
    await mend(site, how)
    after = [switches(gateway) for gateway in site.fleet.gateways]
    pauses = int(stalled_s(began) / TIMEOUT_S)

    answers = [answer for answer, _ in timed]
    assert {answer.status for answer in answers} == {200}
    assert max(took_s for _, took_s in timed) < BOUND_S, "not even the first ones wait"
    assert sorted(took_s for _, took_s in timed)[len(timed) // 2] < TIMEOUT_S
    assert (health["status"], health["redis"]) == ("degraded", "down")
    for (away, back), (away_now, back_now) in zip(before, after, strict=True):
        # In a pause of the machine a Redis that is there seems away too.
        assert 1 <= away_now - away == back_now - back <= 1 + pauses
    for answer in answers:
        record = await site.house.record(request_id_of(answer), within_s=20)
        assert record["outcome"] == "ok"
    await assert_one_record_each(site, model, [*known, *answers])


async def test_each_replica_enforces_its_share_of_a_limit(site: Site) -> None:
    """T094."""
    model = await site.house.model()
    key = await site.house.key(limits=[{"kind": "requests", "limit": 22, "window_seconds": 60}])
    await site.known(key, model)
    await hurt(site, "killed")

    statuses = [[(await site.call(gateway, key, model)).status for _ in range(20)] for gateway in site.fleet.gateways]
    refused = await site.call(site.fleet[0], key, model)

    assert [seen.count(200) for seen in statuses] == [11, 11]
    assert error_of(refused)["code"] == "rate_limit_exceeded"
    assert refused.header("retry-after")


async def test_a_call_under_a_hard_budget_waits_a_moment_and_is_then_refused(site: Site) -> None:
    model = await site.house.model()
    key = await site.house.key(budgets=[{"period": "total", "hard_limit_usd": "5"}])
    await site.known(key, model)
    await hurt(site, "killed")

    refused, took_s = await site.timed(key, model)

    assert (refused.status, error_of(refused)["code"]) == (503, "dependency_unavailable")
    assert refused.header("retry-after")
    assert took_s < 2.0
    await mend(site, "killed")
    async with asyncio.timeout(BACK_WITHIN_S):
        while (await site.call(site.fleet[0], key, model)).status != 200:
            await asyncio.sleep(0.02)


async def test_a_call_that_began_before_the_outage_is_settled_after_it(
    site: Site, counters: redis.asyncio.Redis
) -> None:
    """T096: its slot and its money come back, its cost is booked, once."""
    user = await site.house.user(budgets=[{"period": "total", "hard_limit_usd": "5"}])
    key = await site.house.key(user, limits=[{"kind": "concurrency", "limit": 1, "window_seconds": 0}])
    model = await site.house.model()
    await site.known(key, model)
    await site.is_back()  # had a machine that stalls made it seem away, the one slot could still be taken
    await site.house.upstream.script(by_model={model: Scenario(delay_ms=700)})
    seen = (await site.house.upstream.invoice()).requests_by_model[model]
    async with asyncio.timeout(20):
        call = asyncio.create_task(site.call(site.fleet[0], key, model))
        while (await site.house.upstream.invoice()).requests_by_model[model] == seen:
            if call.done():  # in a pause of the machine Redis seemed away, and a hard budget is not spent on a guess
                assert (await call).status == 503
                call = asyncio.create_task(site.call(site.fleet[0], key, model))
            await asyncio.sleep(0.01)

    await hurt(site, "frozen")
    answer = await call
    await mend(site, "frozen")

    assert answer.status == 200
    record = await site.house.record(request_id_of(answer), within_s=20)
    assert (record["outcome"], record["usage_quality"]) == ("ok", "exact")
    async with asyncio.timeout(20):
        while (again := await site.call(site.fleet[0], key, model)).status == 503:
            await asyncio.sleep(0.02)
    assert again.status == 200, "its slot is free"
    await site.house.record(request_id_of(again), within_s=20)
    due = (await site.house.upstream.settled()).of_model(model).cost_nanousd({model: PRICE})
    state = await counters.hmget(f"{{ag}}:b:user:{user}:total", "s", "r")
    assert state == [str(due).encode(), b"0"]


@pytest.mark.parametrize("how", ["read only", "no permission"])
async def test_a_redis_that_answers_with_errors_is_a_redis_that_is_away(
    site: Site, counters: redis.asyncio.Redis, how: str
) -> None:
    """T097."""
    key, model = await site.house.key(), await site.house.model()
    await site.known(key, model)
    if how == "read only":
        await counters.execute_command("REPLICAOF", "127.0.0.1", "1")  # type: ignore[no-untyped-call]
    else:
        await counters.execute_command("ACL", "SETUSER", "default", "-evalsha", "-eval")  # type: ignore[no-untyped-call]
    try:
        answers = [(await site.timed(key, model, number))[0] for number in range(10)]
        async with asyncio.timeout(20):  # the log is written behind the calls
            while not all(is_away(gateway) for gateway in site.fleet.gateways):
                await asyncio.sleep(0.01)
    finally:
        await counters.execute_command("REPLICAOF", "NO", "ONE")  # type: ignore[no-untyped-call]
        await counters.execute_command("ACL", "SETUSER", "default", "+@all")  # type: ignore[no-untyped-call]
    await site.is_back()

    assert {answer.status for answer in answers} == {200}
    for answer in answers:
        await site.house.record(request_id_of(answer), within_s=20)


@pytest.mark.parametrize("first_back", ["redis", "postgresql"])
async def test_with_both_stores_away_known_keys_are_served_and_all_is_made_good(site: Site, first_back: str) -> None:
    """T098, T099, T105."""
    key, unknown, model = await site.house.key(), await site.house.key(), await site.house.model()
    first = await site.known(key, model)
    await asyncio.to_thread(site.postgres.kill)
    await hurt(site, "killed")

    answers = [(await site.timed(key, model, number))[0] for number in range(30)]
    refused = await site.call(site.fleet[0], unknown, model)
    for store in (site.valkey, site.postgres) if first_back == "redis" else (site.postgres, site.valkey):
        await asyncio.to_thread(store.start)
        answers.append((await site.timed(key, model))[0])
    await site.is_back()

    assert {answer.status for answer in answers} == {200}
    assert (refused.status, error_of(refused)["code"]) == (503, "dependency_unavailable")
    await assert_one_record_each(site, model, [*first, *answers])


async def test_an_outage_of_both_stores_costs_a_bounded_memory_and_is_made_good_in_time(site: Site) -> None:
    """T105: for as long as it lasts; by hand with OUTAGE_CALLS=20000, some five minutes of it. The prompts alone are more than may wait."""
    key, model = await site.house.key(limits=[]), await site.house.model()
    prompt = [{"role": "user", "content": "all work and no play " * 5_000}]
    gateway = site.fleet[0]
    warm = [await site.call(gateway, key, model, messages=prompt) for _ in range(30)]
    assert {answer.status for answer in warm} == {200}
    before_bytes = gateway.rss_bytes()
    await asyncio.to_thread(site.postgres.kill)
    await hurt(site, "killed")

    answers = []
    for _ in range(OUTAGE_CALLS // 10):
        answers += await asyncio.gather(*(site.call(gateway, key, model, messages=prompt) for _ in range(10)))
    grown_bytes = gateway.rss_bytes() - before_bytes
    await asyncio.to_thread(site.postgres.start)
    await asyncio.to_thread(site.valkey.start)
    back_at = time.monotonic()
    await site.is_back()
    await site.house.record(request_id_of(answers[-1]), within_s=30)
    while site.journaled_bytes:
        await asyncio.sleep(0.1)
    recovered_s = time.monotonic() - back_at

    assert {answer.status for answer in answers} == {200}
    assert grown_bytes < 50_000_000
    assert recovered_s < 30
    await assert_one_record_each(site, model, [*warm, *answers])


async def test_the_journal_of_a_process_that_was_killed_is_replayed_by_another(site: Site) -> None:
    """T099, T128."""
    key, model = await site.house.key(), await site.house.model()
    await site.known(key, model)
    extra = GatewayProcess(site.env, name="doomed")
    async with extra:
        known = await site.call(extra, key, model)
        await hurt(site, "killed")
        answers = [await site.call(extra, key, model) for _ in range(20)]
        extra.kill()
    await mend(site, "killed")

    assert {answer.status for answer in (known, *answers)} == {200}
    for answer in (known, *answers):
        record = await site.house.record(request_id_of(answer), within_s=40)
        assert record["outcome"] == "ok"


async def test_a_process_started_while_redis_is_away_serves_and_counts_on_it_once_it_is_there(site: Site) -> None:
    """T094, T099."""
    key, model = await site.house.key(), await site.house.model()
    await site.known(key, model)
    await hurt(site, "killed")
    async with GatewayProcess(site.env, name="early") as early:
        answers = [await site.call(early, key, model) for _ in range(5)]
        await mend(site, "killed")
        async with asyncio.timeout(BACK_WITHIN_S):
            while is_away(early):
                await asyncio.sleep(0.02)
        answers.append(await site.call(early, key, model))

    assert {answer.status for answer in answers} == {200}
    for answer in answers:
        await site.house.record(request_id_of(answer), within_s=20)


async def test_a_process_that_stood_still_past_its_leases_ends_its_calls_and_corrects_what_was_booked(
    site: Site, counters: redis.asyncio.Redis
) -> None:
    user = await site.house.user(budgets=[{"period": "total", "hard_limit_usd": "5"}])
    key = await site.house.key(user)
    model = await site.house.model(Scenario(chunks=400, completion_tokens=400, gap_ms=25))
    request = request_bytes(
        "POST",
        "/v1/chat/completions",
        headers={"Authorization": f"Bearer {key}"},
        json_body={"model": model, "messages": HELLO, "stream": True},
    )
    async with AsyncExitStack() as stack:
        paused = await stack.enter_async_context(
            GatewayProcess(site.env | {"RESERVATION_LEASE_SECONDS": "2", "REDIS_TIMEOUT_MS": "3000"}, name="paused")
        )
        stream = await stack.enter_async_context(SseStream.opened(paused.port, request))
        await stream.take(5)
        request_id = stream.head.header("x-request-id") or ""
        paused.pause()
        lost = await site.house.record(request_id, within_s=30)
        paused.resume()
        events = await stream.rest()
        async with asyncio.timeout(30):
            while (record := await site.house.record(request_id))["error_code"] == "lost":
                await asyncio.sleep(0.05)

    assert lost["outcome"] in ("lost", "interrupted"), "a checkpoint had been written of it, or not yet"
    assert (record["outcome"], record["usage_quality"]) == ("interrupted", "partial")
    assert record["cost_usd"] > lost["cost_usd"] > "0.000000000"
    assert not events[-1].is_done_marker, "it was ended, not finished"
    state = await counters.hmget(f"{{ag}}:b:user:{user}:total", "s", "r")
    assert state == [str(nanousd(record["cost_usd"])).encode(), b"0"]
