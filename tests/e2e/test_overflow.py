"""What a key's overflow policy does with calls that its limits refuse."""

from __future__ import annotations

import asyncio

from tests.e2e.house import House, error_of, request_id_of
from tests.kit.scenario import Scenario


async def test_a_queueing_key_waits_for_room_instead_of_refusing(house: House) -> None:
    key = await house.key(
        limits=[{"kind": "requests", "limit": 2, "window_seconds": 1}],
        overflow={"mode": "queue", "max_wait_seconds": 8},
    )
    model = await house.model()
    began = asyncio.get_running_loop().time()

    answers = await asyncio.gather(*(house.chat(key, model) for _ in range(6)))

    assert [answer.status for answer in answers] == [200] * 6
    assert asyncio.get_running_loop().time() - began > 1.9, "six calls at two a second"


async def test_a_hopeless_wait_is_refused_at_once_with_the_time_it_would_take(house: House) -> None:
    key = await house.key(
        limits=[{"kind": "requests", "limit": 1, "window_seconds": 60}],
        overflow={"mode": "queue", "max_wait_seconds": 2},
    )
    model = await house.model()
    assert (await house.chat(key, model)).status == 200

    began = asyncio.get_running_loop().time()
    answer = await house.chat(key, model)

    assert answer.status == 429
    assert asyncio.get_running_loop().time() - began < 1.0
    assert 55 <= int(answer.header("retry-after") or 0) <= 61


async def test_a_call_waits_for_a_slot_and_takes_it_when_it_is_free(house: House) -> None:
    key = await house.key(
        limits=[{"kind": "concurrency", "limit": 1, "window_seconds": 0}],
        overflow={"mode": "queue", "max_wait_seconds": 5},
    )
    model = await house.model(Scenario(delay_ms=300))
    answers = await asyncio.gather(*(house.chat(key, model) for _ in range(4)))
    assert [answer.status for answer in answers] == [200] * 4


async def test_a_slot_that_does_not_come_free_in_time_is_refused(house: House) -> None:
    key = await house.key(
        limits=[{"kind": "concurrency", "limit": 1, "window_seconds": 0}],
        overflow={"mode": "queue", "max_wait_seconds": 1},
    )
    slow, fast = await house.model(Scenario(delay_ms=3_000)), await house.model()
    async with asyncio.TaskGroup() as group:
        first = group.create_task(house.chat(key, slow))
        await house.upstream.requests_seen(1)
        while not [line for line in (await house.upstream.invoice()).lines if line.model == slow]:
            await asyncio.sleep(0.02)
        second = await house.chat(key, fast)
    assert first.result().status == 200
    assert (second.status, error_of(second)["type"]) == (429, "concurrency")


async def test_another_keys_calls_do_not_wait_behind_a_queue(house: House) -> None:
    limits = [{"kind": "requests", "limit": 1, "window_seconds": 2}]
    busy = await house.key(limits=limits, overflow={"mode": "queue", "max_wait_seconds": 10})
    free, model = await house.key(), await house.model()
    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(house.chat(busy, model))
        began = asyncio.get_running_loop().time()
        assert (await house.chat(free, model)).status == 200
        assert asyncio.get_running_loop().time() - began < 1.0


async def test_a_falling_back_key_is_served_by_the_model_it_names(house: House) -> None:
    cheap = await house.model(Scenario(text="cheap"))
    dear = await house.model(Scenario(text="dear"), limits=[{"kind": "requests", "limit": 1, "window_seconds": 60}])
    key = await house.key(overflow={"mode": "fallback", "fallback_model": cheap})

    first, second = await house.chat(key, dear), await house.chat(key, dear)

    assert (first.status, second.status) == (200, 200)
    assert (first.header("x-gateway-model"), second.header("x-gateway-model")) == (dear, cheap)
    record = await house.record(request_id_of(second))
    assert (record["requested_model"], record["served_model"]) == (dear, cheap)


async def test_a_fallback_that_the_key_may_not_use_is_a_refusal(house: House) -> None:
    other, model = await house.model(), await house.model()
    key = await house.key(
        allowed_models=[model],
        limits=[{"kind": "requests", "limit": 1, "window_seconds": 60}],
        overflow={"mode": "fallback", "fallback_model": other},
    )
    assert (await house.chat(key, model)).status == 200
    assert (await house.chat(key, model)).status == 429
