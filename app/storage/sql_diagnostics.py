"""What the operator's diagnostics read: tables with their sizes, keys with their owners."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, func, literal_column, or_, select, table, text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.database import transaction
from app.domain.identity import Identity
from app.models.tables import former_credentials, keys, metadata, models, users
from app.storage.sql_identity import IDENTITIES, identity_of
from app.storage.sql_rows import AnyRow, is_uuid

COUNT_UP_TO = 100_000
"""Rows that are counted one by one; beyond it the database's own estimate is good enough and costs nothing."""

_sizes = text(
    """
    SELECT top.relname AS name,
           count(part.relid) FILTER (WHERE part.isleaf) AS partitions,
           coalesce(sum(pg_total_relation_size(part.relid)), pg_total_relation_size(top.oid)) AS size_bytes,
           sum(greatest(coalesce(leaf.reltuples, top.reltuples), 0)) AS estimate
    FROM pg_class top
    LEFT JOIN LATERAL pg_partition_tree(top.oid) part ON true
    LEFT JOIN pg_class leaf ON leaf.oid = part.relid AND part.isleaf
    WHERE top.relkind IN ('r', 'p') AND NOT top.relispartition
      AND top.relnamespace = CAST(current_schema() AS regnamespace)
    GROUP BY top.oid, top.relname ORDER BY top.relname
    """
)


@dataclass(frozen=True, slots=True)
class TableSize:
    name: str
    rows: int
    is_estimate: bool
    size_bytes: int
    partitions: int


@dataclass(frozen=True, slots=True)
class KeyFound:
    """A key as the diagnostics show it: nothing here opens anything."""

    identity: Identity
    name: str
    shown_as: str
    email: str | None
    last_used_at: datetime | None
    prefix: str = ""


async def table_sizes(engine: AsyncEngine) -> list[TableSize]:
    """All tables there are, partitions added to theirs. Raises: DependencyUnavailable."""
    async with transaction(engine) as connection:
        found = (await connection.execute(_sizes)).all()
        sizes = []
        for row in found:
            some = select(literal_column("1")).select_from(table(row.name)).limit(COUNT_UP_TO + 1).subquery()
            counted = int((await connection.execute(select(func.count()).select_from(some))).scalar_one())
            is_estimate = counted > COUNT_UP_TO
            rows = max(int(row.estimate), counted) if is_estimate else counted
            sizes.append(TableSize(row.name, rows, is_estimate, int(row.size_bytes), int(row.partitions)))
        return sizes


def missing_tables(sizes: list[TableSize]) -> list[str]:
    """Declared, and not in the database."""
    return sorted(set(metadata.tables) - {size.name for size in sizes})


async def key_with_digests(engine: AsyncEngine, digests: Sequence[bytes]) -> KeyFound | None:
    """The key whose secret one of these is made of, or was, while its grace lasts."""
    former = former_credentials.c
    in_grace = select(former.key_id).where(former.digest.in_(digests), former.expires_at > func.now())
    found = await _keys(engine, or_(keys.c.digest.in_(digests), keys.c.id.in_(in_grace)), limit=1)
    return found[0] if found else None


async def key_with_id(engine: AsyncEngine, key_id: str) -> KeyFound | None:
    found = await _keys(engine, keys.c.id == key_id, limit=1) if is_uuid(key_id) else []
    return found[0] if found else None


async def newest_keys(engine: AsyncEngine, *, limit: int) -> list[KeyFound]:
    return await _keys(engine, literal_column("true"), limit=limit)


async def key_count(engine: AsyncEngine) -> int:
    async with transaction(engine) as connection:
        return int((await connection.execute(select(func.count()).select_from(keys))).scalar_one())


async def model_names(engine: AsyncEngine) -> list[tuple[str, tuple[str, ...]]]:
    """Every model with its aliases."""
    async with transaction(engine) as connection:
        found = await connection.execute(select(models.c.name, models.c.aliases).order_by(models.c.name))
        return [(name, tuple(aliases)) for name, aliases in found]


async def _keys(engine: AsyncEngine, condition: ColumnElement[bool], *, limit: int) -> list[KeyFound]:
    statement = (
        IDENTITIES.add_columns(keys.c.name, keys.c.key_prefix, keys.c.last4, keys.c.last_used_at, users.c.email)
        .where(condition)
        .order_by(keys.c.created_at.desc(), keys.c.id.desc())
        .limit(limit)
    )
    async with transaction(engine) as connection:
        return [_found(row) for row in await connection.execute(statement)]


def _found(row: AnyRow) -> KeyFound:
    shown = f"{row.key_prefix}…{row.last4}"
    return KeyFound(identity_of(row), row.name, shown, row.email, row.last_used_at, row.key_prefix)
