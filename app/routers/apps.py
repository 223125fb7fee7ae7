"""The admin API's apps: internal applications that call on behalf of users."""

from __future__ import annotations

from typing import Annotated

from fastapi import Body

from app.models.schemas import AppCreate, AppCreated, AppPatch, AppView, PageView, Rotate
from app.routers.deps import Caller, Listing, Services, Versioned, admin_router, require_budgets_only

router = admin_router("apps", "Apps")
routers = (router,)


@router.get("")
async def list_apps(services: Services, query: Listing) -> PageView[AppView]:
    page = await services.management.apps.page(query)
    return PageView(items=[AppView.of(row) for row in page.items], next_cursor=page.next_cursor)


@router.post("", status_code=201)
async def create_app(services: Services, actor: Caller, body: AppCreate, version: Versioned) -> AppCreated:
    """Register an app. The answer holds its own secret, once."""
    row, secret = await services.management.apps.create(actor, body.spec())
    version.tell(row.spec)
    return AppCreated.with_secret(row, secret)


@router.get("/{app_id}")
async def get_app(services: Services, app_id: str, version: Versioned) -> AppView:
    row = await services.management.apps.get(app_id)
    version.tell(row.spec)
    return AppView.of(row)


@router.patch("/{app_id}")
async def patch_app(services: Services, actor: Caller, app_id: str, body: AppPatch, version: Versioned) -> AppView:
    """Change what is named. An app that is set inactive is refused from the next call on."""
    require_budgets_only(actor, body.model_fields_set)
    row = await services.management.apps.patch(actor, app_id, body.changes(), expected=version.expected)
    version.tell(row.spec)
    return AppView.of(row)


@router.delete("/{app_id}", status_code=204)
async def delete_app(services: Services, actor: Caller, app_id: str, version: Versioned) -> None:
    """Delete the app. Its usage records stay."""
    await services.management.apps.delete(actor, app_id, expected=version.expected)


@router.post("/{app_id}/rotate-secret")
async def rotate_secret(
    services: Services, actor: Caller, app_id: str, body: Annotated[Rotate | None, Body()] = None
) -> AppCreated:
    """Give the app a new secret, shown once. The old one stays valid for `grace_seconds`."""
    grace_s = (body or Rotate()).grace_seconds
    row, secret = await services.management.apps.rotate_secret(actor, app_id, grace_s=grace_s)
    return AppCreated.with_secret(row, secret)
