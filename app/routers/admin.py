"""The admin API's people and credentials: users, keys, administrators."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Body, Query

from app.domain.budget import BudgetClaim, period_at
from app.domain.identity import payment_day
from app.domain.limits import Scope
from app.domain.money import NanoUsd
from app.models.schemas import (
    AdminCreate,
    AdminCreated,
    AdminPatch,
    AdminView,
    BulkExpiryView,
    ExpiryView,
    KeyCreate,
    KeyCreated,
    KeyPatch,
    KeyView,
    Moment,
    PageView,
    Rotate,
    UserCreate,
    UserPatch,
    UserView,
)
from app.models.usage_schemas import BudgetSpentView, KeyUsageView
from app.routers.deps import (
    AdminServices,
    Caller,
    KeyListing,
    Listing,
    Services,
    UserListing,
    Versioned,
    admin_router,
    require_budgets_only,
)
from app.storage.management_ports import KeyRow

users = admin_router("users", "Users")
keys = admin_router("keys", "Keys")
admins = admin_router("admins", "Administrators")
routers: tuple[APIRouter, ...] = (users, keys, admins)

USAGE_DAYS = 30
"""How far back a key's usage is summed when no `from` is given."""


# ── Users ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@users.get("")
async def list_users(services: Services, query: UserListing) -> PageView[UserView]:
    page = await services.management.users.page(query)
    return PageView(items=[UserView.of(row) for row in page.items], next_cursor=page.next_cursor)


@users.post("", status_code=201)
async def create_user(services: Services, actor: Caller, body: UserCreate, version: Versioned) -> UserView:
    users = services.management.users
    row = await users.create(actor, body.spec(users.defaults))
    version.tell(row.spec)
    return UserView.of(row)


@users.post("/sync/bulk-expiry")
async def sync_all_expiries(services: Services, actor: Caller) -> BulkExpiryView:
    """Set every user whose last paid day is over to `expired`. The gateway does so itself once a day."""
    now = services.clock.now()
    expiry = await services.management.users.sync_all_expiries(actor, _payment_day(services, now))
    timestamp = now.replace(tzinfo=None).isoformat(timespec="microseconds")
    return BulkExpiryView(checked=expiry.checked, expired=len(expiry.expired), timestamp=timestamp)


@users.post("/{user_oid:path}/sync-expiry")
async def sync_expiry(services: Services, actor: Caller, user_oid: str) -> ExpiryView:
    """Set the user to `expired` if its last paid day is over."""
    today = _payment_day(services, services.clock.now())
    spec = (await services.management.users.sync_expiry(actor, user_oid, today)).spec
    return ExpiryView(
        user_oid=spec.oid,
        email=spec.email,
        payment_valid_until=spec.payment_valid_until,
        payment_status=spec.payment_status,
        synced=True,
    )


@users.get("/{user_oid:path}")
async def get_user(services: Services, user_oid: str, version: Versioned) -> UserView:
    row = await services.management.users.get(user_oid)
    version.tell(row.spec)
    return UserView.of(row)


@users.patch("/{user_oid:path}")
async def patch_user(services: Services, actor: Caller, user_oid: str, body: UserPatch, version: Versioned) -> UserView:
    """Change what is named. To renew a payment, send a later date: it brings an expired user back."""
    today = _payment_day(services, services.clock.now())
    row = await services.management.users.patch(actor, user_oid, body.changes(), expected=version.expected, today=today)
    version.tell(row.spec)
    return UserView.of(row)


@users.delete("/{user_oid:path}", status_code=204)
async def delete_user(services: Services, actor: Caller, user_oid: str, version: Versioned) -> None:
    """Delete the user with all its keys. Its usage records stay, marked as of a deleted user."""
    await services.management.users.delete(actor, user_oid, expected=version.expected)


def _payment_day(services: AdminServices, now: datetime) -> date:
    settings = services.settings
    return payment_day(now, settings.budget_zone, settings.payment_grace_days)


# ── Keys ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@keys.get("")
async def list_keys(services: Services, query: KeyListing) -> PageView[KeyView]:
    page, now = await services.management.keys.page(query), services.clock.now()
    return PageView(items=[KeyView.of(row, now) for row in page.items], next_cursor=page.next_cursor)


@keys.post("", status_code=201)
async def create_key(services: Services, actor: Caller, body: KeyCreate, version: Versioned) -> KeyCreated:
    """Make a key. The answer holds its secret, once."""
    row, secret = await services.management.keys.create(actor, body.spec())
    version.tell(row.spec)
    return KeyCreated.with_secret(row, secret, services.clock.now())


@keys.get("/{key_id}")
async def get_key(services: Services, key_id: str, version: Versioned) -> KeyView:
    row = await services.management.keys.get(key_id)
    version.tell(row.spec)
    return KeyView.of(row, services.clock.now())


@keys.patch("/{key_id}")
async def patch_key(services: Services, actor: Caller, key_id: str, body: KeyPatch, version: Versioned) -> KeyView:
    """Change what is named; calls that were admitted finish on what they were admitted with."""
    require_budgets_only(actor, body.model_fields_set)
    row = await services.management.keys.patch(actor, key_id, body.changes(merges=True), expected=version.expected)
    version.tell(row.spec)
    return KeyView.of(row, services.clock.now())


@keys.delete("/{key_id}", status_code=204)
async def delete_key(services: Services, actor: Caller, key_id: str, version: Versioned) -> None:
    """Delete the key. Its usage records stay."""
    await services.management.keys.delete(actor, key_id, expected=version.expected)


@keys.post("/{key_id}/rotate")
async def rotate_key(
    services: Services, actor: Caller, key_id: str, body: Annotated[Rotate | None, Body()] = None
) -> KeyCreated:
    """Give the key a new secret, shown once. The old one stays valid for `grace_seconds`."""
    grace_s = (body or Rotate()).grace_seconds
    row, secret = await services.management.keys.rotate(actor, key_id, grace_s=grace_s)
    return KeyCreated.with_secret(row, secret, services.clock.now())


@keys.post("/{key_id}/revoke")
async def revoke_key(services: Services, actor: Caller, key_id: str) -> KeyView:
    """Refuse the key from now on, for good."""
    return KeyView.of(await services.management.keys.revoke(actor, key_id), services.clock.now())


@keys.get("/{key_id}/usage")
async def key_usage(
    services: Services,
    key_id: str,
    since: Annotated[Moment | None, Query(alias="from")] = None,
    until: Annotated[Moment | None, Query(alias="to")] = None,
) -> KeyUsageView:
    """What the key has used between two times (the last 30 days), and what its budgets have left."""
    now = services.clock.now()
    begins, ends = since or now - timedelta(days=USAGE_DAYS), until or now
    row, sums = await services.management.keys.usage(key_id, since=_whole_hour(begins), until=ends)
    return KeyUsageView.of(sums, begins, ends, await _budgets_spent(services, row, now))


def _whole_hour(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)


async def _budgets_spent(services: AdminServices, row: KeyRow, now: datetime) -> list[BudgetSpentView]:
    zone = services.settings.budget_zone
    held = row.spec.budgets
    claims = [BudgetClaim(Scope.KEY, row.id, each, period_at(each.period, now, zone), NanoUsd(0)) for each in held]
    return [BudgetSpentView.of(claim, await services.usage.spent(claim)) for claim in claims]


# ── Administrators ────────────────────────────────────────────────────────────────────────────────────────────────────


@admins.get("")
async def list_admins(services: Services, query: Listing) -> PageView[AdminView]:
    page, now = await services.management.admins.page(query), services.clock.now()
    return PageView(items=[AdminView.of(row, now) for row in page.items], next_cursor=page.next_cursor)


@admins.post("", status_code=201)
async def create_admin(services: Services, actor: Caller, body: AdminCreate) -> AdminCreated:
    """Make an administrator. The answer holds the token, once."""
    row, secret = await services.management.admins.create(actor, body.spec())
    return AdminCreated.with_secret(row, secret, services.clock.now())


@admins.get("/{admin_id}")
async def get_admin(services: Services, admin_id: str, version: Versioned) -> AdminView:
    row = await services.management.admins.get(admin_id)
    version.tell(row.spec)
    return AdminView.of(row, services.clock.now())


@admins.patch("/{admin_id}")
async def patch_admin(
    services: Services, actor: Caller, admin_id: str, body: AdminPatch, version: Versioned
) -> AdminView:
    row = await services.management.admins.patch(actor, admin_id, body.changes(), expected=version.expected)
    version.tell(row.spec)
    return AdminView.of(row, services.clock.now())


@admins.post("/{admin_id}/revoke")
async def revoke_admin(services: Services, actor: Caller, admin_id: str) -> AdminView:
    return AdminView.of(await services.management.admins.revoke(actor, admin_id), services.clock.now())


@admins.post("/{admin_id}/rotate")
async def rotate_admin_token(services: Services, actor: Caller, admin_id: str) -> AdminCreated:
    """Give the administrator a new token, shown once. The old one ends now, and so do its sessions in the dashboard."""
    row, secret = await services.management.admins.rotate(actor, admin_id)
    return AdminCreated.with_secret(row, secret, services.clock.now())


@admins.delete("/{admin_id}", status_code=204)
async def delete_admin(services: Services, actor: Caller, admin_id: str, version: Versioned) -> None:
    await services.management.admins.delete(actor, admin_id, expected=version.expected)
