"""The dashboard's sessions and failed sign-ins in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.database import QUICK_S, transaction
from app.domain.access import Role
from app.models.tables import admin_sessions, admins, sign_in_failures
from app.storage import sql_audit
from app.storage.management_ports import AdminRow, AdminSpec, AuditEntry
from app.storage.session_ports import FoundSession, SessionKind, SessionRow
from app.storage.sql_rows import is_uuid

BLOCKING_FAILURES = 10
"""So many from one network within the window, and the next is refused unheard."""
AUDITED_FAILURES = 60
"""Failed sign-ins of one window, from everywhere together, that get rows of their own in the trail: a flood must not fill it."""
COUNTING_LOCK = 7_235_142_930_413
"""Any number, as long as every replica uses the same and nothing else in the database does."""

_admin_columns = [column.label(f"of_admin_{column.name}") for column in admins.c if column.name != "token_digest"]
_found = select(admin_sessions, *_admin_columns).outerjoin_from(
    admin_sessions, admins, admins.c.id == admin_sessions.c.admin_id
)


@dataclass(frozen=True, slots=True)
class SqlSessions:
    """`SessionStore` and `FailureStore` on PostgreSQL."""

    engine: AsyncEngine

    async def open(self, row: SessionRow, entry: AuditEntry, *, replaces: Sequence[bytes]) -> None:
        values = {
            "id": row.id,
            "digest": row.digest,
            "kind": row.kind.value,
            "admin_id": row.admin_id,
            "name": row.name,
            "role": row.role.value,
            "origin": row.origin,
            "address": row.address,
            "user_agent": row.user_agent,
            "opened_at": row.opened_at,
            "last_seen_at": row.last_seen_at,
            "expires_at": row.expires_at,
        }
        is_over = admin_sessions.c.expires_at <= row.opened_at
        async with transaction(self.engine) as connection:
            await sql_audit.lock(connection)
            await connection.execute(delete(admin_sessions).where(is_over | admin_sessions.c.digest.in_(replaces)))
            await connection.execute(insert(admin_sessions).values(**values))
            await sql_audit.append(connection, entry)

    async def find(self, digests: Sequence[bytes]) -> FoundSession | None:
        statement = _found.where(admin_sessions.c.digest.in_(digests))
        async with transaction(self.engine, within_s=QUICK_S) as connection:
            row = (await connection.execute(statement)).one_or_none()
        return None if row is None else FoundSession(_session_row(row), _admin_row(row))

    async def touch(self, session_id: str, at: datetime) -> None:
        is_older = admin_sessions.c.last_seen_at < at
        statement = update(admin_sessions).where(admin_sessions.c.id == session_id, is_older).values(last_seen_at=at)
        async with transaction(self.engine, within_s=QUICK_S) as connection:
            await connection.execute(statement)

    async def close(self, session_id: str, entry: AuditEntry) -> None:
        if not is_uuid(session_id):
            return
        statement = delete(admin_sessions).where(admin_sessions.c.id == session_id).returning(admin_sessions.c.id)
        async with transaction(self.engine) as connection:
            await sql_audit.lock(connection)
            if (await connection.execute(statement)).scalar() is not None:
                await sql_audit.append(connection, entry)

    async def sessions(self, now: datetime) -> list[SessionRow]:
        newest_first = (admin_sessions.c.opened_at.desc(), admin_sessions.c.id)
        statement = select(admin_sessions).where(admin_sessions.c.expires_at > now).order_by(*newest_first).limit(1000)
        async with transaction(self.engine) as connection:
            return [_session_row(row) for row in await connection.execute(statement)]

    async def failures(self, network: str, account: str, since: datetime) -> list[datetime]:
        async with transaction(self.engine, within_s=QUICK_S) as connection:
            return await _failures(connection, network, account, since)

    async def add_failure(self, network: str, account: str, entry: AuditEntry, *, since: datetime) -> None:
        """Counted one after the other, so that many at once are no more than ten."""
        async with transaction(self.engine) as connection:
            await connection.execute(select(func.pg_advisory_xact_lock(COUNTING_LOCK)))
            await connection.execute(delete(sign_in_failures).where(sign_in_failures.c.at <= since))
            if len(await _failures(connection, network, account, since)) >= BLOCKING_FAILURES:
                return
            everywhere = (await connection.execute(select(func.count()).select_from(sign_in_failures))).scalar_one()
            values = {"network": network, "account": account, "at": entry.at}
            await connection.execute(insert(sign_in_failures).values(**values))
            if everywhere < AUDITED_FAILURES:
                await sql_audit.lock(connection)
                await sql_audit.append(connection, entry)


async def end_sessions_of(connection: AsyncConnection, admin_id: str) -> None:
    """End every session that was opened with this administrator's token, in the caller's transaction."""
    await connection.execute(delete(admin_sessions).where(admin_sessions.c.admin_id == admin_id))


async def _failures(connection: AsyncConnection, network: str, account: str, since: datetime) -> list[datetime]:
    at = sign_in_failures.c.at
    in_bucket = (sign_in_failures.c.network == network) & (sign_in_failures.c.account == account) & (at > since)
    newest = select(at).where(in_bucket).order_by(at.desc()).limit(BLOCKING_FAILURES)
    return sorted((await connection.execute(newest)).scalars())


def _session_row(row: Row[Any]) -> SessionRow:
    return SessionRow(
        id=row.id,
        digest=bytes(row.digest),
        kind=SessionKind(row.kind),
        admin_id=row.admin_id,
        name=row.name,
        role=Role(row.role),
        origin=None if row.origin is None else bytes(row.origin),
        address=row.address,
        user_agent=row.user_agent,
        opened_at=row.opened_at,
        last_seen_at=row.last_seen_at,
        expires_at=row.expires_at,
    )


def _admin_row(row: Row[Any]) -> AdminRow | None:
    if row.of_admin_id is None:
        return None
    spec = AdminSpec(row.of_admin_name, Role(row.of_admin_role), row.of_admin_expires_at)
    return AdminRow(row.of_admin_id, spec, row.of_admin_last4, row.of_admin_revoked_at, row.of_admin_created_at)
