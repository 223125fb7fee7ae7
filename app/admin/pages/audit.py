"""The audit trail: who changed what, from what to what, and whether the chain of it holds."""

from __future__ import annotations

from starlette.responses import Response

from app.admin.visit import Family, Visit
from app.storage.management_ports import AuditQuery, AuditVerdict

family = Family()

EVERYTHING = "all"
"""What is shown unasked is what was changed: who signed in is among everything, or a kind of its own."""


@family.get("/audit")
async def list_audit(visit: Visit) -> Response:
    return await _list(visit, None)


@family.post("/audit/verify")
async def verify(visit: Visit) -> Response:
    return await _list(visit, await visit.services.audit.verify())


async def _list(visit: Visit, verdict: AuditVerdict | None) -> Response:
    kind, action, object_id = visit.query("kind"), visit.query("action"), visit.query("object")
    query = AuditQuery(
        limit=50,
        cursor=visit.query("cursor"),
        actor=visit.query("actor"),
        action=action,
        object_kind=None if kind == EVERYTHING else kind,
        object_id=object_id,
        leaves_out_sessions=not (kind or action or object_id),
    )
    return visit.page("audit/list.html", page=await visit.services.audit.page(query), verdict=verdict)
