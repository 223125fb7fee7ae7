"""Who is signed in to the dashboard, and signing him out."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, Field

from app.domain.access import Role
from app.models.schemas import Moment, PageView
from app.routers.deps import Caller, Services, admin_router
from app.storage.session_ports import SessionKind, SessionRow

sessions = admin_router("sessions", "Administrators")
routers: tuple[APIRouter, ...] = (sessions,)


class SessionView(BaseModel):
    id: str
    name: str = Field(examples=["Ada Lovelace"])
    role: Role
    kind: SessionKind = Field(description="token: an administrator's; setting: ADMIN_TOKEN; sso: single sign-on")
    address: str | None
    user_agent: str
    opened_at: Moment
    last_seen_at: Moment
    expires_at: Moment

    @classmethod
    def of(cls, row: SessionRow) -> SessionView:
        return cls(
            id=row.id,
            name=row.name,
            role=row.role,
            kind=row.kind,
            address=row.address,
            user_agent=row.user_agent,
            opened_at=row.opened_at,
            last_seen_at=row.last_seen_at,
            expires_at=row.expires_at,
        )


@sessions.get("")
async def list_sessions(services: Services) -> PageView[SessionView]:
    """The dashboard's open sessions, newest first."""
    rows = await services.admin_sessions.open_sessions()
    return PageView(items=[SessionView.of(row) for row in rows], next_cursor=None)


@sessions.delete("/{session_id}", status_code=204)
async def end_session(services: Services, actor: Caller, session_id: str) -> None:
    """Sign somebody out. Only an owner ends an owner's session."""
    await services.admin_sessions.end_anothers(actor, session_id)
