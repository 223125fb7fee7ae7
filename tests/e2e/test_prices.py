"""Prices through the whole gateway: unknown ones, edits under load, figures that nobody believes."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.e2e.house import House, Json, error_of, request_id_of
from tests.kit.scenario import Scenario

HARD = [{"period": "total", "hard_limit_usd": "100"}]


async def test_a_hard_budget_does_not_pay_for_a_model_without_a_price(house: House) -> None:
    """T110."""
    model = await house.model(price=None)
    answer = await house.chat(await house.key(budgets=HARD), model)
    assert (answer.status, error_of(answer)["code"]) == (403, "price_unknown")
    assert all(line.model != model for line in (await house.upstream.invoice()).lines)


async def test_without_a_hard_budget_the_call_is_served_and_its_price_said_to_be_unknown(house: House) -> None:
    """T110: never silently nothing."""
    model = await house.model(price=None)
    answer = await house.chat(await house.key(), model)
    assert answer.status == 200
    record = await house.record(request_id_of(answer))
    assert (record["cost_usd"], record["price"], record["price_unknown"]) == ("0.000000000", None, True)
    assert answer.header("x-gateway-cost-usd") is None


async def test_a_price_of_zero_is_a_price(house: House) -> None:
    model = await house.model(price={"input_usd_per_mtok": "0", "output_usd_per_mtok": "0"})
    answer = await house.chat(await house.key(budgets=HARD), model, max_tokens=10)
    assert answer.status == 200
    assert answer.header("x-gateway-cost-usd") == "0.000000000"
    record = await house.record(request_id_of(answer))
    assert (record["cost_usd"], record["price_unknown"]) == ("0.000000000", False)


async def test_a_price_edited_under_load_changes_no_call_that_was_admitted_before(house: House) -> None:
    """T123: 100 calls in flight; each row is the old or the new price, exactly, by when it was admitted."""
    key, model = await house.key(), await house.model(Scenario(prompt_tokens=100, completion_tokens=10, delay_ms=1_500))
    costs = {"old": "0.000350000", "new": "0.000700000"}  # 100 × 2.50 + 10 × 10 USD per million; then twice that

    early = [asyncio.create_task(house.chat(key, model)) for _ in range(60)]
    async with asyncio.timeout(20):
        while sum(line.model == model for line in (await house.upstream.invoice()).lines) < 60:
            await asyncio.sleep(0.02)
    late = [asyncio.create_task(house.chat(key, model)) for _ in range(10)]
    await house.admin(
        "PATCH", f"models/{model}", {"price": {"input_usd_per_mtok": "5", "output_usd_per_mtok": "20"}}, expect=200
    )
    after = [asyncio.create_task(house.chat(key, model)) for _ in range(30)]
    answers = await asyncio.gather(*early, *late, *after)

    assert {answer.status for answer in answers} == {200}
    records = [await house.record(request_id_of(answer)) for answer in answers]
    assert {record["cost_usd"] for record in records[:60]} == {costs["old"]}
    assert {record["cost_usd"] for record in records[70:]} == {costs["new"]}
    by_price: dict[str, set[str]] = {}
    for record in records:
        by_price.setdefault(record["price"]["id"], set()).add(record["cost_usd"])
    assert sorted(map(sorted, by_price.values())) == [[costs["old"]], [costs["new"]]]

    await house.admin(
        "PATCH", f"models/{model}", {"price": {"input_usd_per_mtok": "1", "output_usd_per_mtok": "1"}}, expect=200
    )
    assert [_billed(await house.record(record["request_id"])) for record in records[:3]] == [
        _billed(record) for record in records[:3]
    ]


def _billed(record: Json) -> tuple[object, ...]:
    return record["cost_usd"], record["price"], record["arithmetic"]


@pytest.mark.parametrize("is_stream", [False, True])
async def test_figures_that_cannot_be_true_are_not_billed(house: House, is_stream: bool) -> None:
    """T086."""
    text = "Twelve words of an answer that is short and quite unremarkable indeed."
    scenario = Scenario(text=text, prompt_tokens=10**9, completion_tokens=20, chunks=12)
    key, model = await house.key(), await house.model(scenario)
    answer = await house.chat(key, model, max_tokens=50, stream=is_stream)
    assert answer.status == 200
    record = await house.record(request_id_of(answer))
    assert record["usage_quality"] == "estimated"
    assert 0 < record["prompt_tokens"] < 1_000
    assert 0 < record["completion_tokens"] <= 50
    assert "1000000000" in record["warnings"][0]
    assert record["cost_usd"] < "0.01"


async def test_a_call_is_billed_as_the_upstream_says_that_it_served_it(house: House) -> None:
    """T122: the reservation covers the dearer tier, the bill is of the tier that the answer names."""
    price = {
        "input_usd_per_mtok": "2.50",
        "output_usd_per_mtok": "10",
        "service_tiers": [{"name": "priority", "input_usd_per_mtok": "5", "output_usd_per_mtok": "20"}],
    }
    body = {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "service_tier": "priority",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }
    model = await house.model(Scenario(raw_body=json.dumps(body)), price=price)
    answer = await house.chat(await house.key(budgets=HARD), model, max_tokens=100, service_tier="priority")
    record = await house.record(request_id_of(answer))
    assert record["cost_usd"] == "0.000700000"
    assert record["usage"]["service_tier"] == "priority"
    reserved = float(record["budgets"][0]["reserved_usd"])
    assert reserved >= 100 * 20e-6
