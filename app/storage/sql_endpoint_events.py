"""EndpointEventStore on PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from app.database import transaction
from app.models.tables import endpoint_events
from app.storage.endpoint_ports import EndpointEvent, EventKind
from app.storage.keyset import after, page_of
from app.storage.management_ports import Page
from app.storage.sql_rows import AnyRow, is_uuid

MAX_CHARS = 500


class SqlEndpointEvents:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def keep(self, events: Sequence[EndpointEvent]) -> list[EndpointEvent]:
        if not events:
            return []
        statement = insert(endpoint_events).values([_values(event) for event in events])
        async with transaction(self._engine) as connection:
            kept = await connection.execute(statement.on_conflict_do_nothing().returning(endpoint_events.c.id))
            new = set(kept.scalars())
        return [event for event in events if event.id in new]

    async def page(self, endpoint_id: str, *, limit: int, cursor: str | None) -> Page[EndpointEvent]:
        if not is_uuid(endpoint_id):
            return Page([], None)
        of_endpoint = select(endpoint_events).where(endpoint_events.c.endpoint_id == endpoint_id)
        statement = after(of_endpoint, cursor, endpoint_events.c.at, endpoint_events.c.id, limit)
        async with transaction(self._engine) as connection:
            rows = [_event(row) for row in await connection.execute(statement)]
        return page_of(rows, limit, lambda event: (event.at, event.id))

    async def alerts(self, *, limit: int, cursor: str | None) -> Page[EndpointEvent]:
        wanted = select(endpoint_events).where(endpoint_events.c.once.is_not(None))
        statement = after(wanted, cursor, endpoint_events.c.at, endpoint_events.c.id, limit)
        async with transaction(self._engine) as connection:
            rows = [_event(row) for row in await connection.execute(statement)]
        return page_of(rows, limit, lambda event: (event.at, event.id))

    async def forget_before(self, moment: datetime) -> int:
        async with transaction(self._engine) as connection:
            gone = await connection.execute(delete(endpoint_events).where(endpoint_events.c.at < moment))
        return int(gone.rowcount)


def _values(event: EndpointEvent) -> dict[str, object]:
    return {
        "id": event.id,
        "at": event.at,
        "endpoint_id": event.endpoint_id,
        "model": event.model,
        "kind": event.kind.value,
        "reason": _storable(event.reason),
        "message": _storable(event.message),
        "upstream_status": event.upstream_status,
        "open_ms": None if event.open_s is None else round(event.open_s * 1000),
        "process": event.process,
        "once": event.once,
    }


def _storable(text: str | None) -> str | None:
    """What PostgreSQL takes: one event with a NUL or half a character in it would hold up all those behind it."""
    return None if text is None else text.replace("\x00", "").encode("utf-8", "replace").decode()[:MAX_CHARS]


def _event(row: AnyRow) -> EndpointEvent:
    return EndpointEvent(
        id=row.id,
        at=row.at,
        endpoint_id=row.endpoint_id,
        model=row.model,
        kind=EventKind(row.kind),
        reason=row.reason,
        message=row.message,
        upstream_status=row.upstream_status,
        open_s=None if row.open_ms is None else row.open_ms / 1000,
        process=row.process,
    )
