"""The admin API under hostile hands: what is stored is shown as text, what is secret is never shown, checks lead nowhere new.

Covers T031 (the API's half), T033 and T035 of the catalogue.
"""

# ruff: noqa: F811 - fixtures are imported by name and asked for by name

from __future__ import annotations

import json
import re
from typing import Any

import httpx2
import pytest

from app.domain.access import Actor, Role
from app.routers.rights import RIGHTS
from app.storage.management_ports import AdminSpec
from tests.admin_fixtures import (
    ADMIN_TOKEN,
    SECRET_KEY,
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
OWNER = Actor("owner", Role.OWNER)
UPSTREAM_KEY = "sk-upstream-very-secret-1234"
HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "javascript:alert(1)",
    "=cmd()|'/C calc'!A0",
]


async def created(call: Any) -> Any:
    answer = await call
    assert answer.status_code == 201, answer.text
    return answer.json()


async def an_endpoint(api: Client, **fields: Any) -> Any:
    await created(api.post("/models", json={"name": "m"}))
    body = {"model": "m", "provider": "openai", "upstream_model": "m", "api_base": "https://api.example.com/v1"}
    return await created(api.post("/endpoints", json={**body, "api_key": UPSTREAM_KEY, **fields}))


@pytest.mark.parametrize("words", HOSTILE)
async def test_hostile_words_come_back_as_json_that_no_browser_takes_for_a_page_t031(api: Client, words: str) -> None:
    await created(api.post("/users", json={"user_oid": "u", "name": words}))
    await created(api.post("/keys", json={"user_oid": "u", "name": words}))
    await created(api.post("/models", json={"name": words.replace(" ", "_")}))
    await created(api.post("/admins", json={"name": words, "role": "viewer"}))

    for path in ("/users", "/keys", "/models", "/admins", "/audit", f"/users/{words}", f"/models/{words}"):
        answer = await api.get(path)
        assert answer.headers["content-type"] == "application/json", path
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        json.loads(answer.content)


@pytest.mark.parametrize("words", ["\x1b[31mred", "line\nbreak", "nul\x00", "\u2028"])
async def test_control_characters_are_refused_before_they_reach_a_log_or_a_terminal_t031(
    api: Client, words: str
) -> None:
    await created(api.post("/users", json={"user_oid": "u"}))
    for path, body in (
        ("/users", {"user_oid": "v", "name": words}),
        ("/keys", {"user_oid": "u", "name": words}),
        ("/models", {"name": f"m{words}"}),
        ("/models", {"name": "m", "aliases": [words]}),
        ("/models", {"name": "m", "fallbacks": [words]}),
        ("/models", {"name": "m", "shadow": {"model": words, "percent": 5}}),
        ("/keys", {"user_oid": "u", "overflow": {"mode": "fallback", "fallback_model": words}}),
        ("/admins", {"name": words, "role": "viewer"}),
        ("/apps", {"app_id": "a", "name": words}),
    ):
        assert (await api.post(path, json=body)).status_code == 400, path


async def test_no_route_ever_tells_a_secret_t033(gateway: Gateway, api: Client) -> None:
    endpoint = await an_endpoint(api)
    await created(api.post("/users", json={"user_oid": "u"}))
    key = await created(api.post("/keys", json={"user_oid": "u"}))
    app = await created(api.post("/apps", json={"app_id": "crm"}))
    admin_row, token = await gateway.management.admins.create(OWNER, AdminSpec("ada", Role.VIEWER))
    opened = await gateway.admin_sessions.open(token, address=None, user_agent="")
    digests = [
        bytes(row["digest"])
        for row in await gateway.rows(
            "SELECT digest FROM keys UNION ALL SELECT digest FROM app_secrets UNION ALL SELECT token_digest FROM admins "
            "UNION ALL SELECT digest FROM admin_sessions UNION ALL SELECT credential_sealed FROM endpoints"
        )
    ]
    secrets = [UPSTREAM_KEY, key["key"], app["secret"], token, ADMIN_TOKEN, SECRET_KEY, gateway.pepper.hex()]
    secrets += [opened.cookie_value, opened.csrf_token, *(digest.hex() for digest in digests)]
    ids = {"key_id": key["id"], "app_id": "crm", "endpoint_id": endpoint["id"], "admin_id": admin_row.id, "name": "m"}

    asked = 0
    for route in RIGHTS:
        method, _, path = route.partition(" ")
        if method != "GET":
            continue
        filled = re.sub(r"\{(\w+)[^}]*\}", lambda found: str(ids.get(found[1], "u")), path)
        answer = await api.get(filled)
        shown = answer.text + repr(answer.headers)
        assert not [secret for secret in secrets if secret in shown], route
        asked += answer.status_code == 200
    assert asked > 15
    stored = json.dumps([str(row) for row in await gateway.rows("SELECT before, after FROM audit_log")])
    assert not [secret for secret in secrets if secret in stored]


async def test_a_stored_credential_goes_only_to_the_host_it_was_given_for_t035(gateway: Gateway, api: Client) -> None:
    endpoint = await an_endpoint(api)
    path = f"/endpoints/{endpoint['id']}"
    for base in (
        "https://evil.example.net/v1",
        "https://api.example.com.evil.example.net/v1",
        "https://api.example.com@evil.example.net/v1",
        "http://api.example.com/v1",
    ):
        answer = await api.patch(path, json={"api_base": base})
        assert answer.status_code == 400, base
    assert (await api.get(path)).json()["api_base"] == "https://api.example.com/v1"
    assert (await api.patch(path, json={"api_base": "https://api.example.com/v2"})).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {"api_base": "https://evil.example.net"},
        {"url": "https://evil.example.net"},
        {"command": "id"},
        {"headers": {"x": "y"}},
        {"template": "{{'ply'*3}}"},  # what it would make stands in no id
    ],
)
async def test_a_check_takes_no_address_command_header_or_template_t035(
    gateway: Gateway, api: Client, body: dict[str, Any]
) -> None:
    endpoint = await an_endpoint(api)

    answer = await api.post(f"/endpoints/{endpoint['id']}/check", json=body)

    assert "plyplyply" not in answer.text
    assert "uid=" not in answer.text
    shown = (await api.get(f"/endpoints/{endpoint['id']}")).json()
    assert shown["api_base"] == "https://api.example.com/v1"
    _, token = await gateway.management.admins.create(OWNER, AdminSpec("vera", Role.VIEWER))
    async with open_client(open_app(gateway), token) as viewer:
        assert (await viewer.post(f"/endpoints/{endpoint['id']}/check")).status_code == 403
