"""Attempts that failed and that their upstream bills all the same: rows of the record with a cost of their own, a part of the call's."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from tests.e2e.house import House, error_of, request_id_of
from tests.kit.scenario import Scenario

SILENT = Scenario(hang_before_headers=True)
IMPATIENT = {"timeouts": {"connect_seconds": 2, "first_token_seconds": 1, "total_seconds": 20, "unary_seconds": 1}}


async def two_impatient_endpoints(house: House, **fields: Any) -> str:
    model = await house.model(endpoints=0, **fields)
    for _ in range(2):
        await house.endpoint(model, **IMPATIENT)
    return model


async def one_silent_endpoint_and_a_good_one(house: House, **fields: Any) -> str:
    """The silent one is asked first. The good one may take its time, as a busy machine makes it."""
    model = await house.model(endpoints=0, **fields)
    await house.endpoint(model, upstream_model=f"{model}-silent", priority=9, **IMPATIENT)
    await house.endpoint(model)
    await house.upstream.script(by_model={f"{model}-silent": SILENT})
    return model


async def test_a_silent_endpoint_is_paid_for_its_prompt_beside_the_one_that_answered(house: House) -> None:
    """T061, T126: two attempts, one charge, and the arithmetic of both."""
    user = await house.user(budgets=[{"period": "total", "hard_limit_usd": "5"}])
    key, model = await house.key(user), await one_silent_endpoint_and_a_good_one(house)

    answer = await house.chat(key, model, max_tokens=50)

    assert answer.status == 200, answer.text
    record = await house.record(request_id_of(answer))
    silent, answered = record["attempt_details"]
    assert (silent["outcome"], silent["usage_quality"], answered["outcome"]) == ("failed", "estimated", "ok")
    of_answer = sum(Decimal(line["unit_usd"]) * line["quantity"] for line in record["arithmetic"])
    of_silent = sum(Decimal(line["unit_usd"]) * line["quantity"] for line in silent["arithmetic"])
    assert of_silent == Decimal(silent["cost_usd"]) > 0
    assert Decimal(record["cost_usd"]) == of_answer + of_silent
    assert answer.header("x-gateway-cost-usd") == record["cost_usd"]
    again = await house.record(request_id_of(await house.chat(key, model, max_tokens=50)))
    (budget,) = again["budgets"]
    assert budget["spent_before_usd"] == record["cost_usd"], "the budget has paid for both"


async def test_a_call_that_nobody_answered_costs_what_was_sent(house: House) -> None:
    key, model = await house.key(), await two_impatient_endpoints(house)
    await house.upstream.script(by_model={model: SILENT})

    answer = await house.chat(key, model)

    assert (answer.status, error_of(answer)["code"]) == (504, "upstream_timeout")
    record = await house.record(request_id_of(answer))
    tries = record["attempt_details"]
    assert len(tries) >= 1
    assert Decimal(record["cost_usd"]) == sum(Decimal(each["cost_usd"]) for each in tries) > 0
    assert (record["outcome"], record["completion_tokens"]) == ("timeout", 0)


async def test_an_endpoint_that_refused_or_talked_nonsense_is_not_paid(house: House) -> None:
    """T069."""
    key, model = await house.key(), await house.model(endpoints=0)
    await house.endpoint(model, upstream_model=f"{model}-bad", priority=9)
    await house.endpoint(model)
    for bad in (Scenario(status=500), Scenario(raw_body="<html>"), Scenario(accept_and_close=True)):
        await house.upstream.script(by_model={f"{model}-bad": bad})
        record = await house.record(request_id_of(await house.chat(key, model)))
        assert [each["cost_usd"] for each in record["attempt_details"]] == ["0.000000000"] * len(
            record["attempt_details"]
        )


async def test_a_hard_budget_that_cannot_pay_for_a_second_attempt_is_not_overspent(house: House) -> None:
    price = {"input_usd_per_mtok": "0", "output_usd_per_mtok": "0", "request_usd": "0.10"}
    user = await house.user(budgets=[{"period": "total", "hard_limit_usd": "0.15"}])
    key, model = await house.key(user), await one_silent_endpoint_and_a_good_one(house, price=price)

    answer = await house.chat(key, model)

    assert answer.status == 504, "the failed attempt has used what a second one would need"
    record = await house.record(request_id_of(answer))
    assert (record["cost_usd"], record["attempts"]) == ("0.100000000", 1)
    refused = await house.chat(key, model)
    assert (refused.status, error_of(refused)["code"]) == (402, "budget_exceeded")
