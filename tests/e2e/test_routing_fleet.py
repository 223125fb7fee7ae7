"""Several replicas and one endpoint: what one of them learns the others know within a second. And money when a model falls back."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.embedded import ValkeyServer
from tests.e2e.conftest import environment
from tests.e2e.house import ADMIN_TOKEN, HELLO, House, Json, request_id_of
from tests.kit import raw_http
from tests.kit.processes import GatewayFleet, GatewayProcess
from tests.kit.scenario import Scenario
from tests.kit.stalls import stalled_s

pytestmark = pytest.mark.timeout(120)

BUSY_S = 2.0
"""What a machine with more work than cores may add to the second that is promised."""

BROKEN = Scenario(status=500)


async def endpoint_at(gateway: GatewayProcess, endpoint: str) -> Json:
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    answer = await raw_http.call(gateway.port, "GET", f"/admin/api/endpoints/{endpoint}", headers=headers)
    assert answer.status == 200, answer.text
    return answer.json()  # type: ignore[return-value]


async def state_at(gateway: GatewayProcess, endpoint: str) -> str:
    return str((await endpoint_at(gateway, endpoint))["state"])


async def is_everywhere(fleet: GatewayFleet, endpoint: str, state: str) -> None:
    began = time.monotonic()
    while {await state_at(gateway, endpoint) for gateway in fleet.gateways} != {state}:
        assert time.monotonic() - began - stalled_s(began) < 1 + BUSY_S
        await asyncio.sleep(0.02)


async def chat_at(gateway: GatewayProcess, key: str, model: str) -> raw_http.RawResponse:
    headers = {"Authorization": f"Bearer {key}"}
    return await raw_http.call(
        gateway.port,
        "POST",
        "/v1/chat/completions",
        headers=headers,
        json_body={"model": model, "messages": HELLO},
    )


@pytest.fixture
async def fleet(house: House) -> AsyncIterator[GatewayFleet]:
    async with GatewayFleet(2, house.env) as started:
        yield started


async def test_what_one_replica_sees_fail_all_leave_alone_and_what_one_is_told_to_forget_all_forget(
    house: House, fleet: GatewayFleet
) -> None:
    """T067: 200 to 1, 500s; out of rotation on all replicas within a second."""
    key, model = await house.key(), await house.model(endpoints=0)
    bad = await house.endpoint(
        model, upstream_model=f"{model}-bad", weight=200, breaker={"open_seconds": 30, "max_open_seconds": 30}
    )
    await house.endpoint(model, upstream_model=f"{model}-good", weight=1)
    await house.upstream.script(by_model={f"{model}-bad": BROKEN})
    await house.known_to(fleet.gateways)

    for _ in range(25):
        assert (await chat_at(fleet[0], key, model)).status == 200
    await is_everywhere(fleet, bad, "open")

    sent = (await house.upstream.invoice()).requests_by_model[f"{model}-bad"]
    assert sent <= 5 + 1
    answers = [await chat_at(fleet[1], key, model) for _ in range(5)]
    assert {answer.header("x-gateway-attempts") for answer in answers} == {"1"}
    assert (await house.upstream.invoice()).requests_by_model[f"{model}-bad"] == sent

    await house.admin("POST", f"endpoints/{bad}/reset", expect=200)
    await is_everywhere(fleet, bad, "closed")


async def test_an_endpoints_figures_are_those_of_all_replicas(house: House, fleet: GatewayFleet) -> None:
    key, model = await house.key(), await house.model(BROKEN, endpoints=0)
    endpoint = await house.endpoint(model, breaker={"faults_in_row": 100, "window_seconds": 3600})
    await house.known_to(fleet.gateways)
    for gateway in fleet.gateways:
        assert (await chat_at(gateway, key, model)).status == 502
    await house.upstream.script(by_model={model: Scenario(hang_before_headers=True)})

    hanging = [asyncio.create_task(chat_at(gateway, key, model)) for gateway in fleet.gateways for _ in range(3)]
    try:
        async with asyncio.timeout(20):
            while (live := (await endpoint_at(fleet[0], endpoint))["live"])["in_flight"] != 6:
                await asyncio.sleep(0.1)
    finally:
        for call in hanging:
            call.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)

    assert live["processes"] >= 2, "and that of the house, unless it stands still"
    assert (live["calls"], live["faults"], live["open_in"]) == (2, 2, 0)
    assert live["last_fault"]["reason"] == "status_500"
    async with asyncio.timeout(20):
        while (await endpoint_at(fleet[1], endpoint))["live"]["in_flight"]:
            await asyncio.sleep(0.1)


async def test_a_quota_of_an_endpoint_is_one_for_all_replicas(house: House, fleet: GatewayFleet) -> None:
    key, model = await house.key(), await house.model(Scenario(delay_ms=300), endpoints=0)
    await house.endpoint(model, max_concurrency=2)
    await house.known_to(fleet.gateways)
    begun = len((await house.upstream.invoice()).of_model(model).lines)

    answers = await asyncio.gather(*(chat_at(fleet[number % 2], key, model) for number in range(8)))

    assert {answer.status for answer in answers} <= {200, 503}
    assert [answer.status for answer in answers].count(200) >= 4
    lines = (await house.upstream.invoice()).of_model(model).lines[begun:]
    for line in lines:
        others = [each for each in lines if each.arrived_at <= line.arrived_at < (each.finished_at or 0)]
        assert len(others) <= 2, "never more than two at once"


async def test_while_redis_is_away_each_replica_goes_by_what_it_sees(house: House) -> None:
    """T091: it opens by itself, nobody else is talked into anything, and it comes back."""
    with tempfile.TemporaryDirectory(prefix="gw-routing-") as home:
        valkey = ValkeyServer(Path(home) / "valkey", durable=False, on_progress=lambda _: None)
        await asyncio.to_thread(valkey.start)
        env = environment(house.database_url, valkey.url) | {"DATA_DIR": f"{home}/data", "REDIS_TIMEOUT_MS": "100"}
        try:
            async with GatewayFleet(2, env) as fleet:
                key, model = await house.key(), await house.model(BROKEN, endpoints=0)
                endpoint = await house.endpoint(model, breaker={"open_seconds": 1, "max_open_seconds": 1})
                await house.known_to(fleet.gateways)
                await asyncio.to_thread(valkey.kill)
                for _ in range(6):
                    await chat_at(fleet[0], key, model)
                assert await state_at(fleet[0], endpoint) in ("open", "half_open")
                assert await state_at(fleet[1], endpoint) == "closed"

                await house.upstream.script(by_model={model: Scenario()})
                async with asyncio.timeout(30):
                    while (await chat_at(fleet[0], key, model)).status != 200:
                        await asyncio.sleep(0.1)
                assert {await state_at(gateway, endpoint) for gateway in fleet.gateways} == {"closed"}
        finally:
            await asyncio.to_thread(valkey.stop)


# ── Money ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_fallback_is_billed_at_its_own_price_and_the_record_names_both_models(house: House) -> None:
    dear = await house.model(price={"input_usd_per_mtok": "25", "output_usd_per_mtok": "100"})
    model = await house.model(fallbacks=[dear], aliases=[f"alias-{dear}"])
    await house.upstream.script(by_model={model: BROKEN})
    key = await house.key(budgets=[{"period": "daily", "hard_limit_usd": "1"}])

    answer = await house.chat(key, f"alias-{dear}")

    assert (answer.status, answer.header("x-gateway-model")) == (200, dear)
    record = await house.record(request_id_of(answer))
    assert (record["requested_model"], record["served_model"]) == (f"alias-{dear}", dear)
    assert record["cost_usd"] == "0.001050000"
    assert [attempt["outcome"] for attempt in record["attempt_details"]] == ["failed", "ok"]
    assert (await house.chat(key, model)).status == 200, "nothing is left reserved"


async def test_a_hard_budget_that_cannot_pay_for_the_fallback_is_not_overspent_by_it(house: House) -> None:
    dear = await house.model(price={"input_usd_per_mtok": "250", "output_usd_per_mtok": "1000"})
    model = await house.model(fallbacks=[dear])
    await house.upstream.script(by_model={model: BROKEN})
    key = await house.key(budgets=[{"period": "daily", "hard_limit_usd": "0.005"}])

    answer = await house.chat(key, model, max_tokens=100)

    assert answer.status == 502, answer.text
    assert dear not in (await house.upstream.invoice()).requests_by_model
    record = await house.record(request_id_of(answer))
    assert record["cost_usd"] == "0.000000000"
    assert record["candidates"][-1]["verdict"] == "fallback refused: limits or budgets"
    await house.upstream.script(by_model={})
    assert (await house.chat(key, model, max_tokens=100)).status == 200, "and what it had reserved is free again"


async def test_a_fallback_with_one_slot_of_concurrency_needs_no_second_one(house: House) -> None:
    other = await house.model()
    model = await house.model(fallbacks=[other])
    await house.upstream.script(by_model={model: BROKEN})
    key = await house.key(
        limits=[{"kind": "concurrency", "limit": 1}, {"kind": "requests", "limit": 2, "window_seconds": 60}]
    )

    answers = [await house.chat(key, model) for _ in range(3)]

    assert [answer.status for answer in answers] == [200, 200, 429], "each call counts once"


async def test_a_prompt_that_is_too_long_for_a_model_goes_to_the_fallback_that_has_room(house: House) -> None:
    large = await house.model(context_window=128_000)
    model = await house.model(context_window=100, fallbacks=[large])
    key = await house.key()

    answer = await raw_http.call(
        house.gateway.port,
        "POST",
        "/v1/chat/completions",
        headers={"Authorization": f"Bearer {key}"},
        json_body={"model": model, "messages": [{"role": "user", "content": "word " * 2000}]},
    )

    assert (answer.status, answer.header("x-gateway-model")) == (200, large)
    assert model not in (await house.upstream.invoice()).requests_by_model
    record = await house.record(request_id_of(answer))
    assert {"endpoint_id": f"model {model}", "verdict": "prompt too long"} in record["candidates"]
