"""Bodies of the admin API that are wrong, or written as people write them: never a 500, never a traceback."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.e2e.house import ADMIN_TOKEN, House, error_of, unique
from tests.kit import raw_http

NUL = "a\0b"
HOLDERS: dict[str, dict[str, Any]] = {
    "users": {"user_oid": NUL},
    "users, e-mail": {"user_oid": "x", "email": NUL},
    "keys": {"user_oid": NUL},
    "keys, models": {"user_oid": "x", "allowed_models": [NUL]},
    "keys, fallback": {"user_oid": "x", "overflow": {"mode": "fallback", "fallback_model": NUL}},
    "keys, labels": {"user_oid": "x", "labels": {"a": NUL}},
    "apps": {"app_id": NUL},
    "models": {"name": NUL},
    "models, alias": {"name": "x", "aliases": [NUL]},
    "models, fallback": {"name": "x", "fallbacks": [NUL]},
    "models, shadow": {"name": "x", "shadow": {"model": NUL, "percent": 1}},
    "endpoints": {"model": NUL, "provider": "demo"},
    "endpoints, address": {"model": "x", "provider": "openai", "api_base": f"https://{NUL}"},
    "admins": {"name": NUL, "role": "viewer"},
}


@pytest.mark.parametrize("name", HOLDERS)
async def test_t046_no_text_holds_a_nul(house: House, name: str) -> None:
    user = await house.user()
    body = {**HOLDERS[name], **({"user_oid": user} if name.startswith("keys,") else {})}
    answer = await house.ask_admin("POST", name.partition(",")[0], body)
    error = error_of(answer)
    assert (answer.status, error["code"]) == (400, "invalid_request"), answer.text
    assert error["param"]


async def test_a_limit_of_calls_at_once_has_no_window_whatever_is_said(house: House) -> None:
    """One shape for all kinds of limits: who fills in all of it means no harm."""
    for said in ({"window_seconds": 60}, {"window_seconds": 0}, {"window_seconds": None}, {}):
        made = await house.admin(
            "POST",
            "users",
            {"user_oid": unique("u"), "limits": [{"kind": "concurrency", "limit": 5, **said}]},
            expect=201,
        )
        assert made["limits"] == [{"kind": "concurrency", "limit": 5, "window_seconds": 0}]
    without = {"user_oid": unique("u"), "limits": [{"kind": "requests", "limit": 5, "window_seconds": None}]}
    refused = await house.admin("POST", "users", without, expect=400)
    assert refused["error"]["param"] == "limits[0].window_seconds"


BODIES = {
    "empty": b"",
    "truncated": b'{"user_oid": "x"',
    "utf-16": '{"user_oid": "x"}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"user_oid": "x"}',
    "bad UTF-8": b'{"user_oid": "\xff"}',
    "a lone surrogate": b'{"user_oid": "\\ud800"}',
    "a lone surrogate in a name": b'{"user_oid": "x", "\\ud800": 1}',
    "NaN": b'{"user_oid": "x", "limits": [{"kind": "requests", "limit": NaN, "window_seconds": 60}]}',
    "an infinite number": b'{"user_oid": "x", "limits": [{"kind": "requests", "limit": 1e999, "window_seconds": 60}]}',
    "a long number": b'{"user_oid": "x", "limits": [{"kind": "requests", "limit": '
    + b"9" * 5000
    + b', "window_seconds": 60}]}',
    "nested without end": b'{"user_oid": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a list": b"[]",
    "null": b"null",
    "text": b'"x"',
    "a member twice": b'{"user_oid": "twice-a", "user_oid": "twice-b"}',
}


@pytest.mark.parametrize("name", BODIES)
async def test_t044_a_body_that_is_none_is_refused_by_the_admin_api_too(house: House, name: str) -> None:
    answer = await raw_http.call(
        house.gateway.port,
        "POST",
        "/admin/api/users",
        headers={"Authorization": f"Bearer {ADMIN_TOKEN}", "Content-Type": "application/json"},
        body=BODIES[name],
    )
    assert answer.status == 400, answer.text
    assert error_of(answer)["code"] in ("invalid_json", "invalid_request", "missing_required_parameter")
    listed = await house.admin("GET", "users?search=twice-", expect=200)
    assert json.dumps(listed).count("twice-") == 0
