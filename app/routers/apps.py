"""The admin API's apps: internal applications that call on behalf of users."""

from __future__ import annotations

from typing import Annotated

from fastapi import Body

from app.models.schemas import AppCreate, AppCreated, AppPatch, AppView, PageView, Rotate
from app.routers.deps import Caller, Listing, Services, admin_router, require_budgets_only

router = admin_router("apps", "Apps")
routers = (router,)


@router.get("")
async def list_apps(services: Services, query: Listing) -> PageView[AppView]:
    page = await services.management.apps.page(query)
    return PageView(items=[AppView.of(row) for row in page.items], next_cursor=page.next_cursor)


@router.post("", status_code=201)
async def create_app(services: Services, actor: Caller, body: AppCreate) -> AppCreated:
    """Register an app. The answer holds its own secret, once."""
    row, secret = await services.management.apps.create(actor, body.spec())
    return AppCreated.with_secret(row, secret)


@router.get("/{app_id}")
async def get_app(services: Services, app_id: str) -> AppView:
    return AppView.of(await services.management.apps.get(app_id))


@router.patch("/{app_id}")
async def patch_app(services: Services, actor: Caller, app_id: str, body: AppPatch) -> AppView:
    require_budgets_only(actor, body.model_fields_set)
    return AppView.of(await services.management.apps.patch(actor, app_id, body.changes()))


@router.delete("/{app_id}", status_code=204)
async def delete_app(services: Services, actor: Caller, app_id: str) -> None:
    """Delete the app. Its usage records stay."""
    await services.management.apps.delete(actor, app_id)


@router.post("/{app_id}/rotate-secret")
async def rotate_secret(
    services: Services, actor: Caller, app_id: str, body: Annotated[Rotate | None, Body()] = None
) -> AppCreated:
    """Give the app a new secret, shown once. The old one stays valid for `grace_seconds`."""
    grace_s = (body or Rotate()).grace_seconds
    row, secret = await services.management.apps.rotate_secret(actor, app_id, grace_s=grace_s)
    return AppCreated.with_secret(row, secret)
