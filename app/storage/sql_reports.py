"""Looking back: the log of calls in pages, one call, its bodies, sums, exports. How the log is searched stands in `sql_log`."""

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from collections.abc import AsyncIterator, Collection
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from typing import Any

import msgspec
from sqlalchemy import (
    ColumnElement,
    Select,
    func,
    select,
)
from sqlalchemy.ext.asyncio import AsyncEngine

from app.database import transaction
from app.domain.record import CallContent, CallRecord, RecordDetail
from app.exceptions import InvalidRequest
from app.models.tables import deleted_users, usage_content, usage_rollups
from app.storage.keyset import decode_cursor, encode_cursor
from app.storage.ports import ANY_CALL, LogFilter, LogPage, UsageSums
from app.storage.sql_log import Place, bounded, matches_nothing, next_found
from app.storage.sql_rows import AnyRow, is_uuid

log = logging.getLogger("gateway.reports")

MAX_PAGE = 200
EXPORT_PAGE = 1_000
"""Rows an export reads at a time, each time in a transaction of its own: a reader that stalls holds no connection, and
no snapshot that would keep the database from cleaning up."""
PATIENCE_S = 0.08
"""How long a search for one page goes on before it tells how far it came: somebody waits for it."""
MAX_BODY_BYTES = 64 * 1024 * 1024
"""Far above what is ever stored; a body that unpacks to more was not written by us."""


class SqlReportStore:
    """ReportStore on PostgreSQL."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def log_page(self, log_filter: LogFilter, *, limit: int, cursor: str | None) -> LogPage:
        """Raises: InvalidRequest for a cursor that this list never gave."""
        limit = min(max(limit, 1), MAX_PAGE)
        place = None if cursor is None else _place_in(cursor)
        ends_s = time.monotonic() + PATIENCE_S
        found: list[CallRecord] = []
        while True:
            more, place = await self._next_records(log_filter, limit + 1 - len(found), place)
            found += more
            if len(found) > limit:
                items = found[:limit]
                return LogPage(items, encode_cursor(items[-1].created_at, items[-1].request_id))
            if place is None:
                return LogPage(found, None)
            if time.monotonic() >= ends_s:
                return LogPage(found, encode_cursor(*place), looked_to=place[0])

    async def record(self, request_id: str) -> CallRecord | None:
        found, _ = await self._next_records(LogFilter(request_id=request_id), 1, None)
        return found[0] if found else None

    async def content(self, request_id: str) -> CallContent | None:
        if not is_uuid(request_id):
            return None
        statement = select(usage_content).where(usage_content.c.request_id == request_id)
        async with transaction(self._engine) as connection:
            row = (await connection.execute(statement)).first()
        return None if row is None else await asyncio.to_thread(_content_of, row)

    async def summary(
        self, *, group_by: str, since: date | datetime, until: date | datetime, of: LogFilter = ANY_CALL
    ) -> list[UsageSums]:
        """Whole hours: from the one that `since` falls into, to the last that begins before `until`. A date as `until`
        includes that day. Sums by time come in order of time, others dearest first."""
        statement = _summary_statement(group_by, _beginning(since), _ending(until), of)
        if statement is None:
            return []
        async with transaction(self._engine) as connection:
            return [_sums_of(row) for row in await connection.execute(statement)]

    async def deletions(self, user_oids: Collection[str] | None) -> dict[str, datetime]:
        statement = select(deleted_users.c.oid, deleted_users.c.deleted_at)
        if user_oids is not None:
            statement = statement.where(deleted_users.c.oid.in_(user_oids))
        async with transaction(self._engine) as connection:
            return {row.oid: row.deleted_at for row in await connection.execute(statement)}

    async def export(self, log_filter: LogFilter) -> AsyncIterator[CallRecord]:
        """Newest first, in pages by keyset. What is written meanwhile is newer and not part of it."""
        place: Place | None = None
        while True:
            found, place = await self._next_records(log_filter, EXPORT_PAGE, place)
            for record in found:
                yield record
            if place is None:
                return

    async def _next_records(
        self, log_filter: LogFilter, wanted: int, before: Place | None
    ) -> tuple[list[CallRecord], Place | None]:
        """The next that match, and where the search goes on; None: it is at its end."""
        async with transaction(self._engine) as connection:
            found = await next_found(connection, log_filter, wanted, before)
        return [_record_of(row) for row in found.rows], found.looked_to


# ── Records ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _place_in(cursor: str) -> Place:
    at, ident = decode_cursor(cursor)
    if not is_uuid(ident):
        raise InvalidRequest("'cursor' is not one that this list gave.", param="cursor")
    return bounded(at), ident


_detail = msgspec.json.Decoder(RecordDetail)


def _record_of(row: AnyRow) -> CallRecord:
    fields = dict(row._mapping)
    created_at: datetime = fields.pop("created_at")
    fields["detail"] = _detail_of(fields["request_id"], fields["detail"])
    return CallRecord(created_at_ms=_milliseconds(created_at), **fields)


def _detail_of(request_id: str, text: str) -> RecordDetail:
    try:
        return _detail.decode(text)
    except msgspec.ValidationError as error:  # of another version's making: the record counts more than its explanation
        log.warning("the detail of record %s is not readable: %s", request_id, error)
        return RecordDetail()


def _milliseconds(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def _content_of(row: AnyRow) -> CallContent:
    return CallContent(
        request_id=row.request_id,
        created_at_ms=_milliseconds(row.created_at),
        user_oid=row.user_oid,
        request_body=_unpacked(row.request_body),
        response_body=_unpacked(row.response_body),
        is_truncated=row.is_truncated,
    )


def _unpacked(body: bytes) -> bytes:
    return zlib.decompressobj().decompress(body, MAX_BODY_BYTES)


# ── Sums ──────────────────────────────────────────────────────────────────────────────────────────────────────────────

_hour = usage_rollups.c.hour
_HOUR_FORMAT, _DAY_FORMAT = 'YYYY-MM-DD"T"HH24:MI:SS"Z"', "YYYY-MM-DD"
_GROUPS: dict[str, ColumnElement[str]] = {
    "key": usage_rollups.c.key_id,
    "user": usage_rollups.c.user_oid,
    "app": usage_rollups.c.app_id,
    "model": usage_rollups.c.model,
    "endpoint": usage_rollups.c.endpoint_id,
    "hour": func.to_char(func.timezone("UTC", _hour), _HOUR_FORMAT),
    "day": func.to_char(func.timezone("UTC", _hour), _DAY_FORMAT),
}


def _summary_statement(
    group_by: str, since: datetime, until: datetime, of: LogFilter
) -> Select[*tuple[Any, ...]] | None:
    names = group_by.split(",")
    if not set(names) <= set(_GROUPS) or len(set(names)) != len(names) or len(names) > 2:
        raise InvalidRequest(
            f"'group_by' is one of {', '.join(_GROUPS)}, or two of them with a comma between.", param="group_by"
        )
    if matches_nothing(of):
        return None
    sums = [
        func.sum(usage_rollups.c[name]).label(name)
        for name in ("requests", "errors", "prompt_tokens", "completion_tokens", "cost_nanousd")
    ]
    labelled = [_GROUPS[name].label(f"grp{place}") for place, name in enumerate(names)]
    by_time = [label for label, name in zip(labelled, names, strict=True) if name in ("hour", "day")]
    return (
        select(*labelled, *sums)
        .where(_hour >= since.replace(minute=0, second=0, microsecond=0), _hour < until, *_rollups_of(of))
        .group_by(*labelled)
        .order_by(*by_time, sums[-1].desc(), *labelled)
    )


def _rollups_of(of: LogFilter) -> list[ColumnElement[bool]]:
    columns = usage_rollups.c
    wanted = (
        (columns.user_oid, of.user_oid),
        (columns.key_id, of.key_id),
        (columns.app_id, of.app_id),
        (columns.model, of.model),
        (columns.endpoint_id, of.endpoint_id),
    )
    return [column == value for column, value in wanted if value is not None]


def _sums_of(row: AnyRow) -> UsageSums:
    return UsageSums(
        group=row.grp0,
        requests=int(row.requests),
        errors=int(row.errors),
        prompt_tokens=int(row.prompt_tokens),
        completion_tokens=int(row.completion_tokens),
        cost_nanousd=int(row.cost_nanousd),
        subgroup=row.grp1 if "grp1" in row._mapping else None,
    )


def _beginning(since: date | datetime) -> datetime:
    return _moment(since).astimezone(UTC)


def _ending(until: date | datetime) -> datetime:
    return _moment(until if isinstance(until, datetime) else min(until, date(9999, 1, 1)) + timedelta(days=1))


def _moment(day_or_moment: date | datetime) -> datetime:
    if isinstance(day_or_moment, datetime):
        return bounded(day_or_moment)
    return bounded(datetime.combine(day_or_moment, time_of_day.min, tzinfo=UTC))
