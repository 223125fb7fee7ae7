"""Internal apps call on behalf of users: with a secret, their own id and the user's, all three or nothing."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from tests.e2e.house import HELLO, SHARED_SECRET, App, House, Json, error_of, request_id_of, unique
from tests.kit import raw_http
from tests.kit.raw_http import RawResponse


def _bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


async def call(house: House, headers: list[tuple[str, str]], model: str) -> RawResponse:
    body: Json = {"model": model, "messages": HELLO}
    return await raw_http.call(house.gateway.port, "POST", "/v1/chat/completions", headers=headers, json_body=body)


async def test_a_call_is_booked_to_the_app_and_to_the_user(house: House) -> None:
    """T011: right secret, app and OID; with its own secret and with the shared one."""
    app, user, model = await house.app(), await house.user(), await house.model()

    for secret in (app.secret, SHARED_SECRET):
        answer = await house.app_chat(App(app.id, secret), user, model)
        assert answer.status == 200, answer.text
        record = await house.record(request_id_of(answer))
        assert (record["app_id"], record["user_oid"], record["key_id"]) == (app.id, user, None)


async def test_every_wrong_secret_gets_one_identical_401(house: House) -> None:
    """T011, T012."""
    app, other, user, model = await house.app(), await house.app(), await house.user(), await house.model()
    own_only = await house.app(own_secret_only=True)
    shown = [
        [("X-Gateway-Secret", secret), ("X-App-Id", app_id), ("X-User-Oid", user)]
        for secret, app_id in (
            ("wrong", app.id),
            ("", app.id),
            (other.secret, app.id),
            (app.secret[:-1] + "!", app.id),
            (app.secret, unique("app")),
            (SHARED_SECRET, unique("app")),
            (SHARED_SECRET, own_only.id),
            (app.secret, ""),
        )
    ]
    shown.append([("X-App-Id", app.id), ("X-User-Oid", user)])
    shown.append([("X-Gateway-Secret", app.secret), ("X-User-Oid", user)])

    answers = [await call(house, headers, model) for headers in shown]

    assert {answer.status for answer in answers} == {401}
    bodies = {answer.text.replace(request_id_of(answer), "") for answer in answers}
    assert len(bodies) == 1, bodies
    assert error_of(answers[0])["code"] == "invalid_api_key"


async def test_the_right_secret_of_an_inactive_app_is_told_so(house: House) -> None:
    """T011."""
    app, user, model = await house.app(is_active=False), await house.user(), await house.model()

    answer = await house.app_chat(app, user, model)

    assert (answer.status, error_of(answer)["code"]) == (403, "app_inactive")


@pytest.mark.parametrize("oid", ["", "with space", "x" * 201, "x" * 10_000, "caf\u00e9"])
async def test_a_malformed_oid_is_a_400(house: House, oid: str) -> None:
    """T012, T048."""
    app, model = await house.app(auto_create_users=True), await house.model()

    answer = await house.app_chat(app, oid, model)

    error = error_of(answer)
    assert (answer.status, error["code"], error["param"].lower()) == (400, "invalid_request", "x-user-oid")


async def test_an_oid_that_an_admin_has_too_gives_no_right_to_administer(house: House) -> None:
    """T012, T025: the headers of an app open nothing of the admin API."""
    app, name = await house.app(), unique("admin")
    await house.admin("POST", "admins", {"name": name, "role": "owner"}, expect=201)
    await house.admin("POST", "users", {"user_oid": name}, expect=201)

    for path in ("/admin/api/users", "/admin/api/settings"):
        answer = await raw_http.call(house.gateway.port, "GET", path, headers=app.headers(name))
        assert answer.status == 401


async def test_several_credentials_are_refused_and_none_is_chosen(house: House) -> None:
    """T014."""
    app, user, model, key = await house.app(), await house.user(), await house.model(), await house.key()
    good = list(app.headers(user).items())
    bearer = ("Authorization", f"Bearer {key}")
    for headers in (
        *([*good, pair] for pair in good),
        [*good, bearer],
        [*good, ("x-api-key", key)],
        [*good, ("api-key", key)],
        [bearer, ("X-User-Oid", user)],
        [bearer, ("X-App-Id", app.id)],
        [bearer, bearer],
        [bearer, ("Authorization", "Bearer other")],
    ):
        answer = await call(house, headers, model)
        assert (answer.status, error_of(answer)["code"]) == (400, "ambiguous_credentials"), headers


async def test_two_apps_name_the_same_user_and_each_pays_for_its_own_calls(house: House) -> None:
    """T016: limits and budgets of user and app both hold."""
    one = {"kind": "requests", "limit": 1, "window_seconds": 600}
    first, second = await house.app(limits=[one]), await house.app()
    user, model = await house.user(limits=[{**one, "limit": 3}]), await house.model()

    statuses = [(await house.app_chat(app, user, model)).status for app in (first, first, second, second, second)]

    assert statuses == [200, 429, 200, 200, 429], "one by the limit of the first app, one by that of the user"
    poor = await house.app(budgets=[{"period": "total", "hard_limit_usd": "0.000000001"}])
    refused = await house.app_chat(poor, await house.user(), model)
    assert (refused.status, error_of(refused)["code"]) == (402, "budget_exceeded")
    assert "this app" in error_of(refused)["message"]


async def test_an_unknown_user_is_refused_unless_the_app_may_create_users(house: House) -> None:
    """T016."""
    strict, lenient, model = await house.app(), await house.app(auto_create_users=True), await house.model()
    oid = unique("new")

    refused = await house.app_chat(strict, oid, model)
    assert (refused.status, error_of(refused)["code"]) == (403, "user_unknown")
    answers = await asyncio.gather(*(house.app_chat(lenient, oid, model) for _ in range(8)))

    assert [answer.status for answer in answers] == [200] * 8
    user = await house.admin("GET", f"users/{oid}", expect=200)
    assert user["payment_status"] == "active"
    trail = await house.admin("GET", f"audit?object_id={oid}", expect=200)
    assert [(item["action"], item["actor"]) for item in trail["items"]] == [("user.create", f"app {lenient.id}")]
    assert (await house.app_chat(strict, oid, model)).status == 200


async def test_a_suspended_or_expired_user_calls_through_no_app(house: House) -> None:
    """T016, T009."""
    app, model = await house.app(), await house.model()
    yesterday = (datetime.now(UTC).date() - timedelta(days=1)).isoformat()
    for fields, code in (
        ({"payment_status": "suspended"}, "user_suspended"),
        ({"payment_status": "expired"}, "payment_expired"),
        ({"payment_valid_until": yesterday}, "payment_expired"),
    ):
        answer = await house.app_chat(app, await house.user(**fields), model)
        assert (answer.status, error_of(answer)["code"]) == (403, code)


async def test_an_app_calls_from_its_networks_only(house: House) -> None:
    user, model = await house.user(), await house.model()
    for networks, status in ((["127.0.0.0/8"], 200), (["10.0.0.0/8", "2001:db8::/32"], 403)):
        answer = await house.app_chat(await house.app(allowed_networks=networks), user, model)
        assert answer.status == status
        assert status == 200 or error_of(answer)["code"] == "ip_not_allowed"


async def test_a_rotated_secret_ends_with_its_grace_and_at_once_without(house: House) -> None:
    app, user, model = await house.app(), await house.user(), await house.model()
    assert (await house.app_chat(app, user, model)).status == 200

    second = await house.admin("POST", f"apps/{app.id}/rotate-secret", {"grace_seconds": 600}, expect=200)
    assert (await house.app_chat(app, user, model)).status == 200
    assert (await house.app_chat(App(app.id, second["secret"]), user, model)).status == 200
    third = await house.admin("POST", f"apps/{app.id}/rotate-secret", {"grace_seconds": 0}, expect=200)

    statuses = [
        (await house.app_chat(App(app.id, secret), user, model)).status
        for secret in (app.secret, second["secret"], third["secret"])
    ]
    assert statuses == [401, 401, 200]


async def test_an_apps_models_are_those_it_may_use(house: House) -> None:
    model, other, user = await house.model(), await house.model(), await house.user()
    app = await house.app(allowed_models=[model])

    assert (await house.app_chat(app, user, model)).status == 200
    assert (await house.app_chat(app, user, other)).status == 403
    listed = await raw_http.call(house.gateway.port, "GET", "/v1/models", headers=app.headers(user))
    names = [each["id"] for each in listed.json()["data"]]  # type: ignore[index]
    assert names == [model]
    me = await raw_http.call(house.gateway.port, "GET", "/v1/me", headers=app.headers(user))
    assert me.status == 200


async def test_nobody_chooses_the_address_that_a_credential_is_bound_to(house: House) -> None:
    """T150, without a proxy in front: uvicorn itself would believe whoever calls from its own machine."""
    user, model = await house.user(), await house.model()
    for bound in (["6.6.6.0/24"], ["2001:db8::/32"]):
        key, app = await house.key(user, allowed_ips=bound), await house.app(allowed_networks=bound)
        for claimed in ("6.6.6.6", "6.6.6.6:1234", "127.0.0.1, 6.6.6.6", "2001:db8::1", "[2001:db8::1]:80"):
            for credential in (_bearer(key), app.headers(user)):
                answer = await raw_http.call(
                    house.gateway.port, "GET", "/v1/models", headers={**credential, "X-Forwarded-For": claimed}
                )
                assert (answer.status, error_of(answer)["code"]) == (403, "ip_not_allowed"), claimed
    here = await house.key(user, allowed_ips=["127.0.0.1"])
    answer = await raw_http.call(
        house.gateway.port, "GET", f"/v1/models/{model}", headers={**_bearer(here), "X-Forwarded-For": "127.0.0.1"}
    )
    assert answer.status == 200


async def test_what_belongs_to_another_answers_as_what_does_not_exist(house: House) -> None:
    """T022: calls of other users, of other keys' apps, and models that a key may not use."""
    model, hidden, user = await house.model(), await house.model(), await house.user()
    mine, app = await house.key(user, allowed_models=[model]), await house.app()
    theirs = request_id_of(await house.chat(await house.key(), model))
    of_app = request_id_of(await house.app_chat(app, await house.user(), model))
    await house.record(theirs)
    await house.record(of_app)
    nowhere = "01900000-0000-7000-8000-000000000000"

    async def asked(path: str, name: str) -> tuple[int, object]:
        answer = await raw_http.call(house.gateway.port, "GET", f"{path}/{name}", headers=_bearer(mine))
        error = error_of(answer)
        return answer.status, {**error, "request_id": "", "message": error["message"].replace(name, "")}

    for other in (theirs, of_app):
        assert await asked("/v1/usage", other) == await asked("/v1/usage", nowhere)
    assert await asked("/v1/models", hidden) == await asked("/v1/models", f"no{hidden[2:]}")
