"""Several processes, their ends and their beginnings."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from tests.e2e.house import ADMIN_TOKEN, HELLO, House, request_id_of
from tests.kit import raw_http
from tests.kit.processes import GatewayFleet, GatewayProcess
from tests.kit.raw_http import SseStream, request_bytes
from tests.kit.scenario import Scenario
from tests.kit.stalls import stalled_s

WITHIN_S = 1.0
BUSY_S = 1.0
"""What a machine with more work than cores may add; `bench.revocation` measures the promise itself."""


@pytest.fixture
async def second(house: House) -> AsyncIterator[GatewayProcess]:
    async with GatewayProcess(house.env, name="second") as gateway:
        yield gateway


async def chat(gateway: GatewayProcess, key: str, model: str, **fields: object) -> raw_http.RawResponse:
    return await raw_http.call(
        gateway.port,
        "POST",
        "/v1/chat/completions",
        headers={"Authorization": f"Bearer {key}"},
        json_body={"model": model, "messages": HELLO, **fields},
    )


def stream_request(key: str, model: str) -> bytes:
    return request_bytes(
        "POST",
        "/v1/chat/completions",
        headers={"Authorization": f"Bearer {key}"},
        json_body={"model": model, "messages": HELLO, "stream": True},
    )


async def test_a_change_made_at_one_process_holds_at_the_others_within_a_second(
    house: House, second: GatewayProcess
) -> None:
    """T006."""
    model = await house.model()
    user = await house.user()
    made = await house.admin("POST", "keys", {"user_oid": user, "limits": []}, expect=201)
    await house.known_to([second])
    async with asyncio.timeout(20):
        while (await chat(second, made["key"], model)).status != 200:
            await asyncio.sleep(0.02)

    await house.admin("POST", f"keys/{made['id']}/revoke", expect=200)

    began = time.monotonic()
    while (await chat(second, made["key"], model)).status != 401:
        assert time.monotonic() - began - stalled_s(began) < WITHIN_S + BUSY_S
        await asyncio.sleep(0.01)


async def test_a_limit_is_exact_over_all_processes(house: House, second: GatewayProcess) -> None:
    model = await house.model()
    key = await house.key(limits=[{"kind": "requests", "limit": 20, "window_seconds": 60}])
    gateways = [house.gateway, second]
    await house.known_to(gateways)

    answers = await asyncio.gather(*(chat(gateways[i % 2], key, model) for i in range(60)))

    assert sorted(answer.status for answer in answers) == [200] * 20 + [429] * 40


async def test_sigterm_lets_running_streams_finish_and_leaves_every_record_behind(house: House) -> None:
    key = await house.key()
    model = await house.model(Scenario(chunks=20, completion_tokens=20, gap_ms=50))
    async with GatewayProcess(house.env | {"SHUTDOWN_GRACE_SECONDS": "10"}, entry="serve", name="draining") as gateway:
        async with SseStream.opened(gateway.port, stream_request(key, model)) as stream:
            await stream.take(3)
            request_id = stream.head.header("x-request-id") or ""
            gateway.terminate()
            events = await stream.rest()
        assert events[-1].is_done_marker
        assert await gateway.wait(timeout_s=20) in (0, -15)

    record = await house.record(request_id, within_s=30)
    assert (record["outcome"], record["completion_tokens"]) == ("ok", 20)


async def test_a_stream_longer_than_the_grace_is_cut_billed_and_recorded(house: House) -> None:
    key = await house.key()
    model = await house.model(Scenario(chunks=200, completion_tokens=200, gap_ms=50))
    async with GatewayProcess(house.env | {"SHUTDOWN_GRACE_SECONDS": "1"}, entry="serve", name="cutting") as gateway:
        async with SseStream.opened(gateway.port, stream_request(key, model)) as stream:
            await stream.take(5)
            request_id = stream.head.header("x-request-id") or ""
            gateway.terminate()
            await gateway.wait(timeout_s=20)

    record = await house.record(request_id, within_s=30)
    assert (record["outcome"], record["usage_quality"]) == ("interrupted", "partial")
    assert record["cost_usd"] > "0.000000000"


async def test_a_killed_process_leaves_a_record_of_every_call_that_reached_an_upstream(house: House) -> None:
    """T127: the reservation outlives its process; when its lease is over it becomes a record and frees what it held."""
    env = house.env | {"RESERVATION_LEASE_SECONDS": "2"}
    model = await house.model(Scenario(chunks=200, gap_ms=50))
    limits = [{"kind": "concurrency", "limit": 3, "window_seconds": 0}]
    key = await house.key(limits=limits, budgets=[{"period": "total", "hard_limit_usd": "5"}])
    ids = []
    async with GatewayProcess(env, name="killed") as gateway, AsyncExitStack() as streams:
        for _ in range(3):
            opened = SseStream.opened(gateway.port, stream_request(key, model))
            stream = await streams.enter_async_context(opened)
            await stream.take(2)
            ids.append(stream.head.header("x-request-id") or "")
        gateway.kill()

    for request_id in ids:
        record = await house.record(request_id, within_s=30)
        assert record["outcome"] in ("lost", "interrupted"), "a checkpoint had been written of it, or not yet"
    fast = await house.model()
    answer = await house.chat(key, fast)
    assert answer.status == 200, "the slots of the dead are free"
    record = await house.record(request_id_of(answer))
    (budget,) = record["budgets"]
    assert budget["reserved_by_others_usd"] == "0.000000000"


async def test_processes_that_start_at_once_on_an_empty_database_migrate_it_once(house: House) -> None:
    """T154."""
    import asyncpg

    connection = await asyncpg.connect(house.database_url)
    await connection.execute("DROP DATABASE IF EXISTS fresh WITH (FORCE)")
    await connection.execute("CREATE DATABASE fresh")
    await connection.close()
    url = house.database_url.replace("/postgres?", "/fresh?")
    # With counters of their own: what the house's calls leave there belongs to the house's ledger.
    redis_url = house.redis_url.replace("?db=0", "?db=5")
    async with GatewayFleet(3, house.env | {"DATABASE_URL": url, "REDIS_URL": redis_url}) as fleet:
        for gateway in fleet.gateways:
            health = await raw_http.call(gateway.port, "GET", "/health")
            assert json.loads(health.body)["database"] == "ok"
            assert '"level":"error"' not in gateway.log_text()
        listed = await raw_http.call(
            fleet[0].port, "GET", "/admin/api/models", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"}
        )
    assert [model["name"] for model in json.loads(listed.body)["items"]] == ["demo"]
