"""The counters, the stream and the messages on a real Redis Cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from app.exceptions import CounterStoreAway, SettingsError
from app.redis_client import RedisClient, open_redis
from app.redis_cluster import SLOT
from app.storage.redis_counters import RedisCounters, RedisUsageSink
from app.storage.redis_signals import RedisSignals
from tests.kit.redis_cluster import RedisCluster
from tests.storage.conform_counters import (
    At,
    CountersConformance,
    is_admitted,
    recorded,
    requests,
    reservation,
    settlement,
)

LATE_S = 30.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    with RedisCluster() as running:
        yield running


@pytest.fixture
async def redis(cluster: RedisCluster) -> AsyncIterator[RedisClient]:
    cluster.holder.client.flushall()
    client = open_redis(cluster.url, timeout_ms=5_000, is_cluster=True)
    async with client.pumping():
        yield client


@pytest.fixture
def counters(redis: RedisClient) -> RedisCounters:
    return RedisCounters(redis)


@pytest.fixture
def sink(redis: RedisClient) -> RedisUsageSink:
    return RedisUsageSink(redis)


class TestRedisCountersOfACluster(CountersConformance):
    @pytest.fixture
    def at(self, counters: RedisCounters) -> At:
        def set_clock(now_ms: int) -> None:
            counters.now_ms = now_ms

        return set_clock


async def test_everything_lies_with_the_node_that_holds_the_slot(
    cluster: RedisCluster, counters: RedisCounters
) -> None:
    assert is_admitted(await counters.admit(reservation("a", requests(2))))
    await counters.settle(settlement("a"))

    assert cluster.holder.client.dbsize() >= 2
    assert cluster.other.client.dbsize() == 0


async def test_a_change_is_heard_by_everybody(cluster: RedisCluster, redis: RedisClient) -> None:
    heard: asyncio.Queue[tuple[int, str, str]] = asyncio.Queue()
    listener = open_redis(cluster.url, timeout_ms=5_000, is_cluster=True)

    async with listener.pumping(), asyncio.timeout(LATE_S):
        listening = asyncio.create_task(RedisSignals(listener).listen(lambda *told: heard.put_nowait(told)))
        assert await heard.get() == (0, "", "")
        await RedisSignals(redis).publish(7, "key", "k1")
        assert await heard.get() == (7, "key", "k1")
        listening.cancel()
        await asyncio.wait([listening])


async def _serves_again(counters: RedisCounters, name: str) -> None:
    async with asyncio.timeout(LATE_S):
        for attempt in range(10_000):
            try:
                await counters.epoch()
                if is_admitted(await counters.admit(reservation(f"{name}-{attempt}", requests(100_000)))):
                    return
            except CounterStoreAway:
                pass
            await asyncio.sleep(0.05)


async def test_a_slot_that_moves_is_followed_and_so_is_a_replica_that_takes_over() -> None:
    """A cluster of its own: it is not whole afterwards."""
    with RedisCluster() as cluster:
        client = open_redis(cluster.url, timeout_ms=2_000, is_cluster=True)
        async with client.pumping():
            counters, sink = RedisCounters(client), RedisUsageSink(client)
            assert is_admitted(await counters.admit(reservation("before", requests(100_000))))
            await counters.settle(settlement("before"))
            assert cluster.holder.ask("WAIT", 1, 5000) == 1

            cluster.holder.kill()
            cluster.replica.ask("CLUSTER", "FAILOVER", "TAKEOVER")
            await _serves_again(counters, "promoted")
            assert cluster.replica.ask("ROLE")[0] == b"master"
            assert await recorded(sink) == ["done:before"]

            cluster.replica.client.flushall()
            for node in (cluster.other, cluster.replica):
                node.ask("CLUSTER", "SETSLOT", SLOT, "NODE", cluster.other.id)
            await _serves_again(counters, "moved")
            assert cluster.other.client.dbsize() > 0


async def test_nodes_that_are_all_away_are_an_outage_and_no_crash() -> None:
    client = open_redis("redis://127.0.0.1:1,127.0.0.1:2", timeout_ms=1_000, is_cluster=True)
    async with client.pumping():
        with pytest.raises(CounterStoreAway):
            await RedisCounters(client).admit(reservation("a", requests(1)))
        assert not await client.is_alive()


@pytest.mark.parametrize("url", ["unix:///tmp/x.sock", "redis+sentinel://a/m", "redis://a:6379/3", "redis://a:b"])
def test_an_address_that_is_no_clusters_is_refused_by_name(url: str) -> None:
    with pytest.raises(SettingsError, match="REDIS_URL is not usable"):
        open_redis(url, timeout_ms=100, is_cluster=True)
