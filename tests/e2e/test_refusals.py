"""Refusals that clients obey: their headers, and that what they promise comes true."""

from __future__ import annotations

import asyncio
import math
import time

from tests.e2e.house import House, error_of, request_id_of, unique
from tests.e2e.test_sdk import sdk
from tests.kit import raw_http
from tests.kit.raw_http import RawResponse
from tests.kit.stalls import stalled_s


def require_retry_headers(answer: RawResponse) -> float:
    """Both say the same, one rounded up to whole seconds. Returns seconds."""
    ms = int(answer.header("retry-after-ms") or "")
    assert ms > 0
    assert int(answer.header("retry-after") or "") == max(1, math.ceil(ms / 1000))
    assert answer.header("x-should-retry") is None, "a repeat can succeed"
    return ms / 1000


async def test_a_402_says_which_budget_when_it_resets_and_that_a_repeat_is_in_vain(house: House) -> None:
    key = await house.key(budgets=[{"period": "daily", "hard_limit_usd": "0.000000001"}])

    answer = await house.chat(key, await house.model())

    error = error_of(answer)
    assert (answer.status, error["code"], error["type"]) == (402, "budget_exceeded", "insufficient_quota")
    assert "daily budget of this key" in error["message"]
    assert "resets at 20" in error["message"]
    assert answer.header("x-should-retry") == "false"
    assert answer.header("retry-after") is None


async def test_a_429_carries_the_limit_it_met_in_the_headers_of_an_answer(house: House) -> None:
    limits = [{"kind": "requests", "limit": 2, "window_seconds": 30}]
    key, model = await house.key(limits=limits), await house.model()
    answers = [await house.chat(key, model) for _ in range(3)]

    assert [answer.status for answer in answers] == [200, 200, 429]
    assert [answer.header("x-ratelimit-remaining-requests") for answer in answers] == ["1", "0", "0"]
    assert {answer.header("x-ratelimit-limit-requests") for answer in answers} == {"2"}
    refused = answers[-1]
    wait_s = require_retry_headers(refused)
    assert 25 < wait_s <= 31
    reset = refused.header("x-ratelimit-reset-requests") or ""
    assert float(reset.removesuffix("s")) >= wait_s - 0.001
    assert refused.header("x-ratelimit-limit-tokens") is None


async def test_a_429_for_tokens_says_what_is_left_of_them(house: House) -> None:
    limits = [{"kind": "tokens", "limit": 100, "window_seconds": 30}]
    key, model = await house.key(limits=limits), await house.model()
    assert (await house.chat(key, model, max_tokens=8)).status == 200

    refused = await house.chat(key, model, max_tokens=90)

    assert (refused.status, error_of(refused)["type"]) == (429, "tokens")
    assert refused.header("x-ratelimit-limit-tokens") == "100"
    assert refused.header("x-ratelimit-remaining-tokens") == "82", "18 were used"
    require_retry_headers(refused)


async def test_a_503_says_when_to_come_back(house: House) -> None:
    refused = await house.chat(await house.key(), await house.model(endpoints=0))

    assert (refused.status, error_of(refused)["code"]) == (503, "no_healthy_endpoint")
    require_retry_headers(refused)


async def test_a_limit_opens_when_retry_after_says_also_under_continuous_traffic(house: House) -> None:
    """T112: refused calls do not push the recovery away, and it comes neither late nor early."""
    limits = [{"kind": "requests", "limit": 5, "window_seconds": 4}]
    key, model = await house.key(limits=limits), await house.model()
    began = time.monotonic()
    burst = await asyncio.gather(*(house.chat(key, model) for _ in range(20)))
    assert sum(answer.status == 200 for answer in burst) == 5
    refused = next(answer for answer in burst if answer.status == 429)
    due_at = refused.finished_at + require_retry_headers(refused)

    early: list[float] = []
    while (answer := await house.chat(key, model)).status == 429:
        early.append(answer.finished_at + require_retry_headers(answer))
        assert time.time() < due_at + 10
        await asyncio.sleep(0.05)

    assert answer.status == 200
    late_s = 1.0 + stalled_s(began)
    assert abs(answer.finished_at - due_at) < late_s
    assert len(early) > 5, "the traffic went on meanwhile"
    assert all(abs(promised - due_at) < late_s for promised in early), "each refusal promised the same moment"


async def test_the_stock_client_waits_as_told_and_then_succeeds(house: House) -> None:
    """One repeat is enough, because the first 429 told the truth."""
    found = await sdk(
        house,
        """
import time
create = client.with_options(max_retries=1).chat.completions.with_raw_response.create
began = time.monotonic()
retries = [create(model=model, messages=hello).retries_taken for _ in range(2)]
show({"seconds": time.monotonic() - began, "retries": retries})
""",
        key=await house.key(limits=[{"kind": "requests", "limit": 1, "window_seconds": 5}]),
        model=await house.model(),
    )

    assert found["retries"] == [0, 1]
    assert 4 < found["seconds"] < 15


async def test_a_call_that_cannot_be_read_is_in_the_log_with_its_reason_and_its_body(house: House) -> None:
    user = await house.user()
    key, model = await house.key(user), await house.model()

    refused = [
        await house.chat(key, model, api_base="http://127.0.0.1"),
        await house.chat(key, model, max_tokens=-1),
        await house.chat(key, model, path="/v1/messages"),
        await house.chat(key, model, path="/v1/embeddings"),
    ]

    for answer, code in zip(
        refused,
        ["param_not_allowed", "invalid_request", "missing_required_parameter", "missing_required_parameter"],
        strict=True,
    ):
        assert answer.status == 400
        record = await house.record(answer.header("x-request-id") or "")
        assert (record["outcome"], record["http_status"], record["error_code"]) == ("refused", 400, code)
        assert (record["requested_model"], record["cost_usd"], record["attempts"]) == (model, "0.000000000", 0)
        async with asyncio.timeout(10):
            while record["content"] is None:
                record = await house.record(answer.header("x-request-id") or "")
        assert model in record["content"]["request"]
        headers = {"Authorization": f"Bearer {key}"}
        path = f"/v1/usage/{record['request_id']}"
        assert (await raw_http.call(house.gateway.port, "GET", path, headers=headers)).status == 200
    summary = await house.admin("GET", f"usage/summary?group_by=user&user_oid={user}", expect=200)
    assert summary["total"]["requests"] == 0, "they stand outside the sums"


async def test_a_call_of_somebody_who_may_not_call_now_is_in_the_log_too(house: House) -> None:
    model = await house.model()
    expired, suspended, elsewhere = [await house.user() for _ in range(3)]
    keys = {
        "payment_expired": await house.key(expired),
        "user_suspended": await house.key(suspended),
        "ip_not_allowed": await house.key(elsewhere, allowed_ips=["10.9.8.7"]),
    }
    await house.admin("PATCH", f"users/{expired}", {"payment_valid_until": "2020-01-31"}, expect=200)
    await house.admin("PATCH", f"users/{suspended}", {"payment_status": "suspended"}, expect=200)

    for code, key in keys.items():
        answer = await house.chat(key, model)
        assert (answer.status, error_of(answer)["code"]) == (403, code)
        record = await house.record(answer.header("x-request-id") or "")
        assert (record["outcome"], record["http_status"], record["error_code"]) == ("refused", 403, code)
        assert record["key_id"]


async def test_a_call_of_an_app_that_may_not_make_it_is_in_the_log_too(house: House) -> None:
    """Also the first that a process sees, before it knows the app and its user."""
    model, user, stranger = await house.model(), await house.user(), unique("stranger")
    inactive, elsewhere = await house.app(is_active=False), await house.app(allowed_networks=["10.9.8.7"])
    for app, oid, code in (
        (inactive, user, "app_inactive"),
        (inactive, stranger, "app_inactive"),
        (elsewhere, user, "ip_not_allowed"),
        (await house.app(), stranger, "user_unknown"),
    ):
        answer = await house.app_chat(app, oid, model)
        assert (answer.status, error_of(answer)["code"]) == (403, code)
        record = await house.record(request_id_of(answer))
        assert (record["outcome"], record["http_status"], record["error_code"]) == ("refused", 403, code)
        assert (record["app_id"], record["user_oid"]) == (app.id, oid)


async def test_a_call_whose_body_is_not_taken_is_in_the_log_too(house: House) -> None:
    key = await house.key()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
    for headers, status, code in (
        (f"Content-Type: application/json\r\nContent-Length: {10**9}\r\n", 413, "payload_too_large"),
        ("Content-Type: text/plain\r\nContent-Length: 2\r\n", 415, "unsupported_media_type"),
    ):
        async with raw_http.RawConnection(house.gateway.port) as connection:
            await connection.send(f"{head}{headers}\r\n{{}}".encode())
            answer = await connection.response()
        assert (answer.status, error_of(answer)["code"]) == (status, code)
        record = await house.record(request_id_of(answer))
        assert (record["outcome"], record["http_status"], record["error_code"]) == ("refused", status, code)
