"""Changes that meet each other: repeats of one request, and two administrators on one object."""

# ruff: noqa: F811 - fixtures are imported by name and asked for by name

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from datetime import timedelta
from typing import Any

import httpx2
import pytest

from tests.admin_fixtures import (
    Gateway,
    api,  # noqa: F401
    database,  # noqa: F401
    engine,  # noqa: F401
    gateway,  # noqa: F401
    open_app,
    open_client,
    postgres_url,  # noqa: F401
    template,  # noqa: F401
)

Client = httpx2.AsyncClient


async def with_user(api: Client) -> None:
    assert (await api.post("/users", json={"user_oid": "u"})).status_code == 201


def code_of(response: httpx2.Response) -> str:
    return str(response.json()["error"]["code"])


async def sent(api: Client, key: str, path: str = "/keys", **body: Any) -> httpx2.Response:
    return await api.post(path, json={"user_oid": "u", **body}, headers={"Idempotency-Key": key})


async def test_a_repeat_returns_the_first_answer_and_its_secret(api: Client, gateway: Gateway) -> None:
    await with_user(api)

    first, second = await sent(api, "one"), await sent(api, "one")

    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json() == second.json()
    assert ("idempotency-replayed" in first.headers, second.headers["idempotency-replayed"]) == (False, "true")
    (row,) = await gateway.rows("SELECT count(*) AS keys FROM keys")
    assert row["keys"] == 1


async def test_a_repeat_tells_the_version_that_was_made_so_that_it_can_be_changed(api: Client) -> None:
    """Whoever lost the first answer goes on from the second as from the first."""
    await with_user(api)
    first, second = await sent(api, "one"), await sent(api, "one")
    assert first.headers["etag"] == second.headers["etag"]

    changed = await api.patch(
        f"/keys/{second.json()['id']}", json={"name": "x"}, headers={"If-Match": second.headers["etag"]}
    )

    assert changed.status_code == 200, changed.text
    third = await sent(api, "one")
    assert third.headers["etag"] == first.headers["etag"], "the first answer, not what it has become"
    stale = await api.patch(
        f"/keys/{second.json()['id']}", json={"name": "y"}, headers={"If-Match": third.headers["etag"]}
    )
    assert stale.status_code == 412


async def test_the_kept_answer_is_sealed(api: Client, gateway: Gateway) -> None:
    await with_user(api)
    secret = (await sent(api, "one")).json()["key"]

    (row,) = await gateway.rows("SELECT * FROM repeatable_requests")
    assert secret.encode() not in row["answer_sealed"]


async def test_another_request_with_the_same_key_is_refused(api: Client) -> None:
    await with_user(api)
    await sent(api, "one", name="a")

    for other in (await sent(api, "one", name="b"), await sent(api, "one", "/users", name="a")):
        assert (other.status_code, code_of(other)) == (400, "invalid_request")
        assert other.json()["error"]["param"] == "Idempotency-Key"


async def while_time_passes(gateway: Gateway, *requests: Coroutine[Any, Any, httpx2.Response]) -> list[httpx2.Response]:
    """Whoever waits for another's answer looks again and again."""
    return await while_tasks_wait(gateway, [asyncio.create_task(request) for request in requests])


async def while_tasks_wait(gateway: Gateway, tasks: Sequence[asyncio.Task[httpx2.Response]]) -> list[httpx2.Response]:
    while not all(task.done() for task in tasks):
        await gateway.clock.advance(0.05)
        await asyncio.sleep(0.005)
    return [await task for task in tasks]


async def test_of_many_at_once_one_is_done(api: Client, gateway: Gateway) -> None:
    await with_user(api)

    tasks = [asyncio.create_task(sent(api, "one")) for _ in range(12)]
    await asyncio.wait(
        tasks, return_when=asyncio.FIRST_COMPLETED
    )  # however long the work takes, nobody's patience ends
    answers = await while_tasks_wait(gateway, tasks)

    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["key"] for answer in answers}) == 1
    (row,) = await gateway.rows("SELECT count(*) AS keys FROM keys")
    assert row["keys"] == 1


async def test_a_refused_request_frees_its_key(api: Client) -> None:
    refused = await sent(api, "one")  # there is no such user yet
    await with_user(api)

    assert refused.status_code == 404
    assert (await sent(api, "one")).status_code == 201


async def test_a_request_that_was_broken_off_is_not_done_again(api: Client, gateway: Gateway) -> None:
    """Its process died: perhaps after the change, before the answer was kept."""
    await with_user(api)
    await sent(api, "one")
    await gateway.execute("UPDATE repeatable_requests SET status = NULL, answer_sealed = NULL")

    (again,) = await while_time_passes(gateway, sent(api, "one"))

    assert (again.status_code, code_of(again)) == (409, "idempotency_in_flight")


async def test_administrators_of_one_name_do_not_get_each_others_answers(api: Client, gateway: Gateway) -> None:
    await with_user(api)
    twins = [(await api.post("/admins", json={"name": "twin", "role": "admin"})).json() for _ in range(2)]
    answers = []
    for twin in twins:
        async with open_client(open_app(gateway), token=twin["token"]) as client:
            answers.append(await sent(client, "one"))

    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].json()["key"] != answers[1].json()["key"]


async def test_a_key_is_its_senders_own_and_free_again_after_a_day(api: Client, gateway: Gateway) -> None:
    await with_user(api)
    staff = (await api.post("/admins", json={"name": "staff", "role": "admin"})).json()
    first = (await sent(api, "one")).json()["id"]

    async with open_client(open_app(gateway), token=staff["token"]) as other:
        assert (await sent(other, "one")).json()["id"] != first
    await gateway.clock.advance(timedelta(hours=24, seconds=1).total_seconds())
    assert (await sent(api, "one")).json()["id"] != first


async def test_old_answers_are_forgotten(api: Client, gateway: Gateway) -> None:
    await with_user(api)
    await sent(api, "one")
    await gateway.clock.advance(timedelta(hours=25).total_seconds())

    await gateway.repeats.forget_old()

    assert await gateway.rows("SELECT * FROM repeatable_requests") == []


@pytest.mark.parametrize("key", ["", "a b", "x" * 256])
async def test_a_malformed_key_is_refused(api: Client, key: str) -> None:
    response = await sent(api, key, "/users")
    assert (response.status_code, response.json()["error"]["param"]) == (400, "Idempotency-Key")


async def test_only_a_post_is_kept(api: Client, gateway: Gateway) -> None:
    await with_user(api)
    for _ in range(2):
        patched = await api.patch("/users/u", json={"name": "x"}, headers={"Idempotency-Key": "one"})
        assert patched.status_code == 200
    assert await gateway.rows("SELECT * FROM repeatable_requests") == []


async def test_a_role_that_may_not_do_it_gets_no_answer_of_before(api: Client, gateway: Gateway) -> None:
    await with_user(api)
    viewer = (await api.post("/admins", json={"name": "v", "role": "viewer"})).json()
    async with open_client(open_app(gateway), token=viewer["token"]) as other:
        assert (await sent(other, "one")).status_code == 403
    assert await gateway.rows("SELECT * FROM repeatable_requests") == []


OBJECTS = {
    "/users": ({"user_oid": "u"}, "user_oid", {"name": "x"}),
    "/keys": ({"user_oid": "u"}, "id", {"name": "x"}),
    "/apps": ({"app_id": "crm"}, "app_id", {"name": "x"}),
}
PRICE = {"input_usd_per_mtok": "1", "output_usd_per_mtok": "2"}


@pytest.mark.parametrize("path", OBJECTS)
async def test_a_change_of_what_has_changed_meanwhile_is_refused(api: Client, path: str) -> None:
    body, ident, change = OBJECTS[path]
    if path != "/users":
        await with_user(api)
    made = await api.post(path, json=body)
    url = f"{path}/{made.json()[ident]}"
    read = (await api.get(url)).headers["etag"]
    assert read == made.headers["etag"]

    first = await api.patch(url, json=change, headers={"If-Match": read})
    second = await api.patch(url, json={"name": "y"}, headers={"If-Match": read})
    deleted = await api.delete(url, headers={"If-Match": read})

    assert first.status_code == 200
    assert {(each.status_code, code_of(each)) for each in (second, deleted)} == {(412, "version_conflict")}
    assert (await api.get(url)).json()["name"] == "x"
    either = f'"nothing", {first.headers["etag"]}'
    assert (await api.patch(url, json={"name": "y"}, headers={"If-Match": either})).status_code == 200
    assert (await api.patch(url, json={"name": "z"}, headers={"If-Match": "*"})).status_code == 200
    assert (await api.delete(url)).status_code == 204


async def test_models_endpoints_and_administrators_have_versions_too(api: Client) -> None:
    await api.post("/models", json={"name": "gpt-4", "price": PRICE})
    upstream = {"model": "gpt-4", "provider": "demo", "upstream_model": "demo"}
    endpoint = await api.post("/endpoints", json=upstream)
    staff = await api.post("/admins", json={"name": "a", "role": "viewer"})
    for url, change in (
        ("/models/gpt-4", {"max_output_tokens": 7}),
        (f"/endpoints/{endpoint.json()['id']}", {"weight": 7}),
        (f"/admins/{staff.json()['id']}", {"name": "b"}),
    ):
        read = {"If-Match": (await api.get(url)).headers["etag"]}
        first, second = await api.patch(url, json=change, headers=read), await api.patch(url, json=change, headers=read)
        assert (first.status_code, second.status_code, code_of(second)) == (200, 412, "version_conflict"), url
        assert (await api.delete(f"{url}?force=true", headers=read)).status_code == 412
        assert (await api.get(url)).headers["etag"] == first.headers["etag"]


async def test_a_price_is_no_other_version_for_having_been_stored(api: Client) -> None:
    made = await api.post("/models", json={"name": "gpt-4", "price": PRICE})

    assert (await api.get("/models/gpt-4")).headers["etag"] == made.headers["etag"]


async def test_of_two_changes_to_one_version_one_is_refused(api: Client) -> None:
    await with_user(api)
    read = {"If-Match": (await api.get("/users/u")).headers["etag"]}

    answers = await asyncio.gather(
        *(api.patch("/users/u", json={"name": f"n{number}"}, headers=read) for number in range(8))
    )

    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 7


@pytest.mark.parametrize("tag", ["abc", '"a', "W/abc", ""])
async def test_a_malformed_tag_is_refused(api: Client, tag: str) -> None:
    await with_user(api)
    response = await api.patch("/users/u", json={"name": "x"}, headers={"If-Match": tag})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "If-Match")
