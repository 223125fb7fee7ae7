"""Signing in to the dashboard: the cookie, what ends it, forged requests, throttling, and the headers of every answer.

Covers T025 to T030 of the catalogue.
"""

# ruff: noqa: F811 - fixtures are imported by name and asked for by name

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import httpx2
import pytest
from fastapi import FastAPI, Request

from app.domain.access import Actor, Role
from app.domain.networks import network_of
from app.exceptions import DependencyUnavailable
from app.middleware.admin_session import safe_next
from app.services.admin_sessions import SessionCookie
from app.storage.management_ports import AdminSpec
from tests.admin_fixtures import (
    ADMIN_TOKEN,
    Gateway,
    database,  # noqa: F401
    engine,  # noqa: F401
    gateway,  # noqa: F401
    open_app,
    open_gateway,
    postgres_url,  # noqa: F401
    template,  # noqa: F401
)

Client = httpx2.AsyncClient
COOKIE = "__Host-ag_session"
OWNER = Actor("owner", Role.OWNER)
USER = {"user_oid": "u"}


def with_pages(gateway: Gateway) -> FastAPI:
    """The application with a page of the dashboard, which says who it takes the reader for."""
    app = open_app(gateway)

    async def overview(request: Request) -> dict[str, str]:
        form = await request.form() if request.method == "POST" else {}
        return {"name": request.state.actor.name, "csrf": request.state.session.csrf_token, "said": str(dict(form))}

    app.add_api_route("/admin/", overview, methods=["GET", "POST"])
    app.add_api_route("/admin/keys", overview, methods=["GET", "POST"])
    return app


@asynccontextmanager
async def browser(
    gateway: Gateway, *, address: str = "203.0.113.9", base: str = "https://gateway"
) -> AsyncIterator[Client]:
    transport = httpx2.ASGITransport(app=with_pages(gateway), raise_app_exceptions=False, client=(address, 1))
    async with httpx2.AsyncClient(transport=transport, base_url=base, headers={"accept": "text/html"}) as client:
        yield client


async def sign_in(client: Client, token: str = ADMIN_TOKEN, **fields: str) -> httpx2.Response:
    return await client.post("/admin/sign-in", data={"token": token, **fields})


async def signed_in(client: Client, token: str = ADMIN_TOKEN) -> str:
    """Sign in and return the CSRF token."""
    answer = await sign_in(client, token)
    assert answer.status_code == 303, answer.text
    shown = await client.get("/admin/")
    assert shown.status_code == 200, shown.text
    return str(shown.json()["csrf"])


async def new_admin(gateway: Gateway, role: Role = Role.ADMIN, name: str = "ada") -> tuple[str, str]:
    row, token = await gateway.management.admins.create(OWNER, AdminSpec(name, role))
    return row.id, token


def cookie_of(client: Client) -> str:
    return str(client.cookies[COOKIE])


# ── The cookie (T027) ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_cookie_of_a_session_is_bound_to_this_host_and_out_of_reach_for_scripts_t027(
    gateway: Gateway,
) -> None:
    async with browser(gateway) as client:
        answer = await sign_in(client)

    name, *attributes = [part.strip() for part in answer.headers["set-cookie"].split(";")]
    assert re.fullmatch(rf"{COOKIE}=[A-Za-z0-9_-]{{43}}", name)
    assert {"Path=/", "HttpOnly", "Secure", "SameSite=Lax"} <= set(attributes)
    assert not any(attribute.lower().startswith("domain") for attribute in attributes)


async def test_signing_in_gives_a_new_id_and_ends_the_session_that_was_brought_along_t027(gateway: Gateway) -> None:
    async with browser(gateway) as client:
        client.cookies.set(COOKIE, "A" * 43, domain="gateway")
        await sign_in(client)
        assert "A" * 43 not in [cookie.value for cookie in list(client.cookies.jar)[-1:]]

    async with browser(gateway) as client:
        await signed_in(client)
        first = cookie_of(client)
        await sign_in(client)
        second = cookie_of(client)
        assert first != second
        assert (await gateway.admin_sessions.identify(first)) is None
        assert (await gateway.admin_sessions.identify(second)) is not None


async def test_only_a_digest_of_the_cookie_is_stored_t027(gateway: Gateway) -> None:
    async with browser(gateway) as client:
        csrf = await signed_in(client)
        cookie = cookie_of(client)

    stored = repr(await gateway.rows("SELECT * FROM admin_sessions")) + repr(
        await gateway.rows("SELECT * FROM audit_log")
    )
    assert cookie not in stored
    assert csrf not in stored
    assert ADMIN_TOKEN not in stored


async def test_without_tls_an_operator_may_choose_a_cookie_that_browsers_keep(gateway: Gateway) -> None:
    open_gateway = replace(gateway, session_cookie=SessionCookie(is_insecure=True))

    async with browser(open_gateway, base="http://gateway.internal") as client:
        answer = await sign_in(client)
        assert (await client.get("/admin/")).status_code == 200

    assert "Secure" not in answer.headers["set-cookie"]
    assert answer.headers["set-cookie"].startswith("ag_session=")


@pytest.mark.parametrize(
    ("base", "is_warned"),
    [
        ("http://gateway.internal", True),
        ("https://gateway", False),
        ("http://localhost", False),
        ("http://[::1]", False),
    ],
)
async def test_the_sign_in_page_warns_of_a_connection_that_keeps_no_session(
    gateway: Gateway, base: str, is_warned: bool
) -> None:
    async with browser(gateway, base=base) as client:
        page = await client.get("/admin/sign-in")

    assert ("DASHBOARD_INSECURE_COOKIE" in page.text) is is_warned


# ── Credentials stay in their places (T025) ───────────────────────────────────────────────────────────────────────────


async def test_a_cookie_is_no_bearer_token_and_a_token_no_cookie_t025(gateway: Gateway) -> None:
    _, token = await new_admin(gateway)
    async with browser(gateway) as client:
        await signed_in(client)
        cookie = cookie_of(client)
        client.cookies.clear()

        as_bearer = await client.get("/admin/api/users", headers={"authorization": f"Bearer {cookie}"})
        assert as_bearer.status_code == 401
        for value in (token, ADMIN_TOKEN):
            as_cookie = await client.get("/admin/api/users", headers={"cookie": f"{COOKIE}={value}"})
            assert as_cookie.status_code == 401
            on_page = await client.get("/admin/", headers={"cookie": f"{COOKIE}={value}"})
            assert on_page.status_code == 303


async def test_a_session_uses_the_admin_api_as_its_administrator(gateway: Gateway) -> None:
    _, token = await new_admin(gateway, Role.VIEWER)
    async with browser(gateway) as client:
        csrf = await signed_in(client, token)

        assert (await client.get("/admin/api/users")).status_code == 200
        refused = await client.post("/admin/api/users", json=USER, headers={"x-csrf-token": csrf})
        assert refused.status_code == 403

    async with browser(gateway) as client:
        csrf = await signed_in(client)
        made = await client.post("/admin/api/users", json=USER, headers={"x-csrf-token": csrf})
        assert made.status_code == 201, made.text


async def test_with_an_authorization_header_the_cookie_is_not_looked_at_t029(gateway: Gateway) -> None:
    async with browser(gateway) as client:
        await signed_in(client)

        wrong = await client.get("/admin/api/users", headers={"authorization": "Bearer wrong"})
        assert wrong.status_code == 401
        right = {"authorization": f"Bearer {ADMIN_TOKEN}", "origin": "https://evil.example"}
        made = await client.post("/admin/api/users", json=USER, headers=right)
        assert made.status_code == 201, "a bearer call needs no CSRF token"


# ── What ends a session (T028) ────────────────────────────────────────────────────────────────────────────────────────


async def test_signing_out_ends_the_session_everywhere_t028(gateway: Gateway) -> None:
    async with browser(gateway) as client, browser(gateway) as other_replica:
        csrf = await signed_in(client)
        cookie = cookie_of(client)
        kept = {"cookie": f"{COOKIE}={cookie}"}
        assert (await other_replica.get("/admin/api/users", headers=kept)).status_code == 200

        answer = await client.post("/admin/sign-out", data={"csrf_token": csrf})

        assert (answer.status_code, answer.headers["location"]) == (303, "/admin/sign-in")
        assert "Max-Age=0" in answer.headers["set-cookie"]
        assert (await other_replica.get("/admin/api/users", headers=kept)).status_code == 401
        assert (await other_replica.get("/admin/", headers=kept)).status_code == 303
        again = await client.post("/admin/sign-out", data={"csrf_token": csrf})
        assert again.status_code == 303, "who is signed out already is no error"


@pytest.mark.parametrize("what", ["revoked", "role", "deleted", "expired", "rotated"])
async def test_whoever_loses_his_right_loses_his_session_at_once_t028(gateway: Gateway, what: str) -> None:
    admin_id, token = await new_admin(gateway)
    admins = gateway.management.admins
    async with browser(gateway) as client:
        await signed_in(client, token)

        match what:
            case "revoked":
                await admins.revoke(OWNER, admin_id)
            case "role":
                await admins.patch(OWNER, admin_id, {"role": Role.OWNER})
            case "deleted":
                await admins.delete(OWNER, admin_id)
            case "expired":
                await admins.patch(OWNER, admin_id, {"expires_at": gateway.clock.now() - timedelta(seconds=1)})
            case "rotated":
                _, new_token = await admins.rotate(OWNER, admin_id)
                assert new_token != token
                assert (await sign_in(client, token)).status_code == 401

        assert (await client.get("/admin/api/users")).status_code == 401


async def test_an_unused_session_ends_and_a_used_one_lives_until_its_last_hour_t028(gateway: Gateway) -> None:
    async with browser(gateway) as client:
        await signed_in(client)
        for _ in range(16):
            await gateway.clock.advance(45 * 60)
            if (await client.get("/admin/api/users")).status_code != 200:
                break
        opened = gateway.clock.now()
        assert (await client.get("/admin/api/users")).status_code == 401, "it was used, but twelve hours are over"

        await signed_in(client)
        await gateway.clock.advance(59 * 60)
        assert (await client.get("/admin/api/users")).status_code == 200
        await gateway.clock.advance(60 * 60)
        assert (await client.get("/admin/api/users")).status_code == 401
        assert gateway.clock.now() > opened


async def test_another_admin_token_in_the_settings_ends_the_sessions_of_the_old_one_t028(gateway: Gateway) -> None:
    async with browser(gateway) as client:
        await signed_in(client)
        cookie = cookie_of(client)

    changed = open_gateway(gateway.engine, admin_token="another-admin-token-of-these-tests-0123456789")
    async with browser(changed) as client:
        answer = await client.get("/admin/api/users", headers={"cookie": f"{COOKIE}={cookie}"})

    assert answer.status_code == 401


async def test_an_expiring_administrator_has_no_longer_session_than_himself(gateway: Gateway) -> None:
    ends_at = gateway.clock.now() + timedelta(minutes=5)
    _, token = await gateway.management.admins.create(OWNER, AdminSpec("temp", Role.ADMIN, ends_at))

    opened = await gateway.admin_sessions.open(token, address=None, user_agent="")

    assert opened.expires_at == ends_at


# ── Forged requests (T029) ────────────────────────────────────────────────────────────────────────────────────────────

FORGERIES = {
    "no token": {},
    "wrong token": {"x-csrf-token": "wrong"},
    "empty token": {"x-csrf-token": ""},
    "token beyond ascii": {"x-csrf-token": "é"},
    "foreign origin": {"x-csrf-token": "RIGHT", "origin": "https://evil.example"},
    "origin null": {"x-csrf-token": "RIGHT", "origin": "null"},
    "origin with our name in it": {"x-csrf-token": "RIGHT", "origin": "https://gateway.evil.example"},
    "origin on another port": {"x-csrf-token": "RIGHT", "origin": "https://gateway:8443"},
    "cross site": {"x-csrf-token": "RIGHT", "sec-fetch-site": "cross-site"},
    "same site": {"x-csrf-token": "RIGHT", "sec-fetch-site": "same-site"},
}


@pytest.mark.parametrize("forgery", FORGERIES)
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/admin/api/users"), ("DELETE", "/admin/api/users/victim"), ("POST", "/admin/keys")]
)
async def test_a_forged_request_changes_nothing_t029(gateway: Gateway, forgery: str, method: str, path: str) -> None:
    async with browser(gateway) as client:
        csrf = await signed_in(client)
        made = await client.post("/admin/api/users", json={"user_oid": "victim"}, headers={"x-csrf-token": csrf})
        assert made.status_code == 201
        headers = {name: csrf if value == "RIGHT" else value for name, value in FORGERIES[forgery].items()}
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]

        answer = await client.request(method, path, json=USER, headers=raw)

        assert answer.status_code == 403, answer.text
        users = (await client.get("/admin/api/users")).json()["items"]
        assert [user["user_oid"] for user in users] == ["victim"]


async def test_a_form_needs_its_token_once_and_right_t029(gateway: Gateway) -> None:
    async with browser(gateway) as client:
        csrf = await signed_in(client)

        right = await client.post("/admin/keys", data={"csrf_token": csrf, "name": "ci"})
        assert right.status_code == 200, right.text
        assert "'name': 'ci'" in right.json()["said"], "the page's own handler reads the same form"
        for fields in ({}, {"csrf_token": ""}, {"csrf_token": "x"}, {"csrf_token": [csrf, "x"]}):
            assert (await client.post("/admin/keys", data=fields)).status_code == 403
        plain = {"content-type": "text/plain"}
        forged = await client.post("/admin/keys", content=f"csrf_token={csrf}", headers=plain)
        assert forged.status_code == 403, "a text/plain form is no form of ours"
        hidden = await client.get(
            "/admin/api/users", params={"_method": "DELETE"}, headers={"x-http-method-override": "DELETE"}
        )
        assert hidden.status_code == 200, "a GET stays a GET"
        huge = await client.post("/admin/keys", data={"csrf_token": csrf, "name": "x" * 1_100_000})
        assert huge.status_code == 413


async def test_another_site_cannot_sign_a_browser_in_t029(gateway: Gateway) -> None:
    async with browser(gateway) as client:
        for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}):
            answer = await client.post("/admin/sign-in", data={"token": ADMIN_TOKEN}, headers=headers)
            assert answer.status_code == 403
            assert "set-cookie" not in answer.headers
        own = {"origin": "https://gateway", "sec-fetch-site": "same-origin"}
        answer = await client.post("/admin/sign-in", data={"token": ADMIN_TOKEN}, headers=own)
        assert answer.status_code == 303


async def test_a_session_of_one_is_no_use_with_the_token_of_another_t029(gateway: Gateway) -> None:
    async with browser(gateway) as mine, browser(gateway) as theirs:
        await signed_in(mine)
        csrf = await signed_in(theirs)

        answer = await mine.post("/admin/api/users", json=USER, headers={"x-csrf-token": csrf})

    assert answer.status_code == 403


# ── Throttling (T026) ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_after_ten_wrong_tokens_a_network_is_refused_unheard_and_the_right_holder_is_not_t026(
    gateway: Gateway,
) -> None:
    _, token = await new_admin(gateway)
    wrong = token[:-1] + ("A" if token[-1] != "A" else "B")
    async with browser(gateway) as client, browser(gateway, address="198.51.100.7") as elsewhere:
        for _ in range(10):
            assert (await sign_in(client, wrong)).status_code == 401

        refused = await sign_in(client, wrong)
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert (await sign_in(elsewhere, wrong)).status_code == 401
        assert (await sign_in(elsewhere, token)).status_code == 303
        assert (await sign_in(client, token)).status_code == 303, "nobody can lock the holder of a right token out"
        assert (await sign_in(client, ADMIN_TOKEN)).status_code == 303

        restarted = open_gateway(gateway.engine)
        restarted.clock._now = gateway.clock.now()
        async with browser(restarted) as after_restart:
            assert (await sign_in(after_restart, wrong)).status_code == 429

        await gateway.clock.advance(int(refused.headers["retry-after"]))
        assert (await sign_in(client, wrong)).status_code == 401, "Retry-After was true"


async def test_many_wrong_tokens_at_once_are_counted_one_by_one_t026(gateway: Gateway) -> None:
    async with browser(gateway) as client:
        answers = await asyncio.gather(*(sign_in(client, "wrong") for _ in range(30)))

    assert {answer.status_code for answer in answers} <= {401, 429}
    assert len(await gateway.rows("SELECT 1 FROM sign_in_failures")) == 10


async def test_all_addresses_of_one_ipv6_network_are_one_t026(gateway: Gateway) -> None:
    for number in range(10):
        async with browser(gateway, address=f"2001:db8:1:2:{number}::1") as client:
            assert (await sign_in(client, "wrong")).status_code == 401

    async with browser(gateway, address="2001:db8:1:2:ffff::1") as client:
        assert (await sign_in(client, "wrong")).status_code == 429
    async with browser(gateway, address="2001:db8:1:3::1") as client:
        assert (await sign_in(client, "wrong")).status_code == 401
    assert network_of("::ffff:192.0.2.1") == network_of("192.0.2.1") == "192.0.2.1"
    assert network_of("fe80::1%eth0") == "fe80::/64"
    assert network_of(None) == network_of("unix:") == "unknown"


async def test_a_database_that_is_away_counts_against_nobody_t026(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, token = await new_admin(gateway)
    store = type(gateway.admin_access)

    async def away(*_: object, **__: object) -> None:
        raise DependencyUnavailable("database")

    async with browser(gateway) as client:
        with monkeypatch.context() as broken:
            broken.setattr(store, "holder_of", away)
            for _ in range(12):
                assert (await sign_in(client, token)).status_code == 503

        assert await gateway.rows("SELECT 1 FROM sign_in_failures") == []
        assert (await sign_in(client, token)).status_code == 303


async def test_a_flood_of_failed_sign_ins_does_not_fill_the_trail_t026(gateway: Gateway) -> None:
    for number in range(70):
        await gateway.admin_sessions.note_failure("token", address=f"10.0.0.{number}", why="wrong token")

    rows = await gateway.rows("SELECT * FROM audit_log WHERE action = 'session.refused'")
    assert len(rows) == 60
    assert {(row["actor"], row["role"]) for row in rows} == {("nobody", "none")}
    assert (await gateway.audit.verify()).is_valid


# ── Pages (T018) ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_page_that_nobody_is_signed_in_for_leads_to_the_sign_in_and_back(gateway: Gateway) -> None:
    async with browser(gateway) as client:
        first = await client.get("/admin/keys?status=active&q=a%26b")
        assert first.status_code == 303
        form = await client.get(first.headers["location"])
        (next_path,) = re.findall(r'name="next" value="([^"]*)"', form.text)

        answer = await sign_in(client, next=next_path.replace("&amp;", "&"))

        assert answer.headers["location"] == "/admin/keys?status=active&q=a%26b"
        again = await client.get("/admin/sign-in?next=/admin/keys")
        assert (again.status_code, again.headers["location"]) == (303, "/admin/keys"), "signed in already"


@pytest.mark.parametrize(
    "wanted",
    [
        "https://evil.example/admin/",
        "//evil.example/admin/",
        "/\\evil.example",
        "/admin/../../evil",
        "/admin//evil.example",
        "javascript:alert(1)",
        "/adminx",
        "/v1/models",
        "/admin/sign-out",
        "/admin/sign-in?next=/admin/sign-in",
        "/admin/api/users",
        "/admin/keys\r\nSet-Cookie: a=b",
        "/admin/" + "x" * 3000,
        "",
    ],
)
async def test_after_signing_in_nobody_is_led_astray(gateway: Gateway, wanted: str) -> None:
    assert safe_next(wanted) == "/admin/"
    async with browser(gateway) as client:
        answer = await sign_in(client, next=wanted)
    assert (answer.status_code, answer.headers["location"]) == (303, "/admin/")


async def test_what_is_no_page_is_refused_without_a_session(gateway: Gateway) -> None:
    async with browser(gateway) as client:
        assert (await client.post("/admin/keys", data={"a": "b"})).status_code == 401
        part = await client.get("/admin/keys", headers={"hx-request": "true"})
        assert (part.status_code, part.headers["hx-redirect"]) == (401, "/admin/sign-in")
        as_json = await client.get("/admin/keys", headers={"accept": "application/json"})
        assert (as_json.status_code, as_json.json()["error"]["code"]) == (401, "invalid_api_key")


async def test_a_failed_sign_in_shows_the_form_again_without_what_was_typed(gateway: Gateway) -> None:
    async with browser(gateway) as client:
        answer = await sign_in(client, "<script>typed</script>", next="/admin/keys")

    assert answer.status_code == 401
    assert 'role="alert"' in answer.text
    assert "typed" not in answer.text
    assert 'value="/admin/keys"' in answer.text


# ── Headers (T030) ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "path", ["/admin/", "/admin/sign-in", "/admin/api/users", "/admin/api/nothing", "/admin/nothing"]
)
async def test_every_answer_under_admin_carries_the_policy_t030(gateway: Gateway, path: str) -> None:
    async with browser(gateway) as client, browser(gateway, base="http://localhost") as unencrypted:
        await signed_in(client)
        for answer in (await client.get(path), await unencrypted.get(path)):
            policy = answer.headers["content-security-policy"]
            assert "unsafe" not in policy
            for rule in ("default-src 'none'", "object-src 'none'", "base-uri 'none'", "frame-ancestors 'none'"):
                assert rule in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "same-origin"
            assert answer.headers["cache-control"] == "no-store"
            is_encrypted = answer.url.scheme == "https"
            assert ("strict-transport-security" in answer.headers) is is_encrypted
