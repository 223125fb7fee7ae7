"""Alerts: which budgets have passed a threshold, and whether the webhook was told."""

from __future__ import annotations

from starlette.responses import Response

from app.admin.visit import Family, Visit
from app.domain.limits import Scope

family = Family()


@family.get("/alerts")
async def list_alerts(visit: Visit) -> Response:
    page = await visit.services.alerts.page(limit=50, cursor=visit.query("cursor"))
    held = [row.alert.scope_id for row in page.items if row.alert.scope is Scope.KEY]
    has_webhook = bool(visit.services.settings.alert_webhook_url)
    return visit.page(
        "alerts/list.html", page=page, key_names=await visit.services.overview.key_names(held), has_webhook=has_webhook
    )
