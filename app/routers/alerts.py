"""The admin API's alerts: what was raised, how far its delivery has come, and a test of the webhook."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from app.models.alert_schemas import AlertTestView, AlertView, EndpointAlertView
from app.models.schemas import PageView
from app.routers.deps import Caller, Services, admin_router
from app.storage.keyset import encode_cursor
from app.storage.management_ports import AuditEntry

alerts = admin_router("alerts", "Alerts")
routers: tuple[APIRouter, ...] = (alerts,)


@alerts.get("")
async def list_alerts(
    services: Services,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=600)] = None,
) -> PageView[AlertView | EndpointAlertView]:
    """Budgets that have passed 50, 80 or 100 % of a hard limit, or a soft limit, once per period; endpoints whose credential is
    refused, once a day. Newest first."""
    budgets = await services.alerts.page(limit=limit, cursor=cursor)
    endpoints = await services.endpoint_care.alerts(limit=limit, cursor=cursor)
    found: list[AlertView | EndpointAlertView] = [AlertView.of(row) for row in budgets.items]
    found += [EndpointAlertView.of(event) for event in endpoints.items]
    found.sort(key=lambda alert: (alert.at, alert.id), reverse=True)
    # Both lists are in one order by time and id, so the place of the last one shown is a place in either.
    has_more = len(found) > limit or budgets.next_cursor is not None or endpoints.next_cursor is not None
    shown = found[:limit]
    return PageView(items=shown, next_cursor=encode_cursor(shown[-1].at, shown[-1].id) if has_more else None)


@alerts.post("/test")
async def test_webhook(services: Services, actor: Caller) -> AlertTestView:
    """Send a test event to `ALERT_WEBHOOK_URL` now, once, and say what came of it."""
    event_id, sent = await services.alerts.send_test()
    view = AlertTestView.of(event_id, sent)
    outcome = view.model_dump(include={"delivered", "status", "error"})
    await services.audit.append(AuditEntry(services.clock.now(), actor, "alert.test", "alert", event_id, after=outcome))
    return view
