"""Who may call what: the matrix in docs/roles.md is the one that the routes enforce (T018, T019)."""

# ruff: noqa: F811 - fixtures are imported by name and asked for by name

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute, Mount, Route

from app.admin.site import FAMILIES
from app.config import load_settings
from app.domain.access import Actor, Role
from app.main import create_app
from app.routers.rights import PREFIX, RIGHTS, matrix
from app.services.api_key import ADMIN_TOKEN_PREFIX, KEY_PREFIX, new_key
from app.storage.management_ports import AdminSpec
from tests.admin_fixtures import (
    Gateway,
    database,  # noqa: F401
    engine,  # noqa: F401
    gateway,  # noqa: F401
    open_app,
    open_client,
    postgres_url,  # noqa: F401
    template,  # noqa: F401
)

ROLES = Path(__file__).resolve().parents[2] / "docs" / "roles.md"
OWNER = Actor("owner", Role.OWNER)

PUBLIC = {
    "GET /",
    "GET /health",
    "GET /health/live",
    "GET /health/ready",
    "GET /metrics",  # asks for METRICS_TOKEN where one is set
    "GET /docs",
    "GET /redoc",
    "GET /openapi.json",
    "MOUNT /static",
    "GET /admin/sign-in",
    "POST /admin/sign-in",
    "POST /admin/sign-out",
}
"""Every route that answers whoever asks; one that is not here must ask for a credential."""


def all_routes() -> set[str]:
    settings = load_settings(
        {
            "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
            "REDIS_URL": "redis://127.0.0.1:1/0",
            "SECRET_KEY": "a-secret-key-that-only-these-tests-know-0123456789",
            "ADMIN_TOKEN": "an-admin-token-that-only-these-tests-know-0123456789",
        }
    )
    app = create_app(settings)._app
    assert isinstance(app, FastAPI)
    return set(_names_of(app.routes))


def _names_of(routes: Iterable[BaseRoute]) -> Iterator[str]:
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            yield from _names_of(inner.routes)
        elif isinstance(route, Mount):
            yield f"MOUNT {route.path}"
        else:
            assert isinstance(route, Route | APIRoute), route
            yield from (f"{method} {route.path}" for method in sorted((route.methods or set()) - {"HEAD"}))


def test_every_route_asks_for_a_credential_or_is_public_by_name_t018() -> None:
    admin = {f"{method} {PREFIX}{path}" for method, _, path in (name.partition(" ") for name in RIGHTS)}
    found = all_routes()
    behind_the_session = {name for name in found if name.split(" ")[1].startswith("/admin/") and name not in PUBLIC}

    assert found - behind_the_session <= PUBLIC | admin
    assert admin <= found


def test_the_checked_in_matrix_is_the_one_that_is_enforced_t019() -> None:
    assert ROLES.read_text() == matrix(), "write app.routers.rights.matrix() to docs/roles.md"


CREDENTIALS = ("none", "garbage", "user key", "unknown token", "app headers", "session cookie", *Role)


async def test_each_route_answers_each_credential_as_the_matrix_says_t019(gateway: Gateway) -> None:
    headers = {
        "none": {},
        "garbage": {"authorization": "Bearer x"},
        "user key": {"authorization": f"Bearer {new_key(gateway.pepper, KEY_PREFIX).secret}"},
        "unknown token": {"authorization": f"Bearer {new_key(gateway.pepper, ADMIN_TOKEN_PREFIX).secret}"},
        "app headers": {"x-gateway-secret": "s", "x-app-id": "a", "x-user-oid": "u"},
        "session cookie": {"cookie": "__Host-ag_session=" + "A" * 43},
    }
    for role in Role:
        _, token = await gateway.management.admins.create(OWNER, AdminSpec(f"the {role}", role))
        headers[role] = {"authorization": f"Bearer {token}"}
    allowed = allowed_by_matrix()

    async with open_client(open_app(gateway), token=None) as api:
        for route in RIGHTS:
            method, _, path = route.partition(" ")
            filled = re.sub(r"\{[^}]*\}", "00000000-0000-0000-0000-000000000000", path)
            answers = await asyncio.gather(
                *(api.request(method, filled, headers=headers[each], json=body_for(method)) for each in CREDENTIALS)
            )
            for credential, answer in zip(CREDENTIALS, answers, strict=True):
                if credential not in set(Role):
                    assert answer.status_code == 401, f"{credential}: {route} answered {answer.status_code}"
                elif credential in allowed[route]:
                    assert answer.status_code not in (401, 403), f"{credential}: {route} {answer.text}"
                else:
                    assert answer.status_code == 403, f"{credential}: {route} answered {answer.status_code}"


def body_for(method: str) -> object:
    """A body that no route accepts, so that nothing changes where the credential would do."""
    return {"no_such_field": 1} if method in ("POST", "PATCH") else None


def allowed_by_matrix() -> dict[str, set[str]]:
    """The roles that docs/roles.md names for each route."""
    rows = [line.strip("|").split("|") for line in ROLES.read_text().splitlines() if line.startswith("| `")]
    names = [str(role) for role in Role]
    return {
        cells[0].strip().strip("`"): {name for name, cell in zip(names, cells[1:], strict=True) if cell.strip()}
        for cells in rows
    }


def test_a_route_that_nobody_gave_a_right_cannot_be_made() -> None:
    from app.routers.deps import admin_router

    router = admin_router("nothing", "Nothing")
    with pytest.raises(KeyError):
        router.add_api_route("", lambda: None, methods=["GET"])


async def test_a_body_is_not_read_before_the_caller_is_known_t018(gateway: Gateway) -> None:
    reads = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal reads
        reads += 1
        yield b"{}"

    transport = httpx2.ASGITransport(app=open_app(gateway))
    async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
        answer = await client.post("/admin/api/users", content=body(), headers={"content-type": "application/json"})

    assert answer.status_code == 401
    assert reads == 0


def test_no_page_stands_where_the_page_of_an_app_of_that_name_would() -> None:
    """People choose the ids of apps: one may be called `new`. Users and models stand in the query."""
    routes = [route for module in FAMILIES for route in module.family.routes]
    of_apps = [route for route in routes if "{app_id}" in route.path]
    assert of_apps
    fixed = [route.path for route in routes if "{" not in route.path]
    assert [path for path in fixed if any(route.path_regex.match(path) for route in of_apps)] == []
    assert not any("{name}" in route.path or "{user_oid}" in route.path for route in routes)
