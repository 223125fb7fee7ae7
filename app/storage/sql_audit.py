"""The audit trail in SQL: a chain in which each row's hash covers its content and the hash before it.

An edited row no longer has its hash, a removed one leaves a gap in the ids, a swapped one stands on the wrong predecessor, and where
the last ones were taken away the trail ends before its head. Who can rewrite all of it can rewrite the chain with it: an anchor
(`AUDIT_ANCHOR`), the newest hash kept elsewhere, is the proof against that.
Ids are gapless because a row is only ever written under the lock of the revision's row.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ARRAY, LargeBinary, RowMapping, Text, bindparam, func, insert, select, text
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.database import transaction
from app.domain.access import NOBODY
from app.exceptions import InvalidRequest
from app.models.tables import audit_head, audit_log, config_revision
from app.storage.holders import found
from app.storage.management_ports import Anchor, AuditEntry, AuditQuery, AuditRow, AuditVerdict, Page

GENESIS = bytes(32)
"""What the first row's hash stands on."""
BATCH_ROWS = 200
"""Rows that `verify` hashes between two turns of the event loop: about 4 ms."""

_HASHED = ("id", "at", "actor", "role", "address", "action", "object_kind", "object_id", "before", "after")
_SEARCHED = (audit_log.c.actor, audit_log.c.action, audit_log.c.object_kind, audit_log.c.object_id)


async def lock(connection: AsyncConnection) -> None:
    """Take the lock that puts the trail's rows in order, for a transaction that is no admin command and so has not got it."""
    await connection.execute(
        upsert(config_revision)
        .values(id=1, revision=0)
        .on_conflict_do_update(index_elements=["id"], set_={"revision": config_revision.c.revision})
    )


async def append(connection: AsyncConnection, entry: AuditEntry) -> None:
    """Write the next row of the chain, in the caller's transaction, which must hold the lock of the revision's row."""
    last = await _last(connection)
    row = _row_of(entry, last.id + 1)
    values = {**row, "previous_hash": last.hash, "hash": hash_of(row, last.hash)}
    await connection.execute(insert(audit_log).values(**values))


async def append_alike(connection: AsyncConnection, entry: AuditEntry, object_ids: Sequence[str]) -> None:
    """As `append`, one row for each of these objects, to which the same was done; one statement for all of them.

    Of what is hashed only two members differ from row to row, so the rest is written once (20 µs of CPU a row before, 3 since).
    """
    last = await _last(connection)
    row = {name: _plain(value) for name, value in _row_of(entry, 0).items()}
    head = _canonical({name: row[name] for name in _BEFORE_ID})[:-1]
    tail = _canonical({name: row[name] for name in _AFTER_ID})[1:]
    hashes, previous_hash = [], last.hash
    for number, object_id in enumerate(object_ids, last.id + 1):
        content = f'{head},"id":{number},"object_id":{_canonical(object_id)},{tail}'
        previous_hash = hashlib.sha256(previous_hash + content.encode("ascii")).digest()
        hashes.append(previous_hash)
    written = {**_row_of(entry, last.id), "previous_hash": last.hash}
    alike = {name: written[name] for name in _ALIKE}
    await connection.execute(_insert_alike, {**alike, "object_ids": list(object_ids), "hashes": hashes})


_ALIKE = (*(name for name in _HASHED if name != "object_id"), "previous_hash")
_HASHED_IN_ORDER = sorted(_HASHED)
_BEFORE_ID = _HASHED_IN_ORDER[: _HASHED_IN_ORDER.index("id")]
_AFTER_ID = _HASHED_IN_ORDER[_HASHED_IN_ORDER.index("object_id") + 1 :]
"""What stands before and behind a row's id and its object's in canonical JSON, whose members are sorted."""

# One statement for all rows: the trigger that keeps the head runs once for each.
_insert_alike = text(
    """
    INSERT INTO audit_log (id, at, actor, role, address, action, object_kind, object_id, before, after, previous_hash, hash)
    SELECT :id + place, :at, :actor, :role, :address, :action, :object_kind, object_id, :before, :after,
           coalesce(lag(hash) OVER (ORDER BY place), :previous_hash), hash
    FROM unnest(:object_ids, :hashes) WITH ORDINALITY AS written (object_id, hash, place)
    """
).bindparams(
    *(bindparam(name, type_=audit_log.c[name].type) for name in _ALIKE),
    bindparam("object_ids", type_=ARRAY(Text)),
    bindparam("hashes", type_=ARRAY(LargeBinary)),
)


def _row_of(entry: AuditEntry, row_id: int) -> dict[str, Any]:
    return {
        "id": row_id,
        "at": entry.at,
        "actor": entry.actor.name,
        "role": "none" if entry.actor.name == NOBODY else entry.actor.role.value,
        "address": entry.actor.address,
        "action": entry.action,
        "object_kind": entry.object_kind,
        "object_id": as_stored(entry.object_id),
        "before": as_stored(entry.before),
        "after": as_stored(entry.after),
    }


def as_stored(value: Any) -> Any:
    """JSON as PostgreSQL gives it back, for what is hashed is what will be read: it knows no minus zero and no whole number with an
    exponent, and takes neither NUL nor half a surrogate in a text (those become U+FFFD)."""
    match value:
        case float():
            return int(value) if value and value.is_integer() and abs(value) >= EXPONENT_FROM else value + 0.0
        case str():
            return _UNSTORABLE.sub("\ufffd", value) if _UNSTORABLE.search(value) else value
        case list() | tuple():
            return [as_stored(each) for each in value]
        case dict():
            return {as_stored(name): as_stored(each) for name, each in value.items()}
        case _:
            return value


EXPONENT_FROM = 1e16
"""From here on Python writes a float with an exponent, and PostgreSQL a row of digits."""
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


async def _last(connection: AsyncConnection) -> Anchor:
    return await _head(connection) or await _newest(connection) or Anchor(0, GENESIS)


async def _head(connection: AsyncConnection) -> Anchor | None:
    """The row that the trail ends with, by the trigger's account: what was taken off its end stays missing."""
    row = (await connection.execute(select(audit_head.c.last_id, audit_head.c.hash))).one_or_none()
    return None if row is None else Anchor(row.last_id, bytes(row.hash))


async def _newest(connection: AsyncConnection) -> Anchor | None:
    newest = select(audit_log.c.id, audit_log.c.hash).order_by(audit_log.c.id.desc()).limit(1)
    row = (await connection.execute(newest)).one_or_none()
    return None if row is None else Anchor(row.id, bytes(row.hash))


# Made once: `json.dumps` makes one for each of a batch's thousands of rows.
_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode


def hash_of(row: Mapping[str, object] | RowMapping, previous_hash: bytes) -> bytes:
    """SHA-256 over the hash before and the row as canonical JSON: sorted keys, no spaces, times in UTC microseconds."""
    content = {name: _plain(row[name]) for name in _HASHED}
    return hashlib.sha256(previous_hash + _canonical(content).encode("ascii")).digest()


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds")
    return value


@dataclass(frozen=True, slots=True)
class SqlAudit:
    """`AuditStore` on PostgreSQL."""

    engine: AsyncEngine
    verifying: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False, compare=False)
    """One verification at a time: each holds a connection until it is through, and calls need the pool's others."""

    async def append(self, entry: AuditEntry) -> None:
        async with transaction(self.engine) as connection:
            await lock(connection)
            await append(connection, entry)

    async def append_unless_flooded(self, entry: AuditEntry, *, at_most: int, within: timedelta) -> None:
        since = entry.at - within
        alike = select(audit_log.c.at).where(
            audit_log.c.actor == entry.actor.name, audit_log.c.action == entry.action, audit_log.c.at > since
        )
        counted = select(func.count()).select_from(alike.limit(at_most).subquery())
        async with transaction(self.engine) as connection:
            if (await connection.execute(counted)).scalar_one() < at_most:
                await lock(connection)
                await append(connection, entry)

    async def head(self) -> Anchor | None:
        async with transaction(self.engine) as connection:
            return await _head(connection)

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
        if query.leaves_out_sessions:
            statement = statement.where(audit_log.c.object_kind != "session")
        if query.search:
            statement = statement.where(found(query.search, *_SEARCHED))
        if query.since is not None:
            statement = statement.where(audit_log.c.at >= query.since)
        if query.until is not None:
            statement = statement.where(audit_log.c.at < query.until)
        async with transaction(self.engine) as connection:
            rows = [_audit_row(row) for row in await connection.execute(statement)]
        items = rows[: query.limit]
        return Page(items, str(items[-1].id) if len(rows) > query.limit else None)

    async def verify(self, anchors: Sequence[Anchor] = ()) -> AuditVerdict:
        anchored = {anchor.id: anchor.hash for anchor in anchors}
        verified, expected_id, previous_hash = 0, 1, GENESIS
        async with self.verifying, transaction(self.engine, read_only_snapshot=True) as connection:
            head = await _head(connection)
            statement = select(audit_log).order_by(audit_log.c.id).execution_options(yield_per=BATCH_ROWS)
            async with connection.stream(statement) as rows:
                async for row in rows:
                    content: RowMapping = row._mapping
                    row_hash = bytes(row.hash)
                    stands = row.id == expected_id and bytes(row.previous_hash) == previous_hash
                    is_anchored = anchored.pop(row.id, row_hash) == row_hash
                    if not stands or not is_anchored or row_hash != hash_of(content, previous_hash):
                        return AuditVerdict(verified, min(int(row.id), expected_id))
                    verified, expected_id, previous_hash = verified + 1, expected_id + 1, row_hash
        ends_at = Anchor(verified, previous_hash) if verified else None
        if head != ends_at:  # rows are missing at the end, or came in behind the trigger's back
            return AuditVerdict(verified, min(head.id if head else verified, verified) + 1)
        return AuditVerdict(verified, min(anchored) if anchored else None)


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
