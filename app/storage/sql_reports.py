"""Looking back: the log of calls (the ledger and the refusals as one list), one call, its bodies, sums, exports.

Searches are by equality, values travel as parameters, and pages are read by keyset: what a search costs does not depend
on how deep it looks, and no word of a caller is ever part of a statement.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import AsyncIterator, Collection
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import msgspec
from sqlalchemy import (
    Column,
    ColumnElement,
    CompoundSelect,
    Select,
    Table,
    Text,
    cast,
    false,
    func,
    literal,
    literal_column,
    null,
    select,
    tuple_,
    union_all,
)
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.database import transaction
from app.domain.record import CallContent, CallRecord, RecordDetail
from app.exceptions import InvalidRequest
from app.models.tables import deleted_users, refused_calls, usage_content, usage_records, usage_rollups
from app.storage.keyset import decode_cursor, encode_cursor
from app.storage.ports import ANY_CALL, LogFilter, LogPage, UsageSums
from app.storage.sql_rows import AnyRow, is_uuid
from app.storage.sql_usage import NO_ERRORS

log = logging.getLogger("gateway.reports")

MAX_PAGE = 200
EXPORT_PAGE = 1_000
"""Rows an export reads at a time, each time in a transaction of its own: a reader that stalls holds no connection, and
no snapshot that would keep the database from cleaning up."""
EARLIEST, LATEST = datetime(2000, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
"""Times outside of these are taken as these: PostgreSQL's and Python's calendars end in different years."""
MAX_BODY_BYTES = 64 * 1024 * 1024
"""Far above what is ever stored; a body that unpacks to more was not written by us."""

Place = tuple[datetime, str]
"""Where a page ended."""


class SqlReportStore:
    """ReportStore on PostgreSQL."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def log_page(self, log_filter: LogFilter, *, limit: int, cursor: str | None) -> LogPage:
        """Raises: InvalidRequest for a cursor that this list never gave."""
        limit = min(max(limit, 1), MAX_PAGE)
        found = await self._records(log_filter, limit + 1, None if cursor is None else _place_in(cursor))
        items = found[:limit]
        is_last = len(found) <= limit
        return LogPage(items, None if is_last else encode_cursor(items[-1].created_at, items[-1].request_id))

    async def record(self, request_id: str) -> CallRecord | None:
        found = await self._records(LogFilter(request_id=request_id), 1, None)
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
            found = await self._records(log_filter, EXPORT_PAGE, place)
            for record in found:
                yield record
            if len(found) < EXPORT_PAGE:
                return
            place = (found[-1].created_at, found[-1].request_id)

    async def _records(self, log_filter: LogFilter, limit: int, before: Place | None) -> list[CallRecord]:
        statement = _log_statement(log_filter, limit, before)
        if statement is None:
            return []
        async with transaction(self._engine) as connection:
            rows = await _rows(connection, statement)
        return [_record_of(row) for row in rows]


async def _rows(connection: AsyncConnection, statement: Select[Any] | CompoundSelect[Any]) -> list[AnyRow]:
    return list((await connection.execute(statement)).all())


# ── The log ───────────────────────────────────────────────────────────────────────────────────────────────────────────

_AS_REFUSED: dict[str, ColumnElement[Any]] = {
    # What a refused call's row leaves out, because it is the same for all of them.
    "served_model": refused_calls.c.requested_model,
    "endpoint_id": null(),
    "provider": null(),
    "outcome": literal_column("'refused'"),
    "prompt_tokens": literal_column("0"),
    "completion_tokens": literal_column("0"),
    "cached_tokens": literal_column("0"),
    "reasoning_tokens": literal_column("0"),
    "usage_quality": literal_column("'exact'"),
    "cost_nanousd": literal_column("0"),
    "price_id": null(),
    "first_token_ms": null(),
    "attempts": literal_column("0"),
}


def _column(table: Table, name: str) -> ColumnElement[Any]:
    if name == "detail":
        return cast(table.c.detail, Text).label(name)  # as text, to be read once, into its own type
    if name in table.c:
        return table.c[name]
    return cast(_AS_REFUSED[name], usage_records.c[name].type).label(name)


_NAMES = [column.name for column in usage_records.c]
_LEDGER = [_column(usage_records, name) for name in _NAMES]
_REFUSED = [_column(refused_calls, name) for name in _NAMES]


def _log_statement(log_filter: LogFilter, limit: int, before: Place | None) -> Select[Any] | CompoundSelect[Any] | None:
    """The newest `limit` records before a place. None when nothing can match (an id that is none, say)."""
    if _matches_nothing(log_filter):
        return None
    ledger = _page(usage_records, _LEDGER, log_filter, limit, before)
    refused = _page(refused_calls, _REFUSED, log_filter, limit, before)
    if log_filter.outcome == "refused":
        return None if _excludes_refusals(log_filter) else refused
    if log_filter.is_error:
        # The first condition says nothing new, but it is the one of the index.
        return ledger.where(usage_records.c.outcome != "ok", usage_records.c.outcome.not_in(NO_ERRORS))
    if log_filter.outcome is not None:
        return ledger.where(usage_records.c.outcome == log_filter.outcome)
    if _excludes_refusals(log_filter):
        return ledger
    both = union_all(select(ledger.subquery()), select(refused.subquery()))
    # By name, as the two halves of a union have no table: newest first, like each of them.
    return both.order_by(*(both.selected_columns[name].desc() for name in ("created_at", "request_id"))).limit(limit)


def _page(
    table: Table, columns: list[ColumnElement[Any]], log_filter: LogFilter, limit: int, before: Place | None
) -> Select[Any]:
    at, ident = table.c.created_at, table.c.request_id
    statement = select(*columns).where(*_conditions(table, log_filter))
    if before is not None:
        # The first condition says nothing new, but it lets the planner leave out later partitions.
        place = tuple_(literal(before[0], at.type), literal(before[1], ident.type))
        statement = statement.where(at <= before[0], tuple_(at, ident) < place)
    return statement.order_by(at.desc(), ident.desc()).limit(limit)


def _conditions(table: Table, log_filter: LogFilter) -> list[ColumnElement[bool]]:
    wanted: list[tuple[Column[Any], object]] = [
        (table.c.request_id, log_filter.request_id),
        (table.c.user_oid, log_filter.user_oid),
        (table.c.key_id, log_filter.key_id),
        (table.c.app_id, log_filter.app_id),
        (table.c.requested_model, log_filter.model),
        (table.c.http_status, log_filter.http_status),
        (table.c.client_request_id, log_filter.client_request_id),
        (table.c.dialect, log_filter.dialect),
        (table.c.error_code, log_filter.error_code),
        (table.c.is_stream, log_filter.is_stream),
    ]
    conditions = [column == value for column, value in wanted if value is not None]
    if log_filter.min_duration_ms is not None:
        conditions.append(table.c.duration_ms >= log_filter.min_duration_ms)
    if log_filter.max_duration_ms is not None:
        conditions.append(table.c.duration_ms <= log_filter.max_duration_ms)
    if table is usage_records:
        conditions += _ledger_conditions(log_filter)
    if log_filter.since is not None:
        conditions.append(table.c.created_at >= _bounded(log_filter.since))
    if log_filter.until is not None:
        conditions.append(table.c.created_at < _bounded(log_filter.until))
    return conditions or [~false()]


def _ledger_conditions(log_filter: LogFilter) -> list[ColumnElement[bool]]:
    """By what only calls have that were admitted."""
    wanted: list[tuple[Column[Any], object]] = [
        (usage_records.c.served_model, log_filter.served_model),
        (usage_records.c.endpoint_id, log_filter.endpoint_id),
        (usage_records.c.provider, log_filter.provider),
    ]
    conditions = [column == value for column, value in wanted if value is not None]
    if log_filter.min_cost_nanousd is not None:
        conditions.append(usage_records.c.cost_nanousd >= log_filter.min_cost_nanousd)
    if log_filter.max_cost_nanousd is not None:
        conditions.append(usage_records.c.cost_nanousd <= log_filter.max_cost_nanousd)
    return conditions


def _excludes_refusals(log_filter: LogFilter) -> bool:
    """They reached no endpoint and cost nothing; they were to be served by the model that was asked for."""
    return (
        any((log_filter.endpoint_id, log_filter.provider, log_filter.served_model))
        or (log_filter.min_cost_nanousd or 0) > 0
    )


def _matches_nothing(log_filter: LogFilter) -> bool:
    ids = (log_filter.request_id, log_filter.key_id, log_filter.endpoint_id)
    texts = (
        *(log_filter.user_oid, log_filter.app_id, log_filter.model, log_filter.outcome, log_filter.client_request_id),
        *(log_filter.served_model, log_filter.provider, log_filter.dialect, log_filter.error_code),
    )
    status = log_filter.http_status
    return (
        any(ident is not None and not is_uuid(ident) for ident in ids)
        or any(text is not None and not _is_storable(text) for text in texts)
        or (status is not None and not 0 <= status < 1_000)
    )


def _is_storable(text: str) -> bool:
    """Whether PostgreSQL could hold it: without NUL, and whole characters only."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\x00" not in text


def _place_in(cursor: str) -> Place:
    at, ident = decode_cursor(cursor)
    if not is_uuid(ident):
        raise InvalidRequest("'cursor' is not one that this list gave.", param="cursor")
    return _bounded(at), ident


def _bounded(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return min(max(moment, EARLIEST), LATEST)


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
    if _matches_nothing(of):
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
        return _bounded(day_or_moment)
    return _bounded(datetime.combine(day_or_moment, time.min, tzinfo=UTC))
