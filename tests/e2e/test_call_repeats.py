"""T116: a call sent again with the same `Idempotency-Key` is answered again, and made once."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
import redis.asyncio

from tests.e2e.house import HELLO, House, error_of, unique
from tests.kit import raw_http
from tests.kit.raw_http import RawResponse
from tests.kit.scenario import Scenario


async def call(house: House, key: str, model: str, again: str, **fields: object) -> RawResponse:
    return await raw_http.call(
        house.gateway.port,
        "POST",
        "/v1/chat/completions",
        headers={"Authorization": f"Bearer {key}", "Idempotency-Key": again},
        json_body={"model": model, "messages": HELLO, **fields},
    )


async def replayed(house: House, key: str, model: str, again: str, **fields: object) -> RawResponse:
    """The answer to a repeat, once the first one is kept: that is a moment after its caller has it."""
    async with asyncio.timeout(20):
        while (answer := await call(house, key, model, again, **fields)).status == 409:
            assert error_of(answer)["code"] == "idempotency_in_flight"
            await asyncio.sleep(0.02)
    return answer


async def hits(house: House, model: str) -> int:
    return (await house.upstream.invoice()).requests_by_model.get(model, 0)


@pytest.mark.parametrize("is_stream", [False, True])
async def test_twenty_equal_calls_at_once_are_made_once_and_charged_once(house: House, is_stream: bool) -> None:
    """T116."""
    user = await house.user(budgets=[{"period": "total", "hard_limit_usd": "5"}])
    key, model, again = await house.key(user), await house.model(Scenario(delay_ms=2500)), unique("again")
    fields = {"stream": True} if is_stream else {}

    answers = await asyncio.gather(*(call(house, key, model, again, **fields) for _ in range(20)))

    late = [answer for answer in answers if answer.header("idempotency-replayed")]  # where the machine stood still
    assert len(late) < 19
    assert Counter(answer.status for answer in answers) == {200: 1 + len(late), 409: 19 - len(late)}
    assert {error_of(answer)["code"] for answer in answers if answer.status == 409} == {"idempotency_in_flight"}
    (first,) = [answer for answer in answers if answer.status == 200 and answer not in late]
    replay = await replayed(house, key, model, again, **fields)
    assert (replay.status, replay.body) == (200, first.body)
    assert replay.header("content-type") == first.header("content-type")
    assert replay.header("idempotency-replayed") == "true"
    assert replay.header("x-request-id") != first.header("x-request-id")
    assert await hits(house, model) == 1
    await house.upstream.script(by_model={model: Scenario()})
    record = await house.record(first.header("x-request-id") or "")
    after = await house.record((await house.chat(key, model)).header("x-request-id") or "")
    assert after["budgets"][0]["spent_before_usd"] == record["cost_usd"]


async def test_a_key_belongs_to_its_caller_and_to_one_request(house: House) -> None:
    """T116."""
    model, again = await house.model(), unique("again")
    mine, theirs = await house.key(), await house.key()
    assert (await call(house, mine, model, again)).status == 200

    other_body = await call(house, mine, model, again, temperature=0.5)
    assert (other_body.status, error_of(other_body)["param"]) == (400, "Idempotency-Key")
    assert (await call(house, theirs, model, again)).header("idempotency-replayed") is None
    assert await hits(house, model) == 2


async def test_what_was_refused_or_failed_frees_its_key(house: House) -> None:
    """T116: the stock clients send a failed call again with the key that it had."""
    key, model, again = await house.key(), await house.model(Scenario(status=400)), unique("again")
    assert (await call(house, key, model, again)).status == 400
    await house.upstream.script(by_model={model: Scenario()})

    repeat = await call(house, key, model, again)
    assert (repeat.status, repeat.header("idempotency-replayed")) == (200, None)


@pytest.mark.parametrize("bad", ["", "x" * 256, "with space", "t\u00e4st"])
async def test_a_key_that_is_none_is_refused_before_anything_is_sent(house: House, bad: str) -> None:
    key, model = await house.key(), await house.model()
    answer = await call(house, key, model, bad)
    assert (answer.status, error_of(answer)["param"]) == (400, "Idempotency-Key")
    assert await hits(house, model) == 0


async def test_what_a_model_said_lies_sealed_in_the_store_for_a_day(house: House) -> None:
    """I1: answers and keys are nobody else's to read."""
    key, again = await house.key(), unique("again")
    model = await house.model(Scenario(text="the secret of the house"))
    assert b"the secret of the house" in (await call(house, key, model, again)).body
    assert b"the secret of the house" in (await replayed(house, key, model, again)).body
    client = redis.asyncio.Redis.from_url(house.redis_url, socket_timeout=5)
    try:
        names = [name async for name in client.scan_iter("{ag}:i:*")]
        values = [str(await client.get(name)) for name in names]
        lives_s = [await client.ttl(name) for name in names]
    finally:
        await client.aclose()
    assert names
    assert max(lives_s) > 86_000
    assert not any(again.encode() in name for name in names)
    assert not any("the secret of the house" in value for value in values)
