"""The admin API as administrators see it: shapes, refusals, roles, and what is never shown."""

# ruff: noqa: F811 - fixtures are imported by name and asked for by name

from __future__ import annotations

import asyncio
import csv
import io
import json
import time
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import httpx2
import pytest
from sqlalchemy import event

from app.domain.access import Actor, Role
from app.domain.breaker import Fault
from app.domain.endpoint_figures import Figures, LastFault
from app.domain.record import CallContent
from app.exceptions import AttemptFailed, DependencyUnavailable, FailureKind, GatewayError, UpstreamError
from app.routers import admin, alerts, apps, management, sessions
from app.routers.rights import PREFIX, RIGHTS
from app.services.api_key import ADMIN_TOKEN_PREFIX, KEY_PREFIX, new_key
from app.storage.management_ports import AdminSpec, AuditQuery, ManagementReader
from app.storage.sql_management import SqlManagement
from app.storage.sql_reports import SqlReportStore
from app.storage.sql_usage import SqlUsageStore
from tests.admin_fixtures import (
    ADMIN_TOKEN,
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
from tests.calls import an_endpoint
from tests.storage.records import a_record

Client = httpx2.AsyncClient
INJECTIONS = ["' OR 1=1--", "';SELECT pg_sleep(5)--", "$1", "\\", "%%%%", "_", "x" * 10_000, "{{7*7}}", "💥"]
SECRET = "sk-upstream-very-secret-1234"
OWNER = Actor("owner", Role.OWNER)


async def _ok(call: Any, status: int = 200) -> Any:
    response = await call
    assert response.status_code == status, response.text
    return response.json() if response.content else None


async def _refused(call: Any, status: int, code: str, param: str | None = None) -> str:
    response = await call
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code", "request_id"}
    assert body["error"]["code"] == code, body
    if param is not None:
        assert body["error"]["param"] == param, body
    assert response.headers["x-request-id"] == response.headers["request-id"] == body["error"]["request_id"]
    return str(body["error"]["message"])


async def _with_user(api: Client) -> None:
    await _ok(api.post("/users", json={"user_oid": "u"}), 201)


async def _with_endpoint(api: Client, **fields: Any) -> Any:
    await _ok(api.post("/models", json={"name": "gpt-4"}), 201)
    body = {
        "model": "gpt-4",
        "provider": "openai",
        "upstream_model": "gpt-4o",
        "api_base": "https://api.example.com/v1",
    }
    return await _ok(api.post("/endpoints", json={**body, **fields}), 201)


# ── Shapes ────────────────────────────────────────────────────────────────────────────────────────────────────────────

USER = {
    "user_oid": "user-123",
    "email": "user@example.com",
    "name": "Zoë",
    "payment_status": "active",
    "payment_valid_until": "2026-12-31",
    "limits": [{"kind": "requests", "limit": 60, "window_seconds": 60}],
    "budgets": [{"period": "monthly", "soft_limit_usd": "8", "hard_limit_usd": "10", "reserve": "worst_case"}],
}
KEY = {
    "user_oid": "user-123",
    "name": "ci",
    "allowed_models": ["*"],
    "expires_at": None,
    "allowed_ips": ["10.0.0.0/8"],
    "log_content": None,
    "limits": [{"kind": "concurrency", "limit": 5, "window_seconds": 0}],
    "budgets": [{"period": "total", "soft_limit_usd": None, "hard_limit_usd": "0.5", "reserve": "expected"}],
    "overflow": {"mode": "queue", "max_wait_seconds": 10, "fallback_model": None},
}
APP = {
    "app_id": "crm",
    "name": "CRM",
    "is_active": True,
    "allowed_models": ["*"],
    "allowed_networks": [],
    "own_secret_only": False,
    "auto_create_users": False,
    "limits": [],
    "budgets": [],
}
MODEL = {
    "name": "openai/gpt-4",
    "aliases": ["gpt-4"],
    "strategy": "cost",
    "fallbacks": [],
    "context_window": 128000,
    "max_output_tokens": 4096,
    "price": {
        "input_usd_per_mtok": "2.5",
        "output_usd_per_mtok": "10",
        "cached_input_usd_per_mtok": "1.25",
        "request_usd": "0",
    },
    "limits": [],
    "budgets": [],
}
ENDPOINT = {
    "model": "openai/gpt-4",
    "provider": "openai",
    "upstream_model": "gpt-4o",
    "api_base": "https://api.example.com/v1",
    "weight": 1,
    "priority": 0,
    "max_concurrency": None,
    "requests_per_minute": 100,
    "tokens_per_minute": None,
    "timeouts": {"connect_seconds": 5, "first_token_seconds": 60, "between_tokens_seconds": 30, "total_seconds": 600},
    "health_check": {"kind": "none", "interval_seconds": 30},
}


def _holds(answer: Any, sent: Any) -> bool:
    """Everything that was sent is in the answer."""
    if isinstance(sent, dict):
        return all(name in answer and _holds(answer[name], value) for name, value in sent.items())
    return bool(answer == sent)


async def test_what_is_created_comes_back_with_what_the_contract_adds(api: Client) -> None:
    user = await _ok(api.post("/users", json=USER), 201)
    key = await _ok(api.post("/keys", json=KEY), 201)
    app = await _ok(api.post("/apps", json=APP), 201)
    model = await _ok(api.post("/models", json=MODEL), 201)
    endpoint = await _ok(api.post("/endpoints", json={**ENDPOINT, "api_key": SECRET}), 201)

    for answer, sent in ((user, USER), (key, KEY), (app, APP), (model, MODEL), (endpoint, ENDPOINT)):
        assert _holds(answer, sent), answer
    assert user["created_at"] == "2026-01-15T12:00:00.000000Z"
    assert key["key"].startswith(key["key_prefix"])
    assert (key["last4"], key["status"], key["created_at"]) == (key["key"][-4:], "active", user["created_at"])
    assert app["secret"].startswith("ag-app-")
    assert (endpoint["credential"], endpoint["state"]) == ("…1234", "closed")
    for path in ("/users/user-123", f"/keys/{key['id']}", "/apps/crm", "/models/openai/gpt-4"):
        shown = await _ok(api.get(path))
        assert not {"key", "secret", "api_key"} & set(shown)


async def test_a_key_without_limits_has_the_defaults_and_one_with_an_empty_list_has_none(api: Client) -> None:
    await _with_user(api)

    default = await _ok(api.post("/keys", json={"user_oid": "u"}), 201)
    none = await _ok(api.post("/keys", json={"user_oid": "u", "limits": []}), 201)

    assert (default["limits"], default["has_own_limits"]) == (None, False)
    assert (none["limits"], none["has_own_limits"]) == ([], True)


async def test_a_patch_changes_only_what_it_names(api: Client) -> None:
    before = await _ok(api.post("/users", json=USER), 201)

    after = await _ok(api.patch("/users/user-123", json={"payment_status": "suspended", "email": None}))

    assert after == {**before, "payment_status": "suspended", "email": None}


async def test_payment_expires_and_is_renewed(api: Client, gateway: Gateway) -> None:
    await _ok(api.post("/users", json={**USER, "payment_valid_until": "2026-01-14"}), 201)

    synced = await _ok(api.post("/users/user-123/sync-expiry"))
    bulk = await _ok(api.post("/users/sync/bulk-expiry"))
    renewed = await _ok(
        api.patch("/users/user-123", json={"payment_valid_until": "2027-01-01", "payment_status": "active"})
    )

    assert synced == {
        "user_oid": "user-123",
        "email": "user@example.com",
        "payment_valid_until": "2026-01-14",
        "payment_status": "expired",
        "synced": True,
    }
    assert bulk == {"checked": 1, "expired": 0, "timestamp": "2026-01-15T12:00:00.000000"}
    assert (renewed["payment_valid_until"], renewed["payment_status"]) == ("2027-01-01", "active")
    assert [row.action for row in (await gateway.audit.page(AuditQuery())).items] == [
        "user.update",
        "user.expire",
        "user.create",
    ]


@pytest.mark.parametrize(
    ("stored", "change", "expected"),
    [
        ("expired", {"payment_valid_until": "2026-01-15"}, "active"),
        ("expired", {"payment_valid_until": None}, "active"),
        ("expired", {"payment_valid_until": "2026-01-14"}, "expired"),
        ("expired", {"payment_valid_until": "2027-01-01", "payment_status": "expired"}, "expired"),
        ("expired", {"name": "x"}, "expired"),
        ("suspended", {"payment_valid_until": "2027-01-01"}, "suspended"),
        ("trial", {"payment_valid_until": "2027-01-01"}, "trial"),
    ],
)
async def test_a_later_last_day_brings_an_expired_user_back(
    api: Client, stored: str, change: dict[str, Any], expected: str
) -> None:
    """T010."""
    await _ok(
        api.post("/users", json={"user_oid": "u", "payment_status": stored, "payment_valid_until": "2026-01-01"}), 201
    )

    assert (await _ok(api.patch("/users/u", json=change)))["payment_status"] == expected


async def test_a_keys_status_is_shown_as_active_expired_or_revoked(api: Client) -> None:
    await _with_user(api)
    past = await _ok(api.post("/keys", json={"user_oid": "u", "expires_at": "2020-01-01T00:00:00+02:00"}), 201)
    live = await _ok(api.post("/keys", json={"user_oid": "u"}), 201)
    gone = await _ok(api.post("/keys", json={"user_oid": "u"}), 201)
    await _ok(api.post(f"/keys/{gone['id']}/revoke"))

    assert past["expires_at"] == "2019-12-31T22:00:00.000000Z"
    for status, key in (("expired", past), ("active", live), ("revoked", gone)):
        page = await _ok(api.get("/keys", params={"status": status}))
        assert [item["id"] for item in page["items"]] == [key["id"]]
        assert page["items"][0]["status"] == status


async def test_lists_page_through_everything_once_newest_first(api: Client, gateway: Gateway) -> None:
    for number in range(7):
        await _ok(api.post("/users", json={"user_oid": f"u{number}"}), 201)
        if number % 2:
            await gateway.clock.advance(1)

    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = await _ok(api.get("/users", params={"limit": 3} | ({"cursor": cursor} if cursor else {})))
        assert set(page) == {"items", "next_cursor"}
        seen += [item["user_oid"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break

    assert seen == [f"u{number}" for number in (6, 5, 4, 3, 2, 1, 0)]


async def test_search_takes_words_as_they_are(api: Client) -> None:
    for oid, name in (("a", "100% Zoë"), ("b", "100 Zoé"), ("c_d", "x"), ("cxd", "x")):
        await _ok(api.post("/users", json={"user_oid": oid, "name": name}), 201)

    async def found(words: str) -> list[str]:
        page = await _ok(api.get("/users", params={"search": words}))
        return sorted(item["user_oid"] for item in page["items"])

    assert await found("100%") == ["a"]
    assert await found("ZOË") == ["a"]
    assert await found("c_d") == ["c_d"]
    assert await found("%") == ["a"]


# ── Refusals ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("/users", {"user_oid": "x", "role": "owner", "is_admin": True}, ["role", "is_admin"]),
        ("/users", {"user_oid": "x", "limits": [{"kind": "tokens", "limit": 1, "spent": 0}]}, ["limits[0].spent"]),
        ("/keys", {"user_oid": "u", "key_hash": "x", "tenant_id": 1}, ["key_hash", "tenant_id"]),
        ("/apps", {"app_id": "x", "secret": "s"}, ["secret"]),
        ("/models", {"name": "m", "price": {"input_usd_per_mtok": "1", "output_usd_per_mtok": "1", "free": True}}, ["price.free"]),
        ("/endpoints", {"model": "m", "provider": "demo", "credential": "x", "timeouts": {"x": 1}}, ["timeouts.x", "credential"]),
        ("/admins", {"name": "x", "role": "viewer", "scopes": ["all"]}, ["scopes"]),
    ],
)  # fmt: skip
async def test_unknown_fields_are_refused_by_name_and_nothing_changes(
    api: Client,
    gateway: Gateway,
    path: str,
    body: dict[str, Any],
    named: list[str],
) -> None:
    """T020."""
    message = await _refused(api.post(path, json=body), 400, "invalid_request", named[0])

    assert all(f"'{name}'" in message for name in named)
    assert (await gateway.audit.page(AuditQuery())).items == []


@pytest.mark.parametrize("patched", ["/users/u", "/keys/{key}", "/apps/crm", "/models/gpt-4", "/endpoints/{endpoint}"])
async def test_a_patch_cannot_name_what_only_the_gateway_sets(api: Client, patched: str) -> None:
    """T020."""
    await _with_user(api)
    key = await _ok(api.post("/keys", json={"user_oid": "u"}), 201)
    await _ok(api.post("/apps", json={"app_id": "crm"}), 201)
    endpoint = await _with_endpoint(api)
    path = patched.format(key=key["id"], endpoint=endpoint["id"])

    for field in ("id", "created_at", "digest", "status", "key_prefix", "spent"):
        await _refused(api.patch(path, json={field: "x"}), 400, "invalid_request", field)


@pytest.mark.parametrize(
    "amount", [0.5, 1e3, True, "abc", "", "NaN", "Infinity", "-1", "0.0000000001", "9000000.01", None]
)
async def test_money_that_is_no_exact_amount_is_refused_by_its_field(api: Client, amount: object) -> None:
    budget = {"period": "daily", "hard_limit_usd": amount}
    message = await _refused(api.post("/users", json={"user_oid": "u", "budgets": [budget]}), 400, "invalid_request")

    assert "budgets[0]" in message


async def test_money_is_taken_as_a_string_or_a_whole_number_and_kept_to_the_nanodollar(api: Client) -> None:
    for sent, shown in ((10, "10"), ("0.000000001", "0.000000001"), ("9000000", "9000000"), ("1.50", "1.5"), (0, "0")):
        budgets = [{"period": "daily", "hard_limit_usd": sent}]
        await api.delete("/users/u")
        user = await _ok(api.post("/users", json={"user_oid": "u", "budgets": budgets}), 201)
        assert user["budgets"][0]["hard_limit_usd"] == shown


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"{bad", "invalid_json"),
        (b"\xff\xfe{}", "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"user_oid": ' + b"1" * 5_000 + b"}", "invalid_json"),
        (b"[]", "invalid_request"),
        (b"null", "invalid_request"),
        (b"{}", "missing_required_parameter"),
        (b'{"user_oid": "\\ud800"}', "invalid_request"),
        (b'{"user_oid": "a\\u0000b"}', "invalid_request"),
        (b'{"user_oid": NaN}', "invalid_json"),
        (b'{"user_oid": 5}', "invalid_request"),
    ],
)
async def test_a_body_that_cannot_be_read_is_refused_in_our_shape(api: Client, content: bytes, code: str) -> None:
    headers = {"content-type": "application/json"}
    await _refused(api.post("/users", content=content, headers=headers), 400, code)


async def test_a_body_that_is_not_called_json_is_refused(api: Client) -> None:
    for headers in (
        {"content-type": "text/plain"},
        {"content-encoding": "gzip", "content-type": "application/json"},
        {},
    ):
        sent = api.post("/users", content=b'{"user_oid": "x"}', headers=headers)
        await _refused(sent, 415, "unsupported_media_type")


async def test_an_oversized_body_is_refused(api: Client) -> None:
    await _refused(api.post("/users", json={"user_oid": "x" * 2_000_000}), 413, "payload_too_large")


async def test_paths_and_methods_that_are_not_there_answer_in_our_shape(api: Client) -> None:
    await _refused(api.get("/nothing"), 404, "not_found")
    assert "GET, HEAD, POST" in await _refused(api.put("/users"), 405, "method_not_allowed")
    for path in ("/users/nobody", "/keys/nope", "/keys/%27", "/apps/x", "/models/x/y", "/endpoints/x", "/admins/x"):
        await _refused(api.get(path), 404, "not_found")
    await _refused(api.get("/users/a%00b"), 404, "not_found")
    await _refused(api.get("/users?search=%00"), 400, "invalid_request", "search")


@pytest.mark.parametrize(
    "path",
    ["/users", "/users?limit=1", "/users/u", "/users/nobody", "/usage/summary", "/usage/logs?limit=0"],
)
async def test_head_answers_as_get_does_without_a_body(api: Client, path: str) -> None:
    await _with_user(api)
    got, headed = await api.get(path), await api.head(path)
    assert (headed.status_code, headed.content) == (got.status_code, b"")
    fresh = {"x-request-id", "request-id"}
    assert {name: value for name, value in headed.headers.items() if name not in fresh} == {
        name: value for name, value in got.headers.items() if name not in fresh
    }


async def test_head_of_what_has_no_get_is_refused_and_does_nothing(api: Client) -> None:
    await _with_user(api)
    assert (await api.head("/keys/x/revoke")).status_code == 405
    assert (await api.head("/nothing")).status_code == 404


async def test_what_goes_wrong_inside_is_told_without_detail(gateway: Gateway) -> None:
    await gateway.execute("ALTER TABLE users RENAME TO lost")
    async with open_client(open_app(gateway)) as api:
        message = await _refused(api.get("/users"), 500, "internal_error")

    assert "users" not in message


async def test_a_database_that_is_away_is_a_503_and_not_half_an_export(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object, **__: object) -> None:
        raise DependencyUnavailable("database")

    monkeypatch.setattr(SqlReportStore, "_next_records", away)
    async with open_client(open_app(gateway)) as api:
        await _refused(api.get("/usage/export"), 503, "dependency_unavailable")


# ── Who may ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _routes() -> list[str]:
    routers = (*admin.routers, *alerts.routers, *apps.routers, *management.routers, *sessions.routers)
    return sorted(f"{method} {route.path}" for router in routers for route in router.routes for method in route.methods)  # type: ignore[attr-defined]


def test_the_table_of_rights_lists_exactly_the_routes_there_are() -> None:
    assert _routes() == sorted(f"{method} {PREFIX}{path}" for method, _, path in (r.partition(" ") for r in RIGHTS))


def _concrete(route: str) -> tuple[str, str]:
    method, path = route.split(" ")
    for name in ("user_oid:path", "name:path", "key_id", "app_id", "endpoint_id", "admin_id", "request_id"):
        path = path.replace("{" + name + "}", "00000000-0000-4000-8000-000000000000")
    return method, path.removeprefix(PREFIX)


@pytest.mark.parametrize("route", _routes())
async def test_no_route_answers_without_an_admin_credential_nor_reads_a_body_before(
    gateway: Gateway,
    route: str,
) -> None:
    user_key = new_key(gateway.pepper).secret
    method, path = _concrete(route)
    wrong = [
        *(
            "",
            "Bearer",
            "Bearer ",
            "Basic x",
            f"Bearer {user_key}",
            f"Bearer {ADMIN_TOKEN}x",
            f"Bearer {ADMIN_TOKEN[:-1]}",
        ),
        *(f"Bearer {new_key(gateway.pepper, ADMIN_TOKEN_PREFIX).secret}", f"Bearer  {ADMIN_TOKEN}", ADMIN_TOKEN),
    ]
    async with open_client(open_app(gateway), token=None) as client:
        for authorization in wrong:
            headers = {"authorization": authorization, "content-type": "application/json"}
            await _refused(client.request(method, path, content=b"{bad", headers=headers), 401, "invalid_api_key")
        await _refused(client.request(method, path), 401, "invalid_api_key")


async def _status_of(gateway: Gateway, role: Role, route: str) -> int:
    _, token = await gateway.management.admins.create(Actor("t", Role.OWNER), AdminSpec(role.value, role))
    method, path = _concrete(route)
    body = b'{"limits": []}' if method in ("POST", "PATCH") else b""
    headers = {"content-type": "application/json"} if body else {}
    async with open_client(open_app(gateway), token) as client:
        return (await client.request(method, path, content=body, headers=headers)).status_code


@pytest.mark.parametrize("route", _routes())
async def test_each_role_may_what_it_is_for(gateway: Gateway, route: str) -> None:
    method, path = route.split(" ")
    reads = method == "GET"
    bills = path.startswith(f"{PREFIX}/users")

    may = {role: await _status_of(gateway, role, route) != 403 for role in Role}

    assert may == {Role.OWNER: True, Role.ADMIN: True, Role.BILLING: reads or bills, Role.VIEWER: reads}


async def test_billing_may_change_a_keys_budgets_and_nothing_else_of_it(api: Client, gateway: Gateway) -> None:
    await _with_user(api)
    key = await _ok(api.post("/keys", json={"user_oid": "u"}), 201)
    _, token = await gateway.management.admins.create(Actor("t", Role.OWNER), AdminSpec("b", Role.BILLING))

    async with open_client(open_app(gateway), token) as billing:
        budgets = [{"period": "daily", "hard_limit_usd": "1"}]
        await _ok(billing.patch(f"/keys/{key['id']}", json={"budgets": budgets}))
        for body in ({"name": "x"}, {"budgets": budgets, "limits": []}):
            await _refused(billing.patch(f"/keys/{key['id']}", json=body), 403, "forbidden")


async def test_a_refused_attempt_is_in_the_trail(gateway: Gateway) -> None:
    _, token = await gateway.management.admins.create(Actor("t", Role.OWNER), AdminSpec("Vic", Role.VIEWER))
    async with open_client(open_app(gateway), token) as viewer:
        await _refused(viewer.post("/users", json={"user_oid": "x"}), 403, "forbidden")

    (newest, *_) = (await gateway.audit.page(AuditQuery())).items
    assert (newest.actor, newest.action, newest.object_id) == ("Vic", "access.refused", "POST /admin/api/users")
    assert newest.address == "203.0.113.9"
    assert (await gateway.audit.verify()).is_valid


async def test_an_admin_token_ends_when_it_expires_is_revoked_or_deleted(api: Client, gateway: Gateway) -> None:
    made = [await _ok(api.post("/admins", json={"name": n, "role": "viewer"}), 201) for n in ("a", "b", "c")]
    await _ok(api.patch(f"/admins/{made[0]['id']}", json={"expires_at": "2026-01-15T12:00:01Z"}))

    async def status(token: str) -> int:
        async with open_client(open_app(gateway), token) as client:
            return (await client.get("/users")).status_code

    assert [await status(each["token"]) for each in made] == [200, 200, 200]
    await gateway.clock.advance(1)
    await _ok(api.post(f"/admins/{made[1]['id']}/revoke"))
    await _ok(api.delete(f"/admins/{made[2]['id']}"), 204)
    assert [await status(each["token"]) for each in made] == [401, 401, 401]


async def test_two_authorization_headers_are_refused(gateway: Gateway) -> None:
    async with open_client(open_app(gateway), token=None) as client:
        twice = [("authorization", f"Bearer {ADMIN_TOKEN}"), ("authorization", f"Bearer {ADMIN_TOKEN}")]
        await _refused(client.get("/users", headers=twice), 400, "ambiguous_credentials")


# ── Hostile words ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("words", INJECTIONS)
async def test_hostile_words_change_nothing_and_are_answered_quickly(api: Client, gateway: Gateway, words: str) -> None:
    """T002: they reach the database as parameters, never as a part of a statement."""
    await _with_user(api)
    await _ok(api.post("/keys", json={"user_oid": "u"}), 201)
    slowest_s = 0.0
    statements: set[str] = set()
    event.listen(gateway.engine.sync_engine, "before_cursor_execute", lambda *given: statements.add(str(given[2])))

    for path in ("/users", "/keys", "/apps", "/models", "/endpoints", "/admins", "/usage/logs"):
        for name in ("search", "cursor", "status", "user_oid", "model", "key_id", "outcome"):
            began_s = time.monotonic()
            response = await api.get(path, params={name: words})
            slowest_s = max(slowest_s, time.monotonic() - began_s)
            assert response.status_code in (200, 400), response.text
    for path in ("/users/", "/keys/", "/apps/", "/models/", "/endpoints/", "/usage/logs/"):
        response = await api.get(path + words.replace("/", "").replace("%", "%25"))
        assert response.status_code in (400, 404), response.text
    async with open_client(open_app(gateway), token=None) as stranger:
        header = f"Bearer {words}".encode()
        assert (await stranger.get("/users", headers={b"authorization": header})).status_code == 401

    assert statements
    assert words in ("$1", "\\", "_") or not [
        each for each in statements if words in each
    ]  # these stand in ours as well
    assert slowest_s < 4.5  # a pg_sleep(5) would be longer, a busy machine is not
    (counts,) = await gateway.rows("SELECT (SELECT count(*) FROM users) AS users, (SELECT count(*) FROM keys) AS keys")
    assert counts == {"users": 1, "keys": 1}


async def test_template_and_environment_words_are_kept_as_they_are(api: Client) -> None:
    for number, words in enumerate(["{{7*7}}", "${PATH}", "os.environ/SECRET_KEY", "<img onerror=x>", "=cmd()"]):
        user = await _ok(api.post("/users", json={"user_oid": f"u{number}", "name": words}), 201)
        assert user["name"] == words


# ── What is never shown ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_no_route_ever_shows_a_credential_a_digest_or_the_pepper(api: Client, gateway: Gateway) -> None:
    """T033."""
    await _with_user(api)
    key = await _ok(api.post("/keys", json={"user_oid": "u"}), 201)
    app = await _ok(api.post("/apps", json={"app_id": "crm"}), 201)
    staff = await _ok(api.post("/admins", json={"name": "a", "role": "viewer"}), 201)
    endpoint = await _with_endpoint(api, api_key=SECRET)
    rotated = await _ok(api.post(f"/keys/{key['id']}/rotate", json={"grace_seconds": 60}))
    (stored,) = await gateway.rows("SELECT credential_sealed FROM endpoints")
    digests = [
        row["digest"] for row in await gateway.rows("SELECT digest FROM keys UNION SELECT digest FROM app_secrets")
    ]

    shown = ""
    for route in _routes():
        method, path = _concrete(route)
        if method == "GET":
            shown += (await api.get(path)).text
    for path in (f"/keys/{key['id']}", "/apps/crm", f"/admins/{staff['id']}", f"/endpoints/{endpoint['id']}"):
        shown += (await api.get(path)).text
    shown += (await api.patch(f"/endpoints/{endpoint['id']}", json={"weight": 2, "api_key": SECRET})).text
    shown += (await api.patch(f"/endpoints/{endpoint['id']}", json={"api_key": {"x": SECRET}})).text
    shown += json.dumps([str(row) for row in await gateway.rows("SELECT * FROM audit_log")])

    secrets = [SECRET, key["key"], rotated["key"], app["secret"], staff["token"], ADMIN_TOKEN, gateway.pepper.hex()]
    secrets += [digest.hex() for digest in digests] + [stored["credential_sealed"].hex(), "hidden-password"]
    assert [secret for secret in secrets if secret in shown] == []


async def test_a_credential_is_not_logged(
    api: Client, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    await _with_user(api)
    key = await _ok(api.post("/keys", json={"user_oid": "u"}), 201)
    await _with_endpoint(api, api_key=SECRET)
    await api.post("/endpoints", json={"model": "gpt-4", "provider": "nope", "api_key": SECRET})

    written = "".join(capfd.readouterr()) + caplog.text
    assert SECRET not in written
    assert key["key"] not in written


# ── In use ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_deleting_what_is_in_use_names_what_uses_it_unless_forced(api: Client) -> None:
    endpoint = await _with_endpoint(api)

    await _refused(api.delete(f"/endpoints/{endpoint['id']}"), 409, "in_use")
    assert endpoint["id"] in await _refused(api.delete("/models/gpt-4"), 409, "in_use")
    await _ok(api.delete("/models/gpt-4", params={"force": "true"}), 204)
    await _refused(api.get(f"/endpoints/{endpoint['id']}"), 404, "not_found")


async def test_a_model_that_keys_overflow_to_is_in_use(api: Client) -> None:
    await _with_user(api)
    await _ok(api.post("/models", json={"name": "spare"}), 201)
    overflow = {"mode": "fallback", "fallback_model": "spare"}
    key = await _ok(api.post("/keys", json={"user_oid": "u", "overflow": overflow}), 201)

    assert key["id"] in await _refused(api.delete("/models/spare"), 409, "in_use")
    await _ok(api.post(f"/keys/{key['id']}/revoke"))
    await _ok(api.delete("/models/spare"), 204)


async def test_an_endpoint_drains_and_comes_back_and_shows_its_breaker(api: Client, gateway: Gateway) -> None:
    endpoint = await _with_endpoint(api)
    path = f"/endpoints/{endpoint['id']}"
    _fail(gateway, endpoint["id"])

    assert (await _ok(api.post(f"{path}/drain")))["state"] == "draining"
    assert (await _ok(api.get("/health")))["endpoints"][0]["state"] == "draining"
    assert (await _ok(api.post(f"{path}/drain", json={"draining": False})))["state"] == "open"
    assert (await _ok(api.post(f"{path}/drain")))["state"] == "draining"
    assert (await _ok(api.post(f"{path}/undrain")))["state"] == "open"


async def test_what_happened_to_an_endpoint_is_told_with_time_and_reason_and_a_reset_ends_it(
    api: Client, gateway: Gateway
) -> None:
    endpoint = await _with_endpoint(api)
    path = f"/endpoints/{endpoint['id']}"
    _fail(gateway, endpoint["id"])

    shown = await _ok(api.get(path))
    assert shown["state"] == "open"
    live = shown["live"]
    assert (live["opened_by"], live["faults_in_row"], live["fault_percent"]) == ("error", 5, 100)
    assert live["last_fault"]["reason"] == "status_500"
    assert live["opens_in_seconds"] == 2.0

    assert (await _ok(api.post(f"{path}/reset")))["state"] == "closed"
    await _ok(api.post(f"{path}/drain"))
    events = (await _ok(api.get(f"{path}/events")))["items"]

    assert sorted((event["kind"], event["reason"]) for event in events) == [
        ("drained", "ADMIN_TOKEN"),
        ("opened", "error"),
        ("reset", "ADMIN_TOKEN"),
    ]
    (opened,) = [event for event in events if event["kind"] == "opened"]
    assert (opened["message"], opened["upstream_status"], opened["open_seconds"]) == ("it broke", 500, 2.0)
    actions = [row["action"] for row in (await _ok(api.get("/audit")))["items"]]
    assert "endpoint.reset" in actions


async def test_events_are_paged_and_those_of_a_deleted_endpoint_stay(api: Client, gateway: Gateway) -> None:
    endpoint = await _with_endpoint(api)
    path = f"/endpoints/{endpoint['id']}"
    for _ in range(3):
        await _ok(api.post(f"{path}/reset"))
        await gateway.clock.advance(1)
    await _ok(api.delete(path, params={"force": "true"}), 204)

    first = await _ok(api.get(f"{path}/events", params={"limit": 2}))
    rest = await _ok(api.get(f"{path}/events", params={"limit": 2, "cursor": first["next_cursor"]}))

    assert [len(first["items"]), len(rest["items"]), rest["next_cursor"]] == [2, 1, None]


async def test_fallbacks_that_lead_back_are_refused(api: Client) -> None:
    for name in ("a", "b", "c"):
        await _ok(api.post("/models", json={"name": name}), 201)
    await _ok(api.patch("/models/a", json={"fallbacks": ["b"]}))
    await _ok(api.patch("/models/b", json={"fallbacks": ["c"]}))

    message = await _refused(api.patch("/models/c", json={"fallbacks": ["a"]}), 400, "invalid_request", "fallbacks")

    assert "c → a → b → c" in message
    await _refused(api.patch("/models/a", json={"fallbacks": ["a"]}), 400, "invalid_request", "fallbacks[0]")
    await _refused(api.patch("/models/a", json={"fallbacks": ["nobody"]}), 400, "invalid_request", "fallbacks[0]")


async def test_a_model_without_any_weight_is_refused(api: Client) -> None:
    endpoint = await _with_endpoint(api)
    canary = {"model": "gpt-4", "provider": "openai", "api_base": "https://canary.example.com/v1", "weight": 0}
    await _ok(api.post("/endpoints", json=canary), 201)

    await _refused(api.patch(f"/endpoints/{endpoint['id']}", json={"weight": 0}), 400, "invalid_request", "weight")
    await _refused(api.patch(f"/endpoints/{endpoint['id']}", json={"weight": -1}), 400, "invalid_request", "weight")


async def test_routing_of_a_model_and_rules_of_a_breaker_come_back_as_they_were_given(api: Client) -> None:
    await _ok(api.post("/models", json={"name": "shadow"}), 201)
    routing = {"sticky": "prompt", "max_retries": 1, "shadow": {"model": "shadow", "percent": 5.0}}
    made = await _ok(api.post("/models", json={"name": "m", "strategy": "latency", **routing}), 201)
    assert {name: made[name] for name in routing} == routing
    assert {name: (await _ok(api.get("/models/m")))[name] for name in routing} == routing

    breaker = {"faults_in_row": 3, "slow_first_token_seconds": 1.5, "max_open_seconds": 60}
    body = {"model": "m", "provider": "openai", "api_base": "https://up.example.com/v1", "breaker": breaker}
    endpoint = await _ok(api.post("/endpoints", json=body), 201)
    shown = (await _ok(api.get(f"/endpoints/{endpoint['id']}")))["breaker"]
    assert {name: shown[name] for name in breaker} == breaker
    assert shown["fault_percent"] == 50

    await _refused(api.delete("/models/shadow"), 409, "in_use")
    await _ok(api.delete("/models/shadow", params={"force": "true"}), 204)
    assert (await _ok(api.get("/models/m")))["shadow"] is None
    unknown = {"shadow": {"model": "nobody", "percent": 5}}
    await _refused(api.patch("/models/m", json=unknown), 400, "invalid_request", "shadow.model")


async def test_the_figures_of_an_endpoint_are_those_of_all_processes(api: Client, gateway: Gateway) -> None:
    endpoint = await _with_endpoint(api)
    id, path = endpoint["id"], f"/endpoints/{endpoint['id']}"
    _fail(gateway, id)
    later_ms = int(gateway.clock.now().timestamp() * 1000) + 1000
    later = LastFault(later_ms, "timeout", "first_token_timeout")
    gateway.other_processes.others = [
        {id: Figures(in_flight=7, calls=95, faults=1, first_token_ms=200, last_fault=later)},
        {id: Figures(in_flight=1, calls=0, faults_in_row=2, open_in=1)},
        {},
    ]

    shown = await _ok(api.get(path))
    (listed,) = [each for each in (await _ok(api.get("/endpoints")))["items"] if each["id"] == id]

    live = shown["live"]
    assert live == listed["live"]
    assert (live["processes"], live["open_in"], live["in_flight"]) == (4, 2, 5 + 7 + 1), "those of _fail stay"
    assert (live["calls"], live["faults"], live["fault_percent"], live["faults_in_row"]) == (100, 6, 6, 5)
    assert live["first_token_ms"] == 200
    assert (live["last_fault"]["reason"], live["last_fault"]["message"]) == ("first_token_timeout", None)
    assert (shown["state"], live["opened_by"], live["opens_in_seconds"]) == ("open", "error", 2.0), (
        "as this process has it"
    )


async def test_while_redis_is_away_the_figures_are_those_of_the_process_that_answers(
    api: Client, gateway: Gateway
) -> None:
    endpoint = await _with_endpoint(api)
    _fail(gateway, endpoint["id"])
    gateway.other_processes.is_away = True

    live = (await _ok(api.get(f"/endpoints/{endpoint['id']}")))["live"]

    assert (live["processes"], live["open_in"], live["faults"]) == (1, 1, 5)
    assert live["last_fault"]["message"] == "it broke"


async def test_a_process_tells_of_endpoints_that_it_knows_something_of_and_keeps_their_words_to_itself(
    api: Client, gateway: Gateway
) -> None:
    known = await _with_endpoint(api)
    gateway.balancer.live(an_endpoint("untouched"))
    _fail(gateway, known["id"])

    await gateway.endpoint_care.tell()

    assert set(gateway.other_processes.told_last) == {known["id"]}
    told = gateway.other_processes.told_last[known["id"]]
    assert (told.calls, told.faults, told.faults_in_row, told.open_in) == (5, 5, 5, 1)
    assert told.last_fault is not None
    assert (told.last_fault.reason, told.last_fault.upstream_status) == ("status_500", 500)
    assert "it broke" not in repr(told)


def _fail(gateway: Gateway, endpoint_id: str) -> None:
    """As calls do that fail in a row."""
    live = gateway.balancer.live(an_endpoint(endpoint_id))
    for _ in range(5):
        failure = AttemptFailed(
            kind=FailureKind.NO_ANSWER, reason="status_500", error=UpstreamError(), upstream_status=500
        )
        gateway.balancer.failed(live, gateway.balancer.begin(live), failure, Fault.ERROR, "it broke")


async def test_another_host_needs_the_credential_again(api: Client) -> None:
    endpoint = await _with_endpoint(api, api_key=SECRET)
    path = f"/endpoints/{endpoint['id']}"

    await _refused(api.patch(path, json={"api_base": "https://evil.example.net"}), 400, "invalid_request", "api_key")
    moved = await _ok(api.patch(path, json={"api_base": "https://new.example.net", "api_key": "new-secret-9999"}))
    assert (moved["api_base"], moved["credential"]) == ("https://new.example.net", "…9999")
    bare = await _ok(api.patch(path, json={"api_key": None}))
    assert bare["credential"] is None


# ── Usage ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


LOG_FIELDS = set(
    "request_id client_request_id created_at user_oid key_id app_id requested_model served_model endpoint_id provider "  # noqa: SIM905
    "dialect is_stream outcome http_status error_code prompt_tokens completion_tokens cached_tokens reasoning_tokens "
    "usage_quality cost_usd first_token_ms duration_ms attempts".split()
)


async def _with_records(gateway: Gateway, count: int = 3, **fields: Any) -> list[str]:
    store = SqlUsageStore(gateway.engine)
    await store.ensure_partitions(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC))
    records = [a_record(at=datetime(2026, 1, 15, 10, 0, number, tzinfo=UTC), **fields) for number in range(count)]
    await store.write(records)
    return [record.request_id for record in records]


async def test_the_log_is_searched_paged_and_explained(api: Client, gateway: Gateway) -> None:
    ids = await _with_records(gateway, user_oid="u", cost_nanousd=1_234_500)

    first = await _ok(api.get("/usage/logs", params={"limit": 2, "user_oid": "u"}))
    second = await _ok(api.get("/usage/logs", params={"limit": 2, "user_oid": "u", "cursor": first["next_cursor"]}))
    found = await _ok(api.get("/usage/logs", params={"search": ids[0]}))
    explained = await _ok(api.get(f"/usage/logs/{ids[0]}"))

    assert [item["request_id"] for item in first["items"] + second["items"]] == ids[::-1]
    assert second["next_cursor"] is None
    assert [item["request_id"] for item in found["items"]] == [ids[0]]
    assert first["items"][0]["cost_usd"] == "0.001234500"
    assert set(first["items"][0]) >= LOG_FIELDS
    assert set(explained) >= {"attempt_details", "candidates", "limits", "budgets", "price", "arithmetic", "content"}


async def test_kept_content_is_shown_with_its_call(api: Client, gateway: Gateway) -> None:
    (request_id,) = await _with_records(gateway, count=1)
    created_at_ms = int(datetime(2026, 1, 15, 10, tzinfo=UTC).timestamp() * 1000)
    content = CallContent(request_id, created_at_ms, "u", b'{"a": "\xc3\xab"}', b"\xff", False)
    await SqlUsageStore(gateway.engine).write_content([content])

    explained = await _ok(api.get(f"/usage/logs/{request_id}"))

    assert explained["content"] == {"request": '{"a": "ë"}', "response": "\ufffd", "is_truncated": False}


async def test_sums_by_group_add_up_to_their_total_exactly(api: Client, gateway: Gateway) -> None:
    await _with_records(gateway, count=3, cost_nanousd=333_333_333)

    for group in ("key", "user", "app", "model", "endpoint", "hour", "day"):
        query = {"group_by": group, "from": "2026-01-15", "to": "2026-01-15"}
        summary = await _ok(api.get("/usage/summary", params=query))
        assert all(group in item for item in summary["items"])
        assert summary["total"]["requests"] == 3
        assert summary["total"]["cost_usd"] == "0.999999999"
        assert sum(Decimal(item["cost_usd"]) for item in summary["items"]) == Decimal("0.999999999")
    await _refused(api.get("/usage/summary", params={"group_by": "password"}), 400, "invalid_request", "group_by")
    await _refused(api.get("/usage/summary", params={"from": "yesterday"}), 400, "invalid_request", "from")


async def test_the_log_is_searched_by_cost_duration_and_the_callers_own_id(api: Client, gateway: Gateway) -> None:
    (cheap,) = await _with_records(gateway, count=1, cost_nanousd=1_000, duration_ms=10, client_request_id="mine")
    (dear,) = await _with_records(gateway, count=1, cost_nanousd=2_000_000_000, duration_ms=9_000)

    async def found(**params: str | int) -> list[str]:
        page = await _ok(api.get("/usage/logs", params=params))
        return [item["request_id"] for item in page["items"]]

    assert await found(min_cost_usd="0.000001001") == [dear]
    assert await found(max_cost_usd="0.000001") == [cheap]
    assert await found(min_duration_ms=9_000, max_duration_ms=9_000) == [dear]
    assert await found(client_request_id="mine") == [cheap]
    assert len(await found(is_stream="false")) + len(await found(is_stream="true")) == 2
    for name, value in (
        ("min_cost_usd", "abc"),
        ("max_cost_usd", "-1"),
        ("min_duration_ms", "1.5"),
        ("is_stream", "maybe"),
    ):
        await _refused(api.get("/usage/logs", params={name: value}), 400, "invalid_request", name)


async def test_calls_of_a_deleted_user_say_so_until_and_after_another_has_his_id(api: Client, gateway: Gateway) -> None:
    await _with_user(api)
    (before,) = await _with_records(gateway, count=1, user_oid="u")
    await _ok(api.delete("/users/u"), 204)
    await _with_user(api)
    store = SqlUsageStore(gateway.engine)
    later = a_record(at=datetime(2026, 1, 15, 13, tzinfo=UTC), user_oid="u")
    await store.write([later])

    page = await _ok(api.get("/usage/logs"))
    exported = (await api.get("/usage/export", params={"format": "ndjson"})).text.splitlines()

    expected = {before: True, later.request_id: False}
    assert {item["request_id"]: item["user_deleted"] for item in page["items"]} == expected
    assert {json.loads(line)["request_id"]: json.loads(line)["user_deleted"] for line in exported} == expected
    assert (await _ok(api.get(f"/usage/logs/{before}")))["user_deleted"] is True


async def test_sums_are_grouped_by_two_and_narrowed(api: Client, gateway: Gateway) -> None:
    await _with_records(gateway, count=2, user_oid="u")
    await _with_records(gateway, count=1, user_oid="v")

    query = {"group_by": "user,day", "from": "2026-01-15", "to": "2026-01-15", "user_oid": "u"}
    summary = await _ok(api.get("/usage/summary", params=query))

    assert [(item["user"], item["day"], item["requests"]) for item in summary["items"]] == [("u", "2026-01-15", 2)]
    assert summary["total"]["requests"] == 2


async def test_an_exports_cells_run_in_no_spreadsheet(api: Client, gateway: Gateway) -> None:
    hostile = ["=cmd()", "+1", "-1", "@x", "\tx", " =1", "＝1", 'a"b,c']
    for words in hostile:
        await _with_records(gateway, count=1, requested_model=words)

    exported = await api.get("/usage/export", params={"format": "csv"})
    lines = (await api.get("/usage/export", params={"format": "ndjson"})).text.splitlines()

    cells = {row["requested_model"] for row in csv.DictReader(io.StringIO(exported.text, newline=""))}
    assert exported.headers["content-type"] == "text/csv; charset=utf-8"
    assert cells == {f"'{words}" for words in hostile[:-1]} | {hostile[-1]}
    assert {json.loads(line)["requested_model"] for line in lines} == set(hostile)


async def test_a_keys_usage_holds_its_sums_and_what_its_budgets_have_left(api: Client, gateway: Gateway) -> None:
    await _with_user(api)
    budgets = [{"period": "daily", "hard_limit_usd": "10"}]
    key = await _ok(api.post("/keys", json={"user_oid": "u", "budgets": budgets}), 201)
    await _with_records(gateway, count=2, user_oid="u", key_id=key["id"], cost_nanousd=1_500_000_000)

    usage = await _ok(api.get(f"/keys/{key['id']}/usage"))

    assert (usage["key_id"], usage["requests"], usage["cost_usd"]) == (key["id"], 2, "3.000000000")
    (budget,) = usage["budgets"]
    assert (budget["spent_usd"], budget["remaining_usd"]) == ("3.000000000", "7.000000000")
    assert budget["resets_at"] == "2026-01-16T00:00:00.000000Z"


# ── The trail, the settings ───────────────────────────────────────────────────────────────────────────────────────────


async def test_the_trail_is_paged_filtered_and_verified(api: Client, gateway: Gateway) -> None:
    for number in range(4):
        await _ok(api.post("/users", json={"user_oid": f"u{number}"}), 201)

    first = await _ok(api.get("/audit", params={"limit": 3}))
    rest = await _ok(api.get("/audit", params={"limit": 3, "cursor": first["next_cursor"]}))
    one = await _ok(api.get("/audit", params={"object_id": "u2"}))

    assert [item["id"] for item in first["items"] + rest["items"]] == ["4", "3", "2", "1"]
    assert [item["after"]["oid"] for item in one["items"]] == ["u2"]
    assert await _ok(api.get("/audit/verify")) == {"verified": 4, "valid": True, "first_invalid_id": None}
    await gateway.execute("UPDATE audit_log SET actor = 'x' WHERE id = 2")
    assert await _ok(api.get("/audit/verify")) == {"verified": 1, "valid": False, "first_invalid_id": "2"}


async def test_settings_show_values_but_no_secrets(api: Client) -> None:
    items = (await _ok(api.get("/settings")))["items"]

    shown = {item["name"]: item["value"] for item in items}
    assert shown["RATE_LIMIT_REQUESTS_PER_MINUTE"] == 60
    assert (shown["SECRET_KEY"], shown["DATABASE_URL"], shown["REDIS_URL"]) == ("set", "set", None)


async def test_answers_are_not_kept_by_caches(api: Client) -> None:
    assert (await api.get("/users")).headers["cache-control"] == "no-store"


async def test_a_malformed_admin_token_is_refused_without_a_look_up(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("the database was asked")

    monkeypatch.setattr(SqlManagement, "reading", forbidden)
    token = new_key(gateway.pepper, ADMIN_TOKEN_PREFIX).secret
    flipped = token[:-1] + ("A" if token[-1] != "A" else "B")
    async with open_client(open_app(gateway), token=None) as client:
        for each in (flipped, token[:-1], f"{KEY_PREFIX}x", "x"):
            headers = {"authorization": f"Bearer {each}"}
            await _refused(client.get("/users", headers=headers), 401, "invalid_api_key")


async def test_a_patch_changes_only_what_it_names_of_what_is_made_of_several(api: Client) -> None:
    await _with_user(api)
    waits = {"mode": "queue", "max_wait_seconds": 7, "fallback_model": None}
    key = await _ok(api.post("/keys", json={"user_oid": "u", "overflow": waits}), 201)
    await _ok(api.post("/models", json={"name": "m"}), 201)
    timeouts = {"connect_seconds": 1, "first_token_seconds": 2, "between_tokens_seconds": 3, "total_seconds": 4}
    checks, breaker = {"kind": "none", "interval_seconds": 9}, {"faults_in_row": 3, "open_seconds": 20}
    endpoint = await _ok(
        api.post(
            "/endpoints",
            json={"model": "m", "provider": "demo", "timeouts": timeouts, "health_check": checks, "breaker": breaker},
        ),
        201,
    )

    patched = await _ok(api.patch(f"/keys/{key['id']}", json={"overflow": {"max_wait_seconds": 8}}))
    assert patched["overflow"] == {**waits, "max_wait_seconds": 8}
    named = {
        "timeouts": {"connect_seconds": 5},
        "health_check": {"interval_seconds": 10},
        "breaker": {"faults_in_row": 4},
    }
    patched = await _ok(api.patch(f"/endpoints/{endpoint['id']}", json=named))
    assert patched["timeouts"] == {**endpoint["timeouts"], "connect_seconds": 5}
    assert patched["health_check"] == {"kind": "none", "interval_seconds": 10}
    assert patched["breaker"] == {**endpoint["breaker"], "faults_in_row": 4}

    patched = await _ok(api.patch(f"/endpoints/{endpoint['id']}", json={"timeouts": {"first_token_seconds": 6}}))
    assert (patched["timeouts"]["unary_seconds"], patched["timeouts"]["total_seconds"]) == (6, 4)


async def test_a_window_that_is_sent_along_with_a_limit_on_concurrency_means_nothing(api: Client) -> None:
    await _with_user(api)
    limit = {"kind": "concurrency", "limit": 2, "window_seconds": 60}

    made = await _ok(api.post("/keys", json={"user_oid": "u", "limits": [limit]}), 201)

    assert made["limits"] == [{**limit, "window_seconds": 0}]
    await _refused(
        api.post("/keys", json={"user_oid": "u", "limits": [limit, {**limit, "window_seconds": 1}]}),
        400,
        "invalid_request",
    )


async def test_a_flood_of_wrong_admin_tokens_is_told_to_stay_away_and_the_rightful_ones_are_served(
    gateway: Gateway,
) -> None:
    """T026, for the API: from the same address too, and without a look-up for each guess."""
    _, token = await gateway.management.admins.create(OWNER, AdminSpec("ada", Role.VIEWER))
    async with open_client(open_app(gateway), token=None) as client:

        async def asked(shown: str) -> int:
            return (await client.get("/users", headers={"authorization": f"Bearer {shown}"})).status_code

        told = [await asked(f"guess {number}") for number in range(320)]
        refused = await client.get("/users", headers={"authorization": "Bearer guess"})

        assert (told[0], told[299], told[-1]) == (401, 401, 429)
        assert refused.json()["error"]["code"] == "too_many_failures"
        assert int(refused.headers["retry-after"]) >= 1
        assert [await asked(ADMIN_TOKEN), await asked(token)] == [200, 200]
        assert (await client.get("/users")).status_code == 401  # nothing was shown, so nothing was guessed


async def test_invented_admin_tokens_of_a_suspect_are_compared_a_few_times_a_second(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, revoked = await gateway.management.admins.create(OWNER, AdminSpec("gone", Role.VIEWER))
    await gateway.management.admins.revoke(OWNER, row.id)
    _, token = await gateway.management.admins.create(OWNER, AdminSpec("ada", Role.VIEWER))
    access, read = gateway.admin_access, SqlManagement.reading
    readings: list[None] = []

    def counted(store: SqlManagement) -> AbstractAsyncContextManager[ManagementReader]:
        readings.append(None)
        return read(store)

    async def identified(shown: str) -> object:
        try:
            return (await access.identify(f"Bearer {shown}", address="203.0.113.7")).name
        except GatewayError as error:
            return error.code

    for number in range(40):
        await identified(f"guess {number}")
    monkeypatch.setattr(SqlManagement, "reading", counted)
    guesses = [new_key(b"other", ADMIN_TOKEN_PREFIX).secret for _ in range(100)] + [revoked]
    asked = [asyncio.create_task(identified(shown)) for shown in guesses]
    mine = asyncio.create_task(identified(token))
    while not all(task.done() for task in (*asked, mine)):
        await gateway.clock.advance(0.1)

    assert {await task for task in asked} == {"invalid_api_key"}
    assert await mine == "ada"
    assert len(readings) < 10


async def test_many_changes_at_once_are_all_kept(api: Client, gateway: Gateway) -> None:
    await _with_user(api)

    answers = await asyncio.gather(*(api.post("/keys", json={"user_oid": "u"}) for _ in range(20)))

    assert {answer.status_code for answer in answers} == {201}
    (row,) = await gateway.rows("SELECT count(DISTINCT digest) AS keys FROM keys")
    assert row["keys"] == 20
