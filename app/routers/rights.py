"""What each route of the admin API asks of its caller, in one table."""

from __future__ import annotations

from typing import Final

from starlette.routing import compile_path

from app.domain.access import Actor, Right, Role

PREFIX: Final = "/admin/api"

RIGHTS: Final[dict[str, Right]] = {
    "GET /users": Right.READ,
    "POST /users": Right.BILL,
    "POST /users/sync/bulk-expiry": Right.BILL,
    "POST /users/{user_oid:path}/sync-expiry": Right.BILL,
    "GET /users/{user_oid:path}": Right.READ,
    "PATCH /users/{user_oid:path}": Right.BILL,
    "DELETE /users/{user_oid:path}": Right.BILL,
    "GET /keys": Right.READ,
    "POST /keys": Right.CONFIGURE,
    "GET /keys/{key_id}": Right.READ,
    "PATCH /keys/{key_id}": Right.BUDGET,
    "DELETE /keys/{key_id}": Right.CONFIGURE,
    "POST /keys/{key_id}/rotate": Right.CONFIGURE,
    "POST /keys/{key_id}/revoke": Right.CONFIGURE,
    "GET /keys/{key_id}/usage": Right.READ,
    "GET /apps": Right.READ,
    "POST /apps": Right.CONFIGURE,
    "GET /apps/{app_id}": Right.READ,
    "PATCH /apps/{app_id}": Right.BUDGET,
    "DELETE /apps/{app_id}": Right.CONFIGURE,
    "POST /apps/{app_id}/rotate-secret": Right.CONFIGURE,
    "GET /models": Right.READ,
    "POST /models": Right.CONFIGURE,
    "GET /models/{name:path}": Right.READ,
    "PATCH /models/{name:path}": Right.BUDGET,
    "DELETE /models/{name:path}": Right.CONFIGURE,
    "GET /endpoints": Right.READ,
    "POST /endpoints": Right.CONFIGURE,
    "GET /endpoints/{endpoint_id}": Right.READ,
    "PATCH /endpoints/{endpoint_id}": Right.CONFIGURE,
    "DELETE /endpoints/{endpoint_id}": Right.CONFIGURE,
    "POST /endpoints/{endpoint_id}/drain": Right.CONFIGURE,
    "POST /endpoints/{endpoint_id}/check": Right.CONFIGURE,
    "POST /endpoints/{endpoint_id}/undrain": Right.CONFIGURE,
    "POST /endpoints/{endpoint_id}/reset": Right.CONFIGURE,
    "GET /endpoints/{endpoint_id}/events": Right.READ,
    "GET /admins": Right.READ,
    "POST /admins": Right.CONFIGURE,
    "GET /admins/{admin_id}": Right.READ,
    "PATCH /admins/{admin_id}": Right.CONFIGURE,
    "DELETE /admins/{admin_id}": Right.CONFIGURE,
    "POST /admins/{admin_id}/revoke": Right.CONFIGURE,
    "POST /admins/{admin_id}/rotate": Right.CONFIGURE,
    "GET /sessions": Right.READ,
    "DELETE /sessions/{session_id}": Right.CONFIGURE,
    "GET /usage/summary": Right.READ,
    "GET /usage/logs": Right.READ,
    "GET /usage/logs/{request_id}": Right.READ,
    "GET /usage/export": Right.READ,
    "DELETE /usage/content": Right.CONFIGURE,
    "GET /alerts": Right.READ,
    "POST /alerts/test": Right.CONFIGURE,
    "GET /audit": Right.READ,
    "GET /audit/verify": Right.READ,
    "GET /health": Right.READ,
    "GET /settings": Right.READ,
}
"""What each route asks of its caller. Default deny: an unlisted route fails at import."""


def methods_of(path: str) -> list[str]:
    """The methods that a path of the admin API answers to; empty for a path that is none of its own."""
    inner = path.removeprefix(PREFIX)
    found = {method for method, pattern in _PATTERNS if pattern.match(inner)} if inner != path else set()
    return sorted(found | {"HEAD"} if "GET" in found else found)


_PATTERNS: Final = [
    (method, compile_path(template)[0]) for method, _, template in (route.partition(" ") for route in RIGHTS)
]

_EXPLAINED: Final = """# Roles

Who may call what on the admin API (below `/admin/api`), with a token or in a session of the dashboard. This page is written by
`app.routers.rights.matrix()` from the table that the routes enforce, and `tests/routers/test_rights.py` compares the two and tries
each route with each role.

- **owner**: everything. Only an owner makes, changes, signs out or removes an owner.
- **admin**: everything else. Nobody hands out more than he has: no role above his own, no token that lasts longer than his.
- **billing**: users and what they have paid for; of keys, apps and models the budgets and nothing else ("budgets").
- **viewer**: reads everything but secrets, and but the prompts and answers of calls, which are for owners and admins. Each look at
  those is in the audit trail.

| route | owner | admin | billing | viewer |
|---|---|---|---|---|
"""


def matrix() -> str:
    """docs/roles.md."""
    return _EXPLAINED + "".join(
        f"| `{route}` | {' | '.join(_cell(role, right) for role in Role)} |\n" for route, right in RIGHTS.items()
    )


def _cell(role: Role, right: Right) -> str:
    actor = Actor("", role)
    if not actor.may(right):
        return ""
    return "budgets" if right is Right.BUDGET and not actor.may(Right.CONFIGURE) else "yes"
