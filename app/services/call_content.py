"""What callers wrote and models answered: who may read it, the trail that reading leaves, and erasing it for good."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from app.clock import Clock
from app.domain.access import Actor, Right
from app.domain.record import CallContent
from app.exceptions import Forbidden
from app.storage.management_ports import AuditEntry, AuditStore
from app.storage.ports import ContentEraser, ReportStore

AUDITED_VIEWS = 10_000
"""Looks of one administrator within an hour that get rows in the trail; far more than anybody reads."""


@dataclass(frozen=True, slots=True)
class CallContents:
    reports: ReportStore
    bodies: ContentEraser
    audit: AuditStore
    clock: Clock

    async def viewed(self, actor: Actor, request_id: str) -> CallContent | None:
        """The bodies of a call, if they were kept and the actor may see them. The look is in the trail before he has them."""
        if not actor.may(Right.READ_CONTENT):
            return None
        content = await self.reports.content(request_id)
        if content is not None:
            entry = AuditEntry(self.clock.now(), actor, "call.view_content", "call", request_id)
            await self.audit.append_unless_flooded(entry, at_most=AUDITED_VIEWS, within=timedelta(hours=1))
        return content

    async def erase(self, actor: Actor, user_oid: str) -> int:
        """Delete every kept body of a user's calls; the ledger keeps what they cost. Returns how many there were.

        The trail names it first: a stop in between leaves a rest that the same command erases, never an erasure without a trace.
        A call that ends at this moment may still write its bodies: suspend the user before, or repeat after.
        """
        if not actor.may(Right.CONFIGURE):
            raise Forbidden
        await self.audit.append(AuditEntry(self.clock.now(), actor, "content.erase", "user", user_oid))
        return await self.bodies.erase_content(user_oid)
