"""What a key's overflow policy does with calls that its limits refuse."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.e2e.house import HELLO, House, Json, error_of, request_id_of
from tests.kit.raw_http import RawConnection, SseStream, request_bytes
from tests.kit.scenario import Scenario
from tests.kit.stalls import stalled_s


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

    began = time.monotonic()
    answer = await house.chat(key, model)

    assert answer.status == 429
    assert time.monotonic() - began - stalled_s(began) < 1.5, "it did not wait for the two seconds that it might"
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
    slow, fast = await house.model(Scenario(delay_ms=6_000)), await house.model()
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
        began = time.monotonic()
        assert (await house.chat(free, model)).status == 200
        assert time.monotonic() - began - stalled_s(began) < 1.5


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


@pytest.mark.parametrize(
    ("path", "change", "status", "code"),
    [
        ("keys/{key}/revoke", None, 401, "invalid_api_key"),
        ("keys/{key}", {"allowed_models": ["none"]}, 403, "model_not_allowed"),
        ("users/{user}", {"payment_status": "suspended"}, 403, "user_suspended"),
        ("users/{user}", {"payment_valid_until": "2020-01-01"}, 403, "payment_expired"),
    ],
    ids=["the key is revoked", "its models are", "the user is suspended", "his payment ends"],
)
async def test_a_call_that_waits_in_a_queue_is_refused_when_its_caller_loses_the_right_to_call(
    house: House, path: str, change: Json | None, status: int, code: str
) -> None:
    """T006, T007: also for whoever came before the change and was not admitted yet."""
    user = await house.user()
    overflow = {"mode": "queue", "max_wait_seconds": 60}
    slots = [{"kind": "concurrency", "limit": 1, "window_seconds": 0}]
    made = await house.admin("POST", "keys", {"user_oid": user, "limits": slots, "overflow": overflow}, expect=201)
    endless, fast = await house.model(Scenario(chunks=2_000, gap_ms=50)), await house.model()
    headers = {"Authorization": f"Bearer {made['key']}"}
    body = {"model": endless, "messages": HELLO, "stream": True, "max_tokens": 4_000}
    request = request_bytes("POST", "/v1/chat/completions", headers=headers, json_body=body)
    async with asyncio.TaskGroup() as group:
        async with SseStream.opened(house.gateway.port, request) as stream:
            await stream.take(2)
            queued = group.create_task(house.chat(made["key"], fast))
            await asyncio.sleep(0.5)  # it stands in the queue now; if it should not, it is refused for the same reason
            method = "POST" if change is None else "PATCH"
            await house.admin(method, path.format(key=made["id"], user=user), change, expect=200)
            await stream.hang_up()
    answer = queued.result()
    assert (answer.status, error_of(answer)["code"]) == (status, code), answer.text
    assert not (await house.upstream.settled()).requests_by_model.get(fast), "it reached no upstream"


async def test_a_call_whose_body_comes_after_its_key_was_revoked_is_refused(house: House) -> None:
    user = await house.user()
    made = await house.admin("POST", "keys", {"user_oid": user, "limits": []}, expect=201)
    model = await house.model()
    headers = {"Authorization": f"Bearer {made['key']}"}
    request = request_bytes(
        "POST", "/v1/chat/completions", headers=headers, json_body={"model": model, "messages": HELLO}
    )
    async with RawConnection(house.gateway.port) as connection:
        await connection.send(request[:-10])
        await asyncio.sleep(0.5)  # it was let in at the door, and its body is waited for
        await house.admin("POST", f"keys/{made['id']}/revoke", expect=200)
        await connection.send(request[-10:])
        answer = await connection.response()
    assert (answer.status, error_of(answer)["code"]) == (401, "invalid_api_key")
    assert not (await house.upstream.settled()).requests_by_model.get(model)
