"""Budgets that are made or changed while calls run: what those calls cost is spent there too."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest

from tests.e2e.house import HELLO, House, Json, request_id_of
from tests.kit.raw_http import SseStream, request_bytes
from tests.kit.scenario import Scenario

DAILY = [{"period": "daily", "hard_limit_usd": "5"}]
TOTAL = [{"period": "total", "hard_limit_usd": "5"}]


@pytest.mark.parametrize("scope", ["user", "key", "model"])
@pytest.mark.parametrize("before", [[], DAILY], ids=["none before", "another before"])
async def test_a_budget_made_while_a_stream_runs_has_paid_for_it_at_its_end(
    house: House, scope: str, before: list[Json]
) -> None:
    user = await house.user(budgets=before if scope == "user" else [])
    made = await house.admin(
        "POST", "keys", {"user_oid": user, "limits": [], "budgets": before if scope == "key" else []}, expect=201
    )
    slow = await house.model(Scenario(chunks=40, gap_ms=50), budgets=before if scope == "model" else [])
    path = {"user": f"users/{user}", "key": f"keys/{made['id']}", "model": f"models/{slow}"}[scope]
    headers = {"Authorization": f"Bearer {made['key']}"}
    body = {"model": slow, "messages": HELLO, "stream": True, "max_tokens": 100}
    request = request_bytes("POST", "/v1/chat/completions", headers=headers, json_body=body)

    async with SseStream.opened(house.gateway.port, request) as stream:
        await stream.take(3)
        await house.admin("PATCH", path, {"budgets": [*before, *TOTAL]}, expect=200)
        await stream.rest()
        cost = (await house.record(stream.head.header("x-request-id") or ""))["cost_usd"]

    await house.upstream.script(by_model={slow: Scenario()})
    async with asyncio.timeout(10):
        while not (spent := await spent_before(house, made["key"], slow)):
            await asyncio.sleep(0.1)
    assert Decimal(cost) > 0
    assert spent == cost


async def spent_before(house: House, key: str, model: str) -> str | None:
    """What the new budget had spent before one more call."""
    answer = await house.chat(key, model, max_tokens=10)
    assert answer.status == 200, answer.text
    record = await house.record(request_id_of(answer))
    return next((each["spent_before_usd"] for each in record["budgets"] if each["period"] == "total"), None)
