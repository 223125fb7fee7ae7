"""Budgets that are made or changed while calls run: what those calls cost is spent there too."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from pathlib import Path

import pytest

from tests.e2e.house import HELLO, House, Json, request_id_of
from tests.e2e.test_verify_ledger import proof_of
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
    slow = await house.model(Scenario(chunks=40, gap_ms=90), budgets=before if scope == "model" else [])
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


@pytest.mark.parametrize("scope", ["user", "key", "model"])
async def test_a_budget_that_was_taken_away_and_made_again_knows_what_was_spent_in_between(
    house: House, scope: str, tmp_path: Path
) -> None:
    """Its counter stood still meanwhile; a hard budget would pay a second time for what the ledger says is spent."""
    user = await house.user(budgets=TOTAL if scope == "user" else [])
    made = await house.admin(
        "POST", "keys", {"user_oid": user, "limits": [], "budgets": TOTAL if scope == "key" else []}, expect=201
    )
    price = {"input_usd_per_mtok": "0", "output_usd_per_mtok": "0", "request_usd": "2"}
    model = await house.model(price=price, budgets=TOTAL if scope == "model" else [])
    path = {"user": f"users/{user}", "key": f"keys/{made['id']}", "model": f"models/{model}"}[scope]

    assert await spent_or_none(house, made["key"], model) == "0.000000000"
    await house.admin("PATCH", path, {"budgets": []}, expect=200)
    uncounted = 0
    async with asyncio.timeout(20):
        while uncounted < 3:
            uncounted += await spent_or_none(house, made["key"], model) is None
    await house.admin("PATCH", path, {"budgets": TOTAL}, expect=200)
    async with asyncio.timeout(20):
        while (answer := await house.chat(made["key"], model)).status == 200:
            record = await house.record(request_id_of(answer))
            assert all(each["period"] != "total" for each in record["budgets"]), "it is used up, whoever knows of it"
    assert answer.status == 402
    holder = {"user": user, "key": made["id"], "model": model}[scope]
    _, found = await proof_of(house, tmp_path)
    assert [drift for drift in found["drifts"] if holder in drift["where"]] == []


async def spent_or_none(house: House, key: str, model: str) -> str | None:
    """What the total budget had spent before one more call; None where there is none."""
    record = await house.record(request_id_of(await house.chat(key, model)))
    return next((each["spent_before_usd"] for each in record["budgets"] if each["period"] == "total"), None)
