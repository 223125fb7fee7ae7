"""`/metrics` as Prometheus reads it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.house import House, unique
from tests.kit import raw_http
from tests.kit.processes import GatewayProcess
from tests.kit.scenario import Scenario

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]
TOKEN = "metrics-token-for-tests-0123456789abcdefg"


async def scraped(gateway: GatewayProcess) -> tuple[str, Series]:
    answer = await raw_http.call(gateway.port, "GET", "/metrics")
    assert answer.status == 200, answer.text
    assert (answer.header("content-type") or "").startswith("text/plain; version=0.0.4")
    families = list(text_string_to_metric_families(answer.text))
    return answer.text, {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def total(series: Series, name: str, **labels: str) -> float:
    return sum(value for (found, given), value in series.items() if found == name and set(labels.items()) <= given)


async def scraped_once(gateway: GatewayProcess, holds: Callable[[Series], bool]) -> Series:
    """What is told once this holds: a call is counted a moment after its answer has left."""
    async with asyncio.timeout(15):
        while not holds(series := (await scraped(gateway))[1]):
            await asyncio.sleep(0.05)
    return series


async def test_a_call_is_counted_with_its_tokens_its_cost_and_its_attempts(house: House) -> None:
    key, model = await house.key(), await house.model(Scenario(prompt_tokens=11, completion_tokens=35))
    await house.chat(key, model)
    await house.chat(key, model, stream=True)

    series = await scraped_once(house.gateway, lambda seen: total(seen, "gateway_requests_total", model=model) >= 2)

    assert total(series, "gateway_requests_total", model=model, outcome="ok", status="200", provider="openai") == 2
    assert total(series, "gateway_request_duration_seconds_count", model=model) == 2
    assert total(series, "gateway_request_duration_seconds_bucket", model=model, le="+Inf") == 2
    assert total(series, "gateway_tokens_total", model=model, direction="input") == 22
    assert total(series, "gateway_tokens_total", model=model, direction="output") == 70
    assert total(series, "gateway_spend_usd_total", model=model) == 0.000755  # 2 × (11 × 2.50 + 35 × 10) / 10⁶
    assert total(series, "gateway_deployment_state", model=model) == 0


async def test_what_is_refused_is_counted_by_why(house: House) -> None:
    key = await house.key(limits=[{"kind": "requests", "limit": 1, "window_seconds": 60}])
    model = await house.model()
    _, before = await scraped(house.gateway)

    for _ in range(3):
        await house.chat(key, model)
    await house.chat("sk-unknown", model)

    def counted(series: Series) -> float:
        return total(series, "gateway_requests_total", outcome="refused", status="429")

    after = await scraped_once(house.gateway, lambda seen: counted(seen) >= counted(before) + 2)
    for name, labels in (
        ("gateway_ratelimit_rejections_total", {"scope": "key", "type": "requests"}),
        ("gateway_errors_total", {"status": "429", "code": "rate_limit_exceeded"}),
        ("gateway_requests_total", {"outcome": "refused", "status": "429"}),
    ):
        assert total(after, name, **labels) - total(before, name, **labels) == 2, name
    assert total(after, "gateway_errors_total", status="401") - total(before, "gateway_errors_total", status="401") == 1


async def test_what_is_so_at_this_moment_is_shown(house: House) -> None:
    def is_at_rest(series: Series) -> bool:
        """It has looked at itself, and is through with what the tests before have left behind."""
        has_looked = series["gateway_event_loop_lag_seconds_count", frozenset()] and total(
            series, "gateway_database_up"
        )
        return bool(has_looked and not total(series, "gateway_inflight_requests"))

    series = await scraped_once(house.gateway, is_at_rest)

    assert total(series, "gateway_redis_up") == 1
    assert total(series, "gateway_processes") == 1
    assert total(series, "gateway_config_revision") >= 1
    assert total(series, "gateway_resident_memory_bytes") > 10_000_000
    assert total(series, "gateway_tasks") > 5
    assert total(series, "gateway_build_info") == 1


async def test_no_label_names_a_user_a_key_or_what_a_caller_made_up(house: House) -> None:
    """T143, in small: the bound itself is proved in tests/test_instruments.py."""
    oid = await house.user()
    key = await house.key(oid)
    model = await house.model()
    await house.chat(key, model)
    invented = [unique("invented") for _ in range(20)]
    await asyncio.gather(*(house.chat(key, name) for name in invented))
    await asyncio.gather(*(raw_http.call(house.gateway.port, "GET", f"/v1/{name}") for name in invented))

    await scraped_once(house.gateway, lambda series: total(series, "gateway_requests_total", model=model) >= 1)
    text, _ = await scraped(house.gateway)

    assert oid not in text
    assert key not in text
    assert not re.search("invented", text)
    assert 'model="none"' in text


async def test_with_a_token_set_nobody_else_reads_them(house: House) -> None:
    """T018."""
    async with GatewayProcess(house.env | {"METRICS_TOKEN": TOKEN}, name="guarded") as gateway:
        statuses = [
            (await raw_http.call(gateway.port, "GET", "/metrics", headers=headers)).status
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Bearer {TOKEN}"})
        ]

    assert statuses == [401, 401, 200]


async def test_whichever_worker_is_asked_all_workers_are_shown(house: House) -> None:
    model, key = await house.model(), await house.key()
    async with GatewayProcess(house.env | {"WORKERS": "2"}, entry="serve", name="workers") as gateway:
        async with asyncio.timeout(20):
            while total((await scraped(gateway))[1], "gateway_processes") != 2:
                await asyncio.sleep(0.1)
        async with asyncio.timeout(20):
            while (await call(gateway, key, model)).status != 200:
                await asyncio.sleep(0.05)
        answers = await asyncio.gather(*(call(gateway, key, model) for _ in range(40)))
        assert [answer.status for answer in answers] == [200] * 40
        await scraped_once(
            gateway, lambda series: total(series, "gateway_requests_total", model=model, outcome="ok") >= 41
        )
        for _ in range(6):
            _, series = await scraped(gateway)
            assert total(series, "gateway_requests_total", model=model, outcome="ok") == 41


async def call(gateway: GatewayProcess, key: str, model: str) -> raw_http.RawResponse:
    return await raw_http.call(
        gateway.port,
        "POST",
        "/v1/chat/completions",
        headers={"Authorization": f"Bearer {key}"},
        json_body={"model": model, "messages": [{"role": "user", "content": "Say hello."}]},
    )
