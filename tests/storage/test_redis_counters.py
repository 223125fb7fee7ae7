"""The counters on a real Valkey."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest

from app.embedded import ValkeyServer
from app.exceptions import DependencyUnavailable
from app.redis_client import RedisClient, open_redis
from app.storage.redis_counters import RedisCounters, RedisUsageSink
from tests.kit.stalls import stalled_s
from tests.storage.conform_counters import (
    At,
    CountersConformance,
    is_admitted,
    recorded,
    requests,
    reservation,
    settlement,
)


@pytest.fixture
def counters(redis: RedisClient) -> RedisCounters:
    return RedisCounters(redis)


@pytest.fixture
def sink(redis: RedisClient) -> RedisUsageSink:
    return RedisUsageSink(redis)


class TestRedisCounters(CountersConformance):
    @pytest.fixture
    def at(self, counters: RedisCounters) -> At:
        def set_clock(now_ms: int) -> None:
            counters.now_ms = now_ms

        return set_clock


async def test_limits_are_exact_across_processes_that_share_a_server(redis_url: str) -> None:
    replicas = [open_redis(redis_url, timeout_ms=5_000) for _ in range(3)]

    async def admitted(replica: int) -> int:
        async with replicas[replica].pumping():
            counters = RedisCounters(replicas[replica])
            answers = await asyncio.gather(
                *(counters.admit(reservation(f"{replica}-{i}", requests(50))) for i in range(70))
            )
        return sum(map(is_admitted, answers))

    assert sum(await asyncio.gather(*(admitted(replica) for replica in range(3)))) == 50


async def test_a_server_that_forgot_the_scripts_is_taught_them_again(redis: RedisClient) -> None:
    counters = RedisCounters(redis)
    assert is_admitted(await counters.admit(reservation("a", requests(2))))
    await redis.redis.script_flush()

    answers = await asyncio.gather(*(counters.admit(reservation(f"b{i}", requests(2))) for i in range(5)))

    assert sum(map(is_admitted, answers)) == 1


async def test_a_frozen_server_is_noticed_in_time_and_used_again_when_it_thaws(
    valkey: ValkeyServer, redis_url: str
) -> None:
    client = open_redis(redis_url, timeout_ms=500)
    counters = RedisCounters(client)
    async with client.pumping():
        await counters.admit(reservation("warm", requests(10)))
        valkey.pause()
        try:
            began = monotonic()
            with pytest.raises(DependencyUnavailable):
                await counters.admit(reservation("a", requests(10)))
            assert monotonic() - began - stalled_s(began) < 2.0
        finally:
            valkey.resume()
        assert is_admitted(await counters.admit(reservation("b", requests(10))))


async def test_an_absent_server_is_said_to_be_away() -> None:
    client = open_redis("redis://127.0.0.1:1/0", timeout_ms=200)
    async with client.pumping():
        with pytest.raises(DependencyUnavailable):
            await RedisCounters(client).admit(reservation("a", requests(10)))
        assert not await client.is_alive()


async def test_what_was_queued_before_the_close_is_still_sent(redis_url: str) -> None:
    client = open_redis(redis_url, timeout_ms=2_000)
    counters = RedisCounters(client)
    async with client.pumping():
        await counters.admit(reservation("a", requests(10)))
        settling = asyncio.ensure_future(counters.settle(settlement("a")))
        await asyncio.sleep(0)
        settling.cancel()

    again = open_redis(redis_url, timeout_ms=2_000)
    async with again.pumping():
        assert await recorded(RedisUsageSink(again)) == ["done:a"]
