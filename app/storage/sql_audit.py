"""The audit trail in SQL: a chain in which each row's hash covers its content and the hash before it.

An edited row no longer has its hash, a removed one leaves a gap in the ids, a swapped one stands on the wrong predecessor.
Who can rewrite the whole table can rewrite the chain with it: the newest hash, kept elsewhere, is the proof against that.
Ids are gapless because a row is only ever written under the lock of the revision's row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Select, insert, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.database import transaction
from app.domain.access import NOBODY
from app.exceptions import InvalidRequest
from app.models.tables import audit_log, config_revision
from app.storage.management_ports import AuditEntry, AuditQuery, AuditRow, AuditVerdict, Page

GENESIS = bytes(32)
"""What the first row's hash stands on."""
BATCH_ROWS = 1000
"""Rows that `verify` holds in memory at once."""

_HASHED = ("id", "at", "actor", "role", "address", "action", "object_kind", "object_id", "before", "after")


async def lock(connection: AsyncConnection) -> None:
    """Take the lock that puts the trail's rows in order, for a transaction that is no admin command and so has not got it."""
    await connection.execute(
        upsert(config_revision)
        .values(id=1, revision=0)
        .on_conflict_do_update(index_elements=["id"], set_={"revision": config_revision.c.revision})
    )


async def append(connection: AsyncConnection, entry: AuditEntry) -> None:
    """Write the next row of the chain, in the caller's transaction, which must hold the lock of the revision's row."""
    newest = select(audit_log.c.id, audit_log.c.hash).order_by(audit_log.c.id.desc()).limit(1)
    last = (await connection.execute(newest)).one_or_none()
    previous_hash = GENESIS if last is None else bytes(last.hash)
    row: dict[str, object] = {
        "id": 1 if last is None else last.id + 1,
        "at": entry.at,
        "actor": entry.actor.name,
        "role": "none" if entry.actor.name == NOBODY else entry.actor.role.value,
        "address": entry.actor.address,
        "action": entry.action,
        "object_kind": entry.object_kind,
        "object_id": entry.object_id,
        "before": entry.before,
        "after": entry.after,
    }
    chained = {"previous_hash": previous_hash, "hash": hash_of(row, previous_hash)}
    await connection.execute(insert(audit_log).values(**row, **chained))


def hash_of(row: Mapping[str, object], previous_hash: bytes) -> bytes:
    """SHA-256 over the hash before and the row as canonical JSON: sorted keys, no spaces, times in UTC microseconds."""
    content = {name: _plain(row[name]) for name in _HASHED}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(previous_hash + canonical.encode("ascii")).digest()


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds")
    return value


@dataclass(frozen=True, slots=True)
class SqlAudit:
    """`AuditStore` on PostgreSQL."""

    engine: AsyncEngine

    async def append(self, entry: AuditEntry) -> None:
        async with transaction(self.engine) as connection:
            await lock(connection)
            await append(connection, entry)

    async def page(self, query: AuditQuery) -> Page[AuditRow]:
        statement = select(audit_log).order_by(audit_log.c.id.desc()).limit(query.limit + 1)
        if query.cursor is not None:
            statement = statement.where(audit_log.c.id < _cursor_id(query.cursor))
        for column, wanted in (
            (audit_log.c.actor, query.actor),
            (audit_log.c.action, query.action),
            (audit_log.c.object_kind, query.object_kind),
            (audit_log.c.object_id, query.object_id),
        ):
            if wanted is not None:
                statement = statement.where(column == wanted)
        async with transaction(self.engine) as connection:
            rows = [_audit_row(row) for row in await connection.execute(statement)]
        items = rows[: query.limit]
        return Page(items, str(items[-1].id) if len(rows) > query.limit else None)

    async def verify(self) -> AuditVerdict:
        verified, expected_id, previous_hash = 0, 1, GENESIS
        async with self._stream(select(audit_log).order_by(audit_log.c.id)) as rows:
            async for row in rows:
                content: Mapping[str, object] = row._mapping
                stands = row.id == expected_id and bytes(row.previous_hash) == previous_hash
                if not stands or bytes(row.hash) != hash_of(content, previous_hash):
                    return AuditVerdict(verified, min(int(row.id), expected_id))
                verified, expected_id, previous_hash = verified + 1, expected_id + 1, bytes(row.hash)
        return AuditVerdict(verified, None)

    @asynccontextmanager
    async def _stream(self, statement: Select[Any]) -> AsyncIterator[AsyncIterator[Any]]:
        async with (
            transaction(self.engine, read_only_snapshot=True) as connection,
            connection.stream(statement.execution_options(yield_per=BATCH_ROWS)) as result,
        ):
            yield aiter(result)


def _cursor_id(cursor: str) -> int:
    if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 18:
        raise InvalidRequest("'cursor' is not one that this list gave.", param="cursor")
    return int(cursor)


def _audit_row(row: Any) -> AuditRow:
    return AuditRow(
        id=row.id,
        at=row.at,
        actor=row.actor,
        role=row.role,
        address=row.address,
        action=row.action,
        object_kind=row.object_kind,
        object_id=row.object_id,
        before=row.before,
        after=row.after,
        hash=bytes(row.hash),
    )
