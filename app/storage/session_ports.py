"""What the dashboard's sign-in asks of the database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from app.domain.access import Actor, Role
from app.storage.management_ports import AdminRow, AuditEntry


class SessionKind(StrEnum):
    TOKEN = "token"  # noqa: S105 - opened with the token of a row in admins
    SETTING = "setting"
    """Opened with `ADMIN_TOKEN`."""
    SSO = "sso"
    """Opened by the company's own sign-in (OpenID Connect)."""


@dataclass(frozen=True, slots=True)
class SessionRow:
    id: str
    digest: bytes = field(repr=False)
    kind: SessionKind
    admin_id: str | None
    name: str
    role: Role
    origin: bytes | None = field(repr=False)
    address: str | None
    user_agent: str
    opened_at: datetime
    last_seen_at: datetime
    expires_at: datetime

    @property
    def actor(self) -> Actor:
        return Actor(self.name, self.role, self.address, admin_id=self.admin_id)


@dataclass(frozen=True, slots=True)
class FoundSession:
    """A session and, for one that was opened with a row's token, that row as it is now."""

    row: SessionRow
    admin: AdminRow | None


class SessionStore(Protocol):
    async def open(self, row: SessionRow, entry: AuditEntry, *, replaces: Sequence[bytes]) -> None:
        """Store a session and its audit row, end the replaced one and what has expired: all in one transaction."""
        ...

    async def find(self, digests: Sequence[bytes]) -> FoundSession | None: ...

    async def touch(self, session_id: str, at: datetime) -> None:
        """Note that it was used."""
        ...

    async def close(self, session_id: str, entry: AuditEntry) -> None:
        """End a session and write its audit row, in one transaction; one that is gone already changes nothing."""
        ...

    async def sessions(self, now: datetime) -> list[SessionRow]:
        """Those that have not expired, newest first."""
        ...


class FailureStore(Protocol):
    """Failed sign-ins, by the network they came from and the account they were for."""

    async def failures(self, network: str, account: str, since: datetime) -> list[datetime]:
        """The newest times, oldest first, at most as many as block."""
        ...

    async def add_failure(self, network: str, account: str, entry: AuditEntry, *, since: datetime) -> None:
        """Count one, and write its audit row unless a flood of them has had enough rows since then."""
        ...
