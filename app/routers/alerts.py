"""The admin API's alerts: what was raised, how far its delivery has come, and a test of the webhook."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from app.models.alert_schemas import AlertTestView, AlertView
from app.models.schemas import PageView
from app.routers.deps import Caller, Services, admin_router
from app.storage.management_ports import AuditEntry

alerts = admin_router("alerts", "Alerts")
routers: tuple[APIRouter, ...] = (alerts,)


@alerts.get("")
async def list_alerts(
    services: Services,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=600)] = None,
) -> PageView[AlertView]:
    """Budgets that have passed 50, 80 or 100 % of a hard limit, or a soft limit: once per period. Newest first."""
    page = await services.alerts.page(limit=limit, cursor=cursor)
    return PageView(items=[AlertView.of(row) for row in page.items], next_cursor=page.next_cursor)


@alerts.post("/test")
async def test_webhook(services: Services, actor: Caller) -> AlertTestView:
    """Send a test event to `ALERT_WEBHOOK_URL` now, once, and say what came of it."""
    event_id, sent = await services.alerts.send_test()
    view = AlertTestView.of(event_id, sent)
    outcome = view.model_dump(include={"delivered", "status", "error"})
    await services.audit.append(AuditEntry(services.clock.now(), actor, "alert.test", "alert", event_id, after=outcome))
    return view
