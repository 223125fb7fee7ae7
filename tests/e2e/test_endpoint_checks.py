"""Active checks and shadows: what costs nothing, what is booked and on whom, and what a check may and may not change."""

from __future__ import annotations

import asyncio

import pytest

from tests.e2e.house import House, Json, error_of, request_id_of
from tests.kit.processes import free_port
from tests.kit.scenario import Scenario
from tests.kit.upstream import ScriptedUpstream


async def check(house: House, endpoint_id: str, **body: object) -> Json:
    return await house.admin("POST", f"endpoints/{endpoint_id}/check", body or None, expect=200)


async def booked(house: House, user: str, model: str = "") -> list[Json]:
    """The calls on an account (to a model), once there are any: what was just settled is on its way to the ledger."""
    wanted = f"user_oid={user}&model={model}" if model else f"user_oid={user}"
    async with asyncio.timeout(30):
        while not (found := (await house.admin("GET", f"usage/logs?{wanted}&limit=200", expect=200))["items"]):
            await asyncio.sleep(0.05)
    return list(found)


async def test_a_check_is_a_list_of_models_and_costs_nothing(house: House) -> None:
    """T092."""
    model = await house.model(endpoints=0)
    endpoint = await house.endpoint(model)

    found = await check(house, endpoint)

    assert (found["ok"], found["kind"], found["reason"], found["state"]) == (True, "models", None, "closed")
    assert (await house.upstream.invoice()).of_model(model).lines == ()
    live = (await house.admin("GET", f"endpoints/{endpoint}", expect=200))["live"]
    assert live["last_check"]["ok"] is True


@pytest.mark.parametrize("status", [400, 403, 404, 405, 429])
async def test_a_server_that_does_not_like_the_question_is_there(house: House, status: int) -> None:
    """T092: 400 is not down."""
    endpoint = await house.endpoint(await house.model(endpoints=0))
    await house.upstream.script(by_model={"/models": Scenario(status=status)})

    found = await check(house, endpoint)
    await house.upstream.script(by_model={})

    assert (found["ok"], found["reason"], found["upstream_status"]) == (True, f"status_{status}", status)


async def test_a_paid_check_is_booked_on_the_gateways_own_account(house: House) -> None:
    """T092: its own line, never a user's."""
    model = await house.model(endpoints=0)
    endpoint = await house.endpoint(model)

    found = await check(house, endpoint, kind="completion")

    assert (found["ok"], found["kind"]) == (True, "completion")
    (line,) = (await house.upstream.invoice()).of_model(model).lines
    assert b'"max_tokens":1' in line.body
    (record,) = await booked(house, "gateway:checks", model)
    assert record["requested_model"] == model
    assert (record["outcome"], record["key_id"], record["endpoint_id"]) == ("ok", None, endpoint)
    assert record["cost_usd"] > "0.000000000"


async def test_a_paid_check_that_a_reasoning_model_finds_wrong_is_no_outage_and_costs_nothing(house: House) -> None:
    """T092."""
    model = await house.model(Scenario(status=400, error_message="use max_completion_tokens"), endpoints=0)
    endpoint = await house.endpoint(model)

    found = await check(house, endpoint, kind="completion")

    assert (found["ok"], found["upstream_status"], found["state"]) == (True, 400, "closed")
    records = await booked(house, "gateway:checks", model)
    assert {record["cost_usd"] for record in records} == {"0.000000000"}


async def test_a_dead_endpoint_is_found_by_its_checks_and_a_living_one_taken_back(house: House) -> None:
    """T092; before any caller meets it."""
    key, model = await house.key(), await house.model(endpoints=0)
    dead = await house.endpoint(model, api_base=f"http://127.0.0.1:{free_port()}/v1", health_check={"kind": "none"})
    await house.endpoint(model, health_check={"kind": "none"})

    assert (await check(house, dead))["ok"] is False
    found = await check(house, dead)
    answers = [await house.chat(key, model) for _ in range(4)]

    assert (found["reason"], found["state"]) == ("connect_failed", "open")
    assert {answer.header("x-gateway-attempts") for answer in answers} == {"1"}
    await house.admin("PATCH", f"endpoints/{dead}", {"api_base": house.upstream.base_url, "api_key": None}, expect=200)
    assert (await check(house, dead))["state"] == "closed"
    kinds = [event["kind"] for event in (await house.admin("GET", f"endpoints/{dead}/events", expect=200))["items"]]
    assert sorted(kinds) == ["check_failed", "opened"]


async def test_a_good_check_does_not_excuse_failed_calls(house: House) -> None:
    """T092."""
    key, model = await house.key(), await house.model(Scenario(status=500), endpoints=0)
    endpoint = await house.endpoint(model, breaker={"open_seconds": 60, "max_open_seconds": 60})
    for _ in range(5):
        await house.chat(key, model)

    found = await check(house, endpoint)

    assert (found["ok"], found["state"]) == (True, "open")


async def test_checks_come_by_themselves_at_their_interval(house: House) -> None:
    """T092."""
    model = await house.model(endpoints=0)
    endpoint = await house.endpoint(model, health_check={"kind": "models", "interval_seconds": 1})

    async with asyncio.timeout(60):  # it may be up to another process, or to the heir of one that was killed
        while (await house.admin("GET", f"endpoints/{endpoint}", expect=200))["live"]["last_check"] is None:
            await asyncio.sleep(0.1)

    await house.admin("PATCH", f"endpoints/{endpoint}", {"health_check": {"kind": "none"}}, expect=200)
    assert (await house.upstream.invoice()).of_model(model).lines == ()


async def test_nobody_may_take_an_account_of_the_gateways_own(house: House) -> None:
    answer = await house.ask_admin("POST", "users", {"user_oid": "gateway:checks"})

    assert (answer.status, error_of(answer)["param"]) == (400, "user_oid")


# ── Shadows ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_shadow_is_sent_the_call_and_booked_apart(house: House) -> None:
    shadow = await house.model()
    model = await house.model(shadow={"model": shadow, "percent": 100})
    user = await house.user()
    key = await house.key(user)

    answer = await house.chat(key, model)

    assert answer.status == 200
    assert answer.header("x-gateway-model") == model
    (record,) = await booked(house, "gateway:shadows", shadow)
    assert shadow in (await house.upstream.invoice()).requests_by_model
    assert (record["outcome"], record["client_request_id"]) == ("ok", request_id_of(answer))
    assert record["cost_usd"] > "0.000000000"
    assert [item["requested_model"] for item in await booked(house, user)] == [model]


async def test_a_shadow_that_hangs_delays_nobody(house: House) -> None:
    shadow = await house.model(endpoints=0)
    async with ScriptedUpstream() as hanging:  # of its own: what hangs ends with it, and is in no other test's way
        hanging.script(Scenario(hang_before_headers=True))
        await house.endpoint(shadow, api_base=hanging.base_url)
        model = await house.model(shadow={"model": shadow, "percent": 100})
        key = await house.key()

        async with asyncio.timeout(30):
            answers = await asyncio.gather(*(house.chat(key, model) for _ in range(40)))
            while len(hanging.invoice().calls.lines) < 8:
                await asyncio.sleep(0.02)

        assert {answer.status for answer in answers} == {200}
        assert len(hanging.invoice().calls.lines) == 8, "bounded"
