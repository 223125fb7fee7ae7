"""The audit trail: who changed what, from what to what, and whether the chain of it holds."""

from __future__ import annotations

from starlette.responses import Response

from app.admin.visit import Family, Visit
from app.storage.management_ports import AuditQuery, AuditVerdict

family = Family()


@family.get("/audit")
async def list_audit(visit: Visit) -> Response:
    return await _list(visit, None)


@family.post("/audit/verify")
async def verify(visit: Visit) -> Response:
    return await _list(visit, await visit.services.audit.verify())


async def _list(visit: Visit, verdict: AuditVerdict | None) -> Response:
    query = AuditQuery(
        limit=50,
        cursor=visit.query("cursor"),
        actor=visit.query("actor"),
        action=visit.query("action"),
        object_kind=visit.query("kind"),
        object_id=visit.query("object"),
    )
    return visit.page("audit/list.html", page=await visit.services.audit.page(query), verdict=verdict)
