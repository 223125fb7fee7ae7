"""Single sign-on at a provider of the tests' own: who gets in with which role, and everything that must not get anybody in."""

# ruff: noqa: F811 - fixtures are imported by name and asked for by name

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import httpx2
import pytest

from app.config import load_settings
from app.domain.sso import RolePolicy, values_of
from app.exceptions import SettingsError
from app.services.admin_sessions import AdminSessions
from app.storage.management_ports import AuditQuery
from app.storage.sql_sessions import SqlSessions
from app.wiring.from_settings import single_sign_on_of, sso_origin
from tests.admin_fixtures import (
    ADMIN_TOKEN,
    SECRET_KEY,
    Gateway,
    database,  # noqa: F401
    engine,  # noqa: F401
    gateway,  # noqa: F401
    open_app,
    postgres_url,  # noqa: F401
    template,  # noqa: F401
)
from tests.kit.oidc_provider import CLIENT_ID, CLIENT_SECRET, Json, OidcServer

Client = httpx2.AsyncClient
START, CALLBACK = "/admin/sign-in/sso", "/admin/sign-in/sso/callback"
ROLES = "owners=owner, team=admin, finance=billing, everybody=viewer"


def environment(provider: OidcServer, **changed: str) -> dict[str, str]:
    return {
        "SECRET_KEY": SECRET_KEY,
        "ADMIN_TOKEN": ADMIN_TOKEN,
        "PUBLIC_URL": "https://gateway",
        "OIDC_ISSUER": provider.issuer,
        "OIDC_CLIENT_ID": CLIENT_ID,
        "OIDC_CLIENT_SECRET": CLIENT_SECRET,
        "OIDC_ROLE_MAP": ROLES,
        **changed,
    }


def with_sso(gateway: Gateway, provider: OidcServer, **changed: str) -> Gateway:
    settings = load_settings(environment(provider, **changed))
    store = SqlSessions(gateway.engine)
    sessions = AdminSessions(
        access=gateway.admin_access,
        store=store,
        failures=store,
        clock=gateway.clock,
        peppers=[gateway.pepper],
        idle=timedelta(hours=1),
        lifetime=timedelta(hours=12),
        sso_origin=sso_origin(settings),
    )
    return replace(
        gateway, admin_sessions=sessions, single_sign_on=single_sign_on_of(settings, sessions, gateway.clock)
    )


@pytest.fixture
def provider(gateway: Gateway) -> Iterator[OidcServer]:
    with OidcServer(now=lambda: gateway.clock.now().timestamp()) as provider:
        provider.person["groups"] = ["team", "cafeteria"]
        yield provider


@asynccontextmanager
async def browser(gateway: Gateway) -> AsyncIterator[Client]:
    transport = httpx2.ASGITransport(app=open_app(gateway), raise_app_exceptions=False, client=("203.0.113.9", 1))
    headers = {"accept": "text/html"}
    async with httpx2.AsyncClient(transport=transport, base_url="https://gateway", headers=headers) as client:
        yield client


@pytest.fixture
async def client(gateway: Gateway, provider: OidcServer) -> AsyncIterator[Client]:
    async with browser(with_sso(gateway, provider)) as client:
        yield client


async def begin(client: Client, provider: OidcServer, next_path: str = "/admin/keys") -> dict[str, str]:
    """Go to the provider and sign in there; returns what it sends the browser back with."""
    begun = await client.get(START, params={"next": next_path})
    assert begun.status_code == 303, begun.text
    assert begun.headers["location"].startswith(f"{provider.issuer}/authorize?")
    return provider.authorize(begun.headers["location"])


async def finish(client: Client, answer: dict[str, str]) -> httpx2.Response:
    return await client.get(CALLBACK, params=answer)


def is_signed_in(answer: httpx2.Response) -> bool:
    return any(each.startswith("__Host-ag_session=") for each in answer.headers.get_list("set-cookie"))


# ── Who gets in ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_somebody_of_a_group_gets_its_role_and_the_page_he_wanted(
    client: Client, provider: OidcServer, gateway: Gateway
) -> None:
    answer = await finish(client, await begin(client, provider))

    assert (answer.status_code, answer.headers["location"]) == (303, "/admin/keys")
    (session,) = (await client.get("/admin/api/sessions")).json()["items"]
    assert (session["name"], session["role"], session["kind"]) == ("sso:ada@example.com", "admin", "sso")
    (entry,) = (await gateway.audit.page(AuditQuery(action="session.open"))).items
    assert (entry.actor, entry.role, entry.address) == ("sso:ada@example.com", "admin", "203.0.113.9")
    assert CLIENT_SECRET not in repr(await gateway.rows("SELECT * FROM audit_log"))


@pytest.mark.parametrize(
    ("groups", "role"),
    [
        (["everybody", "owners"], "owner"),
        (["finance"], "billing"),
        ("everybody", "viewer"),
        ({"not": "a list"}, None),
        ([["owners"], 1, None], None),
        (["Owners", "owners "], None),
        ([], None),
        (None, None),
    ],
)
async def test_of_several_groups_the_highest_role_counts_and_without_one_there_is_no_way_in(
    client: Client, provider: OidcServer, groups: object, role: str | None
) -> None:
    provider.person["groups"] = groups

    answer = await finish(client, await begin(client, provider))

    if role is None:
        assert answer.status_code == 403
        assert "no role here" in answer.text
        assert not is_signed_in(answer)
    else:
        assert (await client.get("/admin/api/sessions")).json()["items"][0]["role"] == role


async def test_groups_may_stand_at_a_path_or_in_the_user_information(gateway: Gateway, provider: OidcServer) -> None:
    provider.person["groups"] = None
    provider.person["realm_access"] = {"roles": ["owners"]}
    async with browser(with_sso(gateway, provider, OIDC_ROLE_CLAIM="realm_access.roles")) as client:
        assert is_signed_in(await finish(client, await begin(client, provider)))
    provider.userinfo = {"sub": "42", "groups": ["team"]}
    async with browser(with_sso(gateway, provider)) as client:
        assert is_signed_in(await finish(client, await begin(client, provider)))
        provider.userinfo = {"sub": "43", "groups": ["owners"]}
        assert (await finish(client, await begin(client, provider))).status_code == 401, "it is about somebody else"


async def test_an_address_that_the_provider_has_not_verified_names_nobody(client: Client, provider: OidcServer) -> None:
    provider.person["email_verified"] = False

    assert is_signed_in(await finish(client, await begin(client, provider)))

    assert (await client.get("/admin/api/sessions")).json()["items"][0]["name"] == "sso:42"


@pytest.mark.parametrize(
    ("email", "verified", "gets_in"),
    [
        ("ada@example.com", True, True),
        ("ada@EXAMPLE.com", True, True),
        ("ada@example.com", False, False),
        ("ada@example.com.evil.net", True, False),
        ("example.com", True, True),
        (None, True, False),
    ],
)
async def test_only_people_of_the_allowed_domains_get_in(
    gateway: Gateway, provider: OidcServer, email: str | None, verified: bool, gets_in: bool
) -> None:
    provider.person |= {"email": email, "email_verified": verified}
    async with browser(with_sso(gateway, provider, OIDC_EMAIL_DOMAINS="example.com, @example.org")) as client:
        answer = await finish(client, await begin(client, provider))

    assert is_signed_in(answer) is gets_in
    assert answer.status_code == (303 if gets_in else 403)


async def test_another_role_map_or_provider_ends_the_sessions_of_before(gateway: Gateway, provider: OidcServer) -> None:
    async with browser(with_sso(gateway, provider)) as client:
        await finish(client, await begin(client, provider))
        cookies = {"cookie": f"__Host-ag_session={client.cookies['__Host-ag_session']}"}
        assert (await client.get("/admin/api/sessions", headers=cookies)).status_code == 200
    for changed in (with_sso(gateway, provider, OIDC_ROLE_MAP="team=viewer"), gateway):
        async with browser(changed) as client:
            assert (await client.get("/admin/api/sessions", headers=cookies)).status_code == 401


# ── What must not get anybody in ──────────────────────────────────────────────────────────────────────────────────────


def unsigned(token: str) -> str:
    header = base64.urlsafe_b64encode(json.dumps({"alg": "none"}).encode()).decode().rstrip("=")
    return f"{header}.{token.split('.')[1]}."


def without_signature(token: str) -> str:
    return token.rpartition(".")[0] + "."


def tampered(token: str) -> str:
    head, body, signature = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "==")) | {"groups": ["owners"]}
    return f"{head}.{base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip('=')}.{signature}"


TOKENS: dict[str, Callable[[str], str]] = {
    "alg none": unsigned,
    "no signature": without_signature,
    "tampered": tampered,
    "no token": lambda token: "",
    "garbage": lambda token: "a.b.c",
    "not ascii": lambda token: "é.é.é",
}


@pytest.mark.parametrize("how", TOKENS)
async def test_a_token_without_the_providers_signature_gets_nobody_in(
    client: Client, provider: OidcServer, how: str
) -> None:
    provider.change_token = TOKENS[how]

    answer = await finish(client, await begin(client, provider))

    assert answer.status_code == 401, answer.text
    assert not is_signed_in(answer)


async def test_a_token_signed_with_the_client_secret_gets_nobody_in(client: Client, provider: OidcServer) -> None:
    def symmetric(token: str) -> str:
        body = token.split(".")[1]
        return provider.signed_with_the_client_secret(json.loads(base64.urlsafe_b64decode(body + "==")))

    provider.change_token = symmetric

    assert (await finish(client, await begin(client, provider))).status_code == 401


CLAIMS: dict[str, Json] = {
    "another nonce": {"nonce": "another"},
    "no nonce": {"nonce": None},
    "another issuer": {"iss": "https://evil.example"},
    "no issuer": {"iss": None},
    "another audience": {"aud": "another-client"},
    "no audience": {"aud": None},
    "for several and authorized for another": {"aud": [CLIENT_ID, "other"], "azp": "other"},
    "for several and authorized for nobody": {"aud": [CLIENT_ID, "other"]},
    "authorized for another": {"azp": "other"},
    "expired": {"exp": 1},
    "no expiry": {"exp": None},
    "an expiry that is no number": {"exp": "tomorrow"},
    "from the future": {"iat": 9_999_999_999},
    "old": {"iat": 1},
    "no subject": {"sub": None, "email": None},
    "a subject that is no text": {"sub": {"a": 1}, "email": None},
    "a name with a line's end": {"sub": "a\nb", "email": None},
}


@pytest.mark.parametrize("wrong", CLAIMS)
async def test_a_token_whose_claims_are_not_in_order_gets_nobody_in(
    client: Client, provider: OidcServer, gateway: Gateway, wrong: str
) -> None:
    provider.change_claims = lambda claims: claims.update(CLAIMS[wrong])

    answer = await finish(client, await begin(client, provider))

    assert answer.status_code == 401, answer.text
    assert not is_signed_in(answer)
    (entry,) = (await gateway.audit.page(AuditQuery(action="session.refused"))).items
    assert (entry.object_id, entry.actor) == ("sso", "nobody")


async def test_an_answer_that_this_browser_did_not_ask_for_gets_nobody_in(
    client: Client, gateway: Gateway, provider: OidcServer
) -> None:
    stolen = await begin(client, provider)
    async with browser(with_sso(gateway, provider)) as victim:
        assert (await finish(victim, stolen)).status_code == 401, "it began no sign-in"
        own = await begin(victim, provider)
        assert (await finish(victim, {**stolen, "state": own["state"]})).status_code == 401, "the code is another's"
        own = await begin(victim, provider)
        assert (await finish(victim, {**own, "state": "x"})).status_code == 401
    for answer in (
        {"error": "access_denied"},
        {"code": ""},
        {"iss": "https://evil.example"},
    ):
        given = await begin(client, provider)
        assert (await finish(client, {**given, **answer})).status_code == 401, answer
    given = await begin(client, provider)
    del given["iss"]
    assert (await finish(client, given)).status_code == 401, "this provider always says who it is"
    given = await begin(client, provider)
    twice = [*given.items(), ("code", "another")]
    assert (await client.get(CALLBACK, params=twice)).status_code == 401  # type: ignore[arg-type]


async def test_a_code_is_good_once_and_not_for_long(client: Client, provider: OidcServer, gateway: Gateway) -> None:
    answer = await begin(client, provider)
    pending = client.cookies["__Host-ag_sso"]
    first = await finish(client, answer)
    assert is_signed_in(first)
    assert any("ag_sso=;" in each and "Max-Age=0" in each for each in first.headers.get_list("set-cookie"))
    again = await client.get(CALLBACK, params=answer, headers={"cookie": f"__Host-ag_sso={pending}"})
    assert (again.status_code, is_signed_in(again)) == (401, False)

    late = await begin(client, provider)
    await gateway.clock.advance(601)
    assert (await finish(client, late)).status_code == 401
    for forged in ("", "x", "A" * 200, pending[:-4] + "AAAA"):
        answer = await begin(client, provider)
        client.cookies.delete("__Host-ag_sso")
        refused = await client.get(CALLBACK, params=answer, headers={"cookie": f"__Host-ag_sso={forged}"})
        assert refused.status_code == 401


async def test_failed_sign_ins_at_the_provider_slow_down_only_these(client: Client, provider: OidcServer) -> None:
    for _ in range(10):
        assert (await finish(client, {"code": "x", "state": "x"})).status_code == 401

    refused = await finish(client, {"code": "x", "state": "x"})
    assert refused.status_code == 429
    assert "retry-after" in refused.headers
    assert is_signed_in(await finish(client, await begin(client, provider))), "nobody else is locked out"
    by_token = await client.post("/admin/sign-in", data={"token": ADMIN_TOKEN})
    assert by_token.status_code == 303


# ── A provider that changes, or is away ───────────────────────────────────────────────────────────────────────────────


async def test_a_provider_may_change_its_keys(client: Client, provider: OidcServer, gateway: Gateway) -> None:
    assert is_signed_in(await finish(client, await begin(client, provider)))
    provider.rotate_key()
    await gateway.clock.advance(11)

    assert is_signed_in(await finish(client, await begin(client, provider)))

    fetched = provider.requests.count("/keys")
    for _ in range(3):
        provider.rotate_key()
        assert (await finish(client, await begin(client, provider))).status_code == 401
    assert provider.requests.count("/keys") == fetched, "unknown keys are asked for every ten seconds at most"


@pytest.mark.parametrize("path", ["/.well-known/openid-configuration", "/token", "/keys"])
async def test_a_provider_that_fails_is_no_failed_sign_in(
    client: Client, provider: OidcServer, gateway: Gateway, path: str
) -> None:
    provider.fails.add(path)
    if path.startswith("/.well-known"):
        answer = await client.get(START)
    else:
        answer = await finish(client, await begin(client, provider))

    assert answer.status_code == 503
    assert "single sign-on provider" in answer.text
    assert (await gateway.audit.page(AuditQuery(action="session.refused"))).items == []
    provider.fails.clear()
    assert is_signed_in(await finish(client, await begin(client, provider))), "and it heals by itself"


async def test_a_provider_that_is_not_there_is_no_failed_sign_in(gateway: Gateway) -> None:
    with OidcServer() as gone:
        pass
    async with browser(with_sso(gateway, gone)) as client:
        assert (await client.get(START)).status_code == 503
        assert "Sign in with single sign-on" in (await client.get("/admin/sign-in")).text


DISCOVERIES: dict[str, Json] = {
    "another issuer": {"issuer": "https://evil.example"},
    "no issuer": {"issuer": None},
    "a token endpoint that is no URL": {"token_endpoint": "file:///etc/passwd"},
    "no keys": {"jwks_uri": None},
}


@pytest.mark.parametrize("wrong", DISCOVERIES)
async def test_a_discovery_document_that_is_not_in_order_is_not_followed(
    client: Client, provider: OidcServer, wrong: str
) -> None:
    provider.change_discovery = lambda document: document.update(DISCOVERIES[wrong])

    assert (await client.get(START)).status_code == 503


async def test_without_settings_there_is_no_single_sign_on(gateway: Gateway) -> None:
    async with browser(gateway) as client:
        assert (await client.get(START)).status_code == 404
        assert "single sign-on" not in (await client.get("/admin/sign-in")).text


# ── Settings ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PUBLIC_URL", ""),
        ("OIDC_CLIENT_ID", ""),
        ("OIDC_ROLE_MAP", ""),
        ("OIDC_ISSUER", "http://login.example.com"),
        ("OIDC_ISSUER", "https://user:pw@login.example.com"),
        ("PUBLIC_URL", "https://gateway/path"),
    ],
)
def test_half_a_configuration_stops_the_start(provider: OidcServer, name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        load_settings(environment(provider, **{name: value}))


@pytest.mark.parametrize("role_map", ["team", "=admin", "team=boss", ",", "team=admin=x"])
def test_a_role_map_that_cannot_be_read_stops_the_start(gateway: Gateway, provider: OidcServer, role_map: str) -> None:
    with pytest.raises(SettingsError, match="OIDC_ROLE_MAP"):
        with_sso(gateway, provider, OIDC_ROLE_MAP=role_map)


def test_the_name_of_a_group_may_hold_the_sign_between_group_and_role() -> None:
    policy = RolePolicy.parse(claim="g", role_map="cn=team=admin", email_domains="")

    assert policy.role_of({"g": ["cn=team"]}) == "admin"
    assert values_of({"a": {"b": {"c": ["x", 1]}}, "a.b": "y"}, "a.b.c") == ["x"]
    assert values_of({"a.b": "y"}, "a.b") == ["y"]
    assert values_of({"a": "text"}, "a.b") == []
