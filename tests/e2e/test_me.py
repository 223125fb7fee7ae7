"""`GET /v1/me`: a caller's own limits and budgets, what is left of them, and when they are whole again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import cast

import pytest
import redis.asyncio

from tests.e2e.house import HELLO, House, Json, error_of, request_id_of
from tests.kit import raw_http
from tests.kit.fault_proxy import FaultProxy
from tests.kit.processes import GatewayProcess
from tests.kit.raw_http import RawResponse, SseStream
from tests.kit.scenario import Scenario

LIMITS = [
    {"kind": "requests", "limit": 10, "window_seconds": 60},
    {"kind": "tokens", "limit": 100_000, "window_seconds": 3600},
    {"kind": "concurrency", "limit": 3, "window_seconds": 0},
]
PERIODS = ("daily", "weekly", "monthly", "total")
TEN_CENTS = {"input_usd_per_mtok": "0", "output_usd_per_mtok": "0", "request_usd": "0.10"}


async def asked(house: House, key: str, *, path: str = "/v1/me", port: int | None = None) -> RawResponse:
    return await raw_http.call(port or house.gateway.port, "GET", path, headers={"Authorization": f"Bearer {key}"})


async def me(house: House, key: str, *, path: str = "/v1/me", port: int | None = None) -> Json:
    answer = await asked(house, key, path=path, port=port)
    assert answer.status == 200, answer.text
    return cast(Json, answer.json())


def moment(text: str) -> datetime:
    assert text.endswith("Z")
    return datetime.fromisoformat(text)


def budget_of(view: Json, scope: str, period: str) -> Json:
    (found,) = (each for each in view["budgets"] if (each["scope"], each["period"]) == (scope, period))
    return cast(Json, found)


def limit_of(view: Json, kind: str) -> Json:
    (found,) = (each for each in view["limits"] if each["kind"] == kind)
    return cast(Json, found)


async def test_what_is_left_is_told_per_scope_and_right_after_the_call(house: House) -> None:
    user = await house.user(
        budgets=[{"period": "monthly", "soft_limit_usd": "2", "hard_limit_usd": "5"}], payment_valid_until="2099-12-31"
    )
    expires = "2098-01-01T00:00:00Z"
    budgets = [{"period": "daily", "hard_limit_usd": "1"}, {"period": "total", "soft_limit_usd": "3"}]
    model = await house.model(price=TEN_CENTS)
    key = await house.key(user, limits=LIMITS, budgets=budgets, expires_at=expires, allowed_models=[model])
    for _ in range(3):
        assert (await house.chat(key, model, max_tokens=8)).status == 200

    view = await me(house, key)

    assert (view["user_oid"], view["payment_status"], view["payment_valid_until"]) == (user, "active", "2099-12-31")
    assert moment(view["key_expires_at"]) == datetime(2098, 1, 1, tzinfo=UTC)
    assert (view["app_id"], view["allowed_models"]) == (None, [model])
    daily, total, monthly = (
        budget_of(view, *each) for each in (("key", "daily"), ("key", "total"), ("user", "monthly"))
    )
    money = ("soft_limit_usd", "hard_limit_usd", "spent_usd", "reserved_usd", "remaining_usd")
    assert [daily[name] for name in money] == [None, "1.000000000", "0.300000000", "0.000000000", "0.700000000"]
    assert [total[name] for name in money] == ["3.000000000", None, "0.300000000", "0.000000000", None]
    assert [monthly[name] for name in money] == [
        *("2.000000000", "5.000000000", "0.300000000", "0.000000000", "4.700000000")
    ]
    assert (daily["holder"], monthly["holder"]) == (view["key_id"], user)
    assert (view["spent_this_month"]["user_usd"], len(view["budgets"])) == ("0.300000000", 3)
    assert limit_of(view, "requests")["remaining"] == 7
    assert limit_of(view, "tokens")["remaining"] == 100_000 - 3 * 18
    assert limit_of(view, "concurrency")["remaining"] == 3


async def test_what_running_calls_hold_is_told_apart_from_what_is_spent(house: House) -> None:
    model = await house.model(Scenario(chunks=200, gap_ms=50), price=TEN_CENTS)
    key = await house.key(limits=LIMITS, budgets=[{"period": "daily", "hard_limit_usd": "1"}])
    body = {"model": model, "messages": HELLO, "stream": True, "max_tokens": 200}
    request = raw_http.request_bytes(
        "POST", "/v1/chat/completions", headers={"Authorization": f"Bearer {key}"}, json_body=body
    )
    async with SseStream.opened(house.gateway.port, request) as stream:
        await stream.take(2)
        view = await me(house, key)

    daily = budget_of(view, "key", "daily")
    assert [daily[name] for name in ("spent_usd", "reserved_usd", "remaining_usd")] == [
        *("0.000000000", "0.100000000", "0.900000000")
    ]
    assert limit_of(view, "concurrency")["remaining"] == 2


async def test_times_are_told_in_seconds_and_as_moments_that_agree(house: House) -> None:
    key = await house.key(limits=LIMITS, budgets=[{"period": each, "soft_limit_usd": "1"} for each in PERIODS])
    await house.chat(key, await house.model(), max_tokens=8)

    view = await me(house, key)

    now = moment(view["at"])
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    daily = budget_of(view, "key", "daily")
    assert moment(daily["resets_at"]) == midnight
    assert daily["reset_after_seconds"] == pytest.approx((midnight - now).total_seconds(), abs=0.001)
    assert moment(budget_of(view, "key", "weekly")["resets_at"]).weekday() == 0
    assert moment(budget_of(view, "key", "monthly")["resets_at"]).day == 1
    assert [budget_of(view, "key", "total")[name] for name in ("resets_at", "reset_after_seconds")] == [None, None]
    window = limit_of(view, "requests")
    assert 50 < window["reset_after_seconds"] <= 62
    assert moment(window["resets_at"]) - now == pytest.approx(
        timedelta(seconds=window["reset_after_seconds"]), abs=timedelta(milliseconds=2)
    )
    assert limit_of(view, "concurrency")["resets_at"] is None
    month = view["spent_this_month"]
    assert moment(month["starts_at"]) <= now < moment(month["resets_at"])


async def test_asking_uses_nothing_up_and_nobody_may_keep_the_answer(house: House) -> None:
    key = await house.key(limits=[{"kind": "requests", "limit": 1, "window_seconds": 60}])

    answers = [await asked(house, key, path=path) for path in ("/v1/me", "/me", "/me?beta=true", "/v1/me")]

    assert [answer.status for answer in answers] == [200] * 4
    assert {answer.header("cache-control") for answer in answers} == {"no-store"}
    assert all(limit_of(cast(Json, json.loads(answer.body)), "requests")["remaining"] == 1 for answer in answers)


async def test_a_key_without_limits_of_its_own_sees_the_defaults(house: House) -> None:
    made = await house.admin("POST", "keys", {"user_oid": await house.user()}, expect=201)

    view = await me(house, made["key"])

    assert [(each["kind"], each["limit"], each["window_seconds"]) for each in view["limits"]] == [("requests", 60, 60)]
    assert view["allowed_models"] == ["*"]


async def test_a_budget_that_the_counters_do_not_know_is_told_from_the_ledger(house: House) -> None:
    model = await house.model(price=TEN_CENTS)
    made = await house.admin(
        "POST",
        "keys",
        {"user_oid": await house.user(), "limits": [], "budgets": [{"period": "total", "hard_limit_usd": "1"}]},
        expect=201,
    )
    fresh = budget_of(await me(house, made["key"]), "key", "total")
    answer = await house.chat(made["key"], model, max_tokens=8)
    await house.record(request_id_of(answer))
    async with redis.asyncio.Redis.from_url(house.redis_url) as client:
        assert await client.delete(f"{{ag}}:b:key:{made['id']}:total") == 1

    known = budget_of(await me(house, made["key"]), "key", "total")

    assert (fresh["spent_usd"], fresh["remaining_usd"]) == ("0.000000000", "1.000000000")
    assert (known["spent_usd"], known["remaining_usd"]) == ("0.100000000", "0.900000000")


async def test_who_may_not_call_may_not_ask(house: House) -> None:
    user = await house.user()
    key = await house.key(user)
    await house.admin("PATCH", f"users/{user}", {"payment_status": "suspended"}, expect=200)

    assert error_of(await asked(house, key))["code"] == "user_suspended"
    assert error_of(await asked(house, "sk-wrong"))["code"] == "invalid_api_key"


# ── A store is away ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def behind_proxies(house: House) -> AsyncIterator[tuple[GatewayProcess, FaultProxy, FaultProxy]]:
    """One more gateway on the same stores, whose ways to them can be cut: the process, PostgreSQL, Redis."""
    async with FaultProxy(house.database_url) as database, FaultProxy(house.redis_url) as counters:
        env = house.env | {
            "DATABASE_URL": database.url(house.database_url),
            "REDIS_URL": counters.url(house.redis_url),
        }
        async with GatewayProcess(env, name="cut-off") as gateway:
            yield gateway, database, counters


def cut(proxy: FaultProxy) -> None:
    proxy.refuse()
    proxy.reset_all()


async def test_what_the_counters_know_is_told_while_the_database_is_away(
    house: House, behind_proxies: tuple[GatewayProcess, FaultProxy, FaultProxy]
) -> None:
    gateway, database, _ = behind_proxies
    model = await house.model(price=TEN_CENTS)
    user = await house.user(budgets=[{"period": "monthly", "hard_limit_usd": "5"}])
    key = await house.key(user, limits=LIMITS, budgets=[{"period": "weekly", "hard_limit_usd": "5"}])
    await house.chat(key, model, max_tokens=8)
    await me(house, key, port=gateway.port)  # so that the key is known there

    cut(database)
    async with asyncio.timeout(8):
        view = await me(house, key, port=gateway.port)

    assert budget_of(view, "key", "weekly")["remaining_usd"] == "4.900000000"
    assert limit_of(view, "requests")["remaining"] == 9
    assert view["spent_this_month"]["user_usd"] == "0.100000000", "there is a monthly budget, whose counter knows"
    assert view["spent_this_month"]["key_usd"] is None


async def test_what_the_ledger_knows_is_told_while_the_counters_are_away(
    house: House, behind_proxies: tuple[GatewayProcess, FaultProxy, FaultProxy]
) -> None:
    gateway, _, counters = behind_proxies
    model = await house.model(price=TEN_CENTS)
    key = await house.key(limits=LIMITS, budgets=[{"period": "weekly", "hard_limit_usd": "5"}])
    await house.record(request_id_of(await house.chat(key, model, max_tokens=8)))
    await me(house, key, port=gateway.port)

    cut(counters)
    async with asyncio.timeout(8):
        view = await me(house, key, port=gateway.port)

    assert budget_of(view, "key", "weekly")["spent_usd"] == "0.100000000"
    assert view["spent_this_month"]["key_usd"] == "0.100000000"
    assert limit_of(view, "requests")["limit"] == 10
