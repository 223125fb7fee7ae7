"""The whole gateway on a Redis Cluster."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from tests.e2e.house import House
from tests.kit.processes import GatewayProcess
from tests.kit.redis_cluster import RedisCluster


async def test_limits_budgets_and_records_hold_on_a_cluster_and_after_its_failover(house: House) -> None:
    """The master that holds all of it is killed, its replica takes over, the gateway is not restarted."""
    with RedisCluster() as cluster:
        env = {**house.env, "REDIS_URL": cluster.url, "REDIS_CLUSTER": "true"}
        async with GatewayProcess(env) as gateway:
            there = replace(house, gateway=gateway, redis_url=cluster.url, env=env)
            limits = [{"kind": "requests", "limit": 50, "window_seconds": 600}]
            key = await there.key(limits=limits, budgets=[{"period": "total", "hard_limit_usd": "1"}])
            model = await there.model()

            first = await there.chat(key, model)
            assert first.status == 200, first.text
            assert first.header("x-ratelimit-remaining-requests") == "49"
            assert (await there.record(first.header("x-request-id") or ""))["outcome"] == "ok"

            assert cluster.holder.ask("WAIT", 1, 5000) == 1
            cluster.holder.kill()
            cluster.replica.ask("CLUSTER", "FAILOVER", "TAKEOVER")
            async with asyncio.timeout(60):
                while (second := await there.chat(key, model)).status != 200:
                    assert second.status == 503, second.text
                    await asyncio.sleep(0.2)
            spent = float(first.header("x-gateway-cost-usd") or 0) + float(second.header("x-gateway-cost-usd") or 0)
            left = float(second.header("x-gateway-budget-remaining-usd") or 0)
            assert abs(1 - spent - left) < 1e-9
            assert (await there.record(second.header("x-request-id") or "", within_s=30))["outcome"] == "ok"
