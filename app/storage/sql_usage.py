"""The ledger on PostgreSQL: records, their hourly sums, and the bodies of calls.

How a batch is written:

1. Records are made fit to store: no NUL characters, no endless text (callers choose some of it).
2. Missing partitions are made.
3. In one transaction: the records go in, those already there are ignored, and the sums of those really new are added to
   the rollups. Records and rollup rows are written in sorted order, so that two writers never wait for each other.
4. One kind of row does change: `lost` says that nobody knows what became of a call. When a record that knows arrives later,
   it takes that row's place, and the rollups are corrected by the difference in the same transaction. The other way round,
   a `lost` record that comes after the truth is ignored: whatever their order, the same sums remain.
5. If the database refuses the batch because of its content, it is halved until the record at fault stands alone. All
   others are written; then `RecordsRejected` names the ones that could not be.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from operator import attrgetter
from typing import Any, TypeVar
from uuid import UUID

import asyncpg
import msgspec
from sqlalchemy import ColumnElement, Select, Table, bindparam, delete, func, or_, select, tuple_
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.database import QUICK_S, transaction
from app.domain.budget import BudgetClaim
from app.domain.histogram import BUCKETS, bucket_of
from app.domain.limits import Scope
from app.domain.masking import mask_secrets
from app.domain.money import NanoUsd
from app.domain.record import CallContent, CallRecord, RecordDetail
from app.exceptions import DependencyUnavailable
from app.models.tables import (
    DURATION_COUNTS,
    FIRST_TOKEN_COUNTS,
    MAX_NAME_CHARS,
    usage_content,
    usage_records,
    usage_rollups,
)
from app.storage.rejected import RecordsRejected
from app.storage.sql_partitions import Month, drop_partitions_before, ensure_partitions, month_of
from app.storage.sql_rows import is_uuid

log = logging.getLogger("gateway.ledger")

MAX_DETAIL_BYTES = 256 * 1024
"""An explanation is a few kilobytes; one larger than this is no explanation any more."""
MAX_COST_LINES = 100
"""A bill has a dozen lines at most."""
MAX_BATCH = 2_000
"""Records in one statement: enough to make round trips cheap, little enough to stay far below the statement timeout."""
COMPRESSION = 1
"""zlib's fastest: JSON shrinks to a fifth, and the next levels win a tenth more for twice the time."""
HOUR_MS = 3_600_000
OLDEST, NEWEST = datetime(2020, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
"""A record from outside of these is no record of ours, and must not make partitions for centuries."""

ERASED_AT_ONCE = 2_000

_erase_some = delete(usage_content).where(
    tuple_(usage_content.c.created_at, usage_content.c.request_id).in_(
        select(usage_content.c.created_at, usage_content.c.request_id)
        .where(usage_content.c.user_oid == bindparam("user_oid"))
        .limit(bindparam("some"))
    )
)

Item = TypeVar("Item", CallRecord, CallContent)


class SqlUsageStore:
    """UsageStore on PostgreSQL."""

    def __init__(self, engine: AsyncEngine, *, masks_secrets: bool = True) -> None:
        """`masks_secrets`: bodies are kept without what looks like a credential in them."""
        self._engine = engine
        self._masks_secrets = masks_secrets
        self._months: set[Month] = set()

    async def write(self, records: Sequence[CallRecord]) -> int:
        """Returns how many were new (one that takes the place of a `lost` row is not). Raises: RecordsRejected after the
        others were written."""
        ordered = sorted(_one_for_each_call(map(_fit_to_store, records)), key=_id)
        return await self._write_all(ordered, self._write_records)

    async def erase_content(self, user_oid: str) -> int:
        erased = 0
        while True:  # in steps, each well within a statement's time
            async with transaction(self._engine) as connection:
                count = (await connection.execute(_erase_some, {"user_oid": user_oid, "some": ERASED_AT_ONCE})).rowcount
            erased += count
            if count < ERASED_AT_ONCE:
                return erased

    async def write_content(self, contents: Sequence[CallContent]) -> None:
        """Raises: RecordsRejected after the others were written."""
        ordered = sorted({content.request_id: content for content in contents}.values(), key=_id)
        await self._write_all(ordered, self._write_contents)

    async def spent(self, claim: BudgetClaim) -> NanoUsd:
        """Whole hours from the rollups, what is left of the first and last hour (zones with half hours) from the ledger."""
        if claim.scope is Scope.KEY and not is_uuid(claim.scope_id):
            return NanoUsd(0)
        async with transaction(self._engine, within_s=QUICK_S) as connection:
            spent = (await connection.execute(spent_statement(claim))).scalar_one()
        return NanoUsd(int(spent))

    async def recorded(self, call_ids: Sequence[str]) -> dict[str, bool]:
        ids = [call_id for call_id in call_ids if is_uuid(call_id)]
        async with transaction(self._engine, within_s=QUICK_S) as connection:
            rows = (await connection.exec_driver_sql(RECORDED, (ids,))).all()
        return {str(row.request_id): row.is_lost for row in rows}

    async def ensure_partitions(self, *moments: datetime) -> list[str]:
        """Make the partitions for the months of these moments, where they are missing. Returns the names of the new ones."""
        months = {month_of(moment) for moment in moments} - self._months
        made = await ensure_partitions(self._engine, months) if months else []
        self._months |= months
        return made

    async def drop_before(self, moment: datetime) -> list[str]:
        """Drop the months that ended before `moment`, records, refusals and bodies; the rollups stay. Returns names."""
        self._months.clear()
        return await drop_partitions_before(self._engine, moment)

    async def _write_all(self, items: list[Item], write: Callable[[Sequence[Item]], Awaitable[int]]) -> int:
        written, reasons = 0, dict[str, str]()
        for start in range(0, len(items), MAX_BATCH):
            written += await self._write_or_halve(items[start : start + MAX_BATCH], write, reasons)
        if reasons:
            raise RecordsRejected(reasons, written=written)
        return written

    async def _write_or_halve(
        self, items: list[Item], write: Callable[[Sequence[Item]], Awaitable[int]], reasons: dict[str, str]
    ) -> int:
        try:
            return await write(items)
        except (DBAPIError, OverflowError, ValueError) as error:
            reason = _fault_of_content(error)
        if len(items) > 1:
            middle = len(items) // 2
            first = await self._write_or_halve(items[:middle], write, reasons)
            return first + await self._write_or_halve(items[middle:], write, reasons)
        self._months.clear()  # alone, it gets a second chance: its partition may have been dropped since we saw it
        try:
            return await write(items)
        except (DBAPIError, OverflowError, ValueError) as error:
            reason = _fault_of_content(error)
        log.error("record %s cannot be stored: %s", items[0].request_id[:100], reason)
        reasons[items[0].request_id] = reason
        return 0

    async def _write_records(self, records: Sequence[CallRecord]) -> int:
        refusals = [record for record in records if record.is_refusal]
        await self.ensure_partitions(*map(_time_of, records))
        async with transaction(self._engine) as connection:
            await _take_turns(
                connection, has_lost=any(record.is_lost for record in records), has_refusals=bool(refusals)
            )
            new_refusals = await _insert(connection, REFUSED_INSERT, _REFUSED_FIELDS, refusals)
            ledger = await _without_those_refused(connection, [record for record in records if not record.is_refusal])
            new = await _insert(connection, LEDGER_INSERT, _LEDGER_FIELDS, ledger)
            known = [record for record in ledger if record.request_id not in new and not record.is_lost]
            replaced = await _replace_lost(connection, known, refusals)
            found = {record.request_id for record in replaced}
            added = [record for record in ledger if record.request_id in new or record.request_id in found]
            await _add_to_rollups(connection, added, replaced)
            await _count_refusals(connection, [record for record in refusals if record.request_id in new_refusals])
        return len(new) + len(new_refusals)

    async def _write_contents(self, contents: Sequence[CallContent]) -> int:
        packed = await asyncio.to_thread(
            _compressed, contents, self._masks_secrets
        )  # milliseconds per megabyte: not on the loop
        await self.ensure_partitions(*map(_time_of, contents))
        async with transaction(self._engine) as connection:
            return len(await _insert(connection, CONTENT_INSERT, _CONTENT_FIELDS, packed))


# ── Statements ────────────────────────────────────────────────────────────────────────────────────────────────────────

RECORDED = (
    "SELECT request_id, coalesce(error_code = 'lost' AND outcome IN ('lost', 'interrupted'), false) AS is_lost "
    "FROM usage_records WHERE request_id = ANY($1::uuid[])"
)

# A whole batch travels as one array per column: one statement, one plan, however many rows.
_LEDGER_TYPES = {
    "created_at": "timestamptz",
    "request_id": "uuid",
    "client_request_id": "text",
    "user_oid": "text",
    "key_id": "uuid",
    "app_id": "text",
    "requested_model": "text",
    "served_model": "text",
    "endpoint_id": "uuid",
    "provider": "text",
    "dialect": "text",
    "is_stream": "bool",
    "outcome": "text",
    "http_status": "int2",
    "error_code": "text",
    "error_reason": "text",
    "prompt_tokens": "int8",
    "completion_tokens": "int8",
    "cached_tokens": "int8",
    "reasoning_tokens": "int8",
    "usage_quality": "text",
    "cost_nanousd": "int8",
    "price_id": "text",
    "first_token_ms": "int4",
    "duration_ms": "int4",
    "attempts": "int2",
    "detail": "text::jsonb",
}
_REFUSED_TYPES = {
    name: _LEDGER_TYPES[name]
    for name in (
        *("created_at", "request_id", "client_request_id", "user_oid", "key_id", "app_id", "requested_model"),
        *("dialect", "is_stream", "http_status", "error_code", "error_reason", "duration_ms", "detail"),
    )
}
_CONTENT_TYPES = {
    "created_at": "timestamptz",
    "request_id": "uuid",
    "user_oid": "text",
    "request_body": "bytea",
    "response_body": "bytea",
    "is_truncated": "bool",
}
NO_ERRORS = ("ok", "client_cancelled")
"""Outcomes that are what the caller asked for; all others count as errors."""
SUMS = (
    *("requests", "errors", "prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens"),
    "cost_nanousd",
)
ROLLUP_KEY = ("hour", "user_oid", "key_id", "app_id", "model", "endpoint_id")
_ROLLUP_TYPES = {
    "hour": "timestamptz",
    **dict.fromkeys(ROLLUP_KEY[1:], "text"),
    **dict.fromkeys(SUMS, "int8"),
}


def _insert_arrays(table: str, types: Mapping[str, str]) -> str:
    arrays = ", ".join(f"${number}::{kind.partition('::')[0]}[]" for number, kind in enumerate(types.values(), 1))
    values = ", ".join(f"given.{name}{''.join(kind.partition('::')[1:])}" for name, kind in types.items())
    names = ", ".join(types)
    return f"INSERT INTO {table} ({names}) SELECT {values} FROM unnest({arrays}) AS given ({names})"  # noqa: S608 - ours


LEDGER_INSERT = f"{_insert_arrays('usage_records', _LEDGER_TYPES)} ON CONFLICT DO NOTHING RETURNING request_id"
REFUSED_INSERT = f"{_insert_arrays('refused_calls', _REFUSED_TYPES)} ON CONFLICT DO NOTHING RETURNING request_id"
CONTENT_INSERT = f"{_insert_arrays('usage_content', _CONTENT_TYPES)} ON CONFLICT DO NOTHING RETURNING request_id"
ENDPOINT_KEY = ("hour", "model", "endpoint_id")
ENDPOINT_SUMS = (*SUMS, *DURATION_COUNTS, *FIRST_TOKEN_COUNTS)
_ENDPOINT_TYPES = {
    "hour": "timestamptz",
    **dict.fromkeys(ENDPOINT_KEY[1:], "text"),
    **dict.fromkeys(ENDPOINT_SUMS, "int8"),
}


DAY_KEY = ("day", "user_oid", "key_id", "app_id")
_DAY_TYPES = {"day": "timestamptz", **dict.fromkeys(DAY_KEY[1:], "text"), **dict.fromkeys(SUMS, "int8")}


def _add_sums(table: str, key: Sequence[str], sums: Sequence[str], types: Mapping[str, str]) -> str:
    added = ", ".join(f"{name} = {table}.{name} + excluded.{name}" for name in sums)
    return f"{_insert_arrays(table, types)} ON CONFLICT ({', '.join(key)}) DO UPDATE SET {added}"


def _delete_empty(table: str, key: Sequence[str], sums: Sequence[str], types: Mapping[str, str]) -> str:
    arrays = ", ".join(f"${number}::{types[name]}[]" for number, name in enumerate(key, 1))
    same = " AND ".join(f"{table}.{name} = given.{name}" for name in key)
    empty = " AND ".join(f"{table}.{name} = 0" for name in sums)
    return f"DELETE FROM {table} USING unnest({arrays}) AS given ({', '.join(key)}) WHERE {same} AND {empty}"  # noqa: S608


ROLLUP_UPSERT = _add_sums("usage_rollups", ROLLUP_KEY, SUMS, _ROLLUP_TYPES)
ROLLUP_DELETE = _delete_empty("usage_rollups", ROLLUP_KEY, SUMS, _ROLLUP_TYPES)
DAY_UPSERT = _add_sums("day_rollups", DAY_KEY, SUMS, _DAY_TYPES)
DAY_DELETE = _delete_empty("day_rollups", DAY_KEY, SUMS, _DAY_TYPES)
REFUSAL_KEY = ("hour", "error_code", "http_status")
REFUSAL_UPSERT = _add_sums(
    "refusal_rollups",
    REFUSAL_KEY,
    ("requests",),
    {"hour": "timestamptz", "error_code": "text", "http_status": "int2", "requests": "int8"},
)
ENDPOINT_UPSERT = _add_sums("endpoint_rollups", ENDPOINT_KEY, ENDPOINT_SUMS, _ENDPOINT_TYPES)
ENDPOINT_DELETE = _delete_empty("endpoint_rollups", ENDPOINT_KEY, SUMS, _ENDPOINT_TYPES)


async def _insert(
    connection: AsyncConnection, statement: str, fields: Sequence[Callable[[Item], object]], items: Sequence[Item]
) -> set[str]:
    """Insert and return the ids of those that were not there yet."""
    if not items:
        return set()
    columns = tuple([field(item) for item in items] for field in fields)
    return {str(new_id) for (new_id,) in await connection.exec_driver_sql(statement, columns)}


# ── Lost, and found ───────────────────────────────────────────────────────────────────────────────────────────────────

LOST_LOCK = 7_235_142_930_414
"""Told apart by the table they are in, a refusal and a `lost` record of one call do not meet in an index. They meet here:
who writes refusals shares this lock, who writes `lost` records (they are rare) has it alone."""

_CALLS = "unnest($1::timestamptz[], $2::uuid[]) AS given (created_at, request_id)"
_SAME_CALL = "usage_records.created_at = given.created_at AND usage_records.request_id = given.request_id"
LOST_SELECT = (
    f"SELECT {', '.join(f'usage_records.{name}' for name in _LEDGER_TYPES if name != 'detail')} FROM usage_records "  # noqa: S608
    f"JOIN {_CALLS} ON {_SAME_CALL} WHERE error_code = 'lost' AND outcome IN ('lost', 'interrupted') "  # `CallRecord.is_lost`
    "ORDER BY usage_records.request_id FOR UPDATE OF usage_records"
)
LOST_DELETE = f"DELETE FROM usage_records USING {_CALLS} WHERE {_SAME_CALL}"  # noqa: S608 - ours
REFUSED_SELECT = (
    f"SELECT refused_calls.request_id FROM refused_calls JOIN {_CALLS} "  # noqa: S608 - ours
    "ON refused_calls.created_at = given.created_at AND refused_calls.request_id = given.request_id"
)


async def _take_turns(connection: AsyncConnection, *, has_lost: bool, has_refusals: bool) -> None:
    if has_lost or has_refusals:
        lock = "pg_advisory_xact_lock" if has_lost else "pg_advisory_xact_lock_shared"
        await connection.exec_driver_sql(f"SELECT {lock}($1)", (LOST_LOCK,))


async def _without_those_refused(connection: AsyncConnection, ledger: list[CallRecord]) -> list[CallRecord]:
    """Without the `lost` records of calls that are known to have been refused: such a call never reached an upstream."""
    lost = [record for record in ledger if record.is_lost]
    if not lost:
        return ledger
    found = await connection.exec_driver_sql(REFUSED_SELECT, _calls(lost))
    refused = {str(request_id) for (request_id,) in found}
    return [record for record in ledger if not (record.is_lost and record.request_id in refused)]


async def _replace_lost(
    connection: AsyncConnection, known: Sequence[CallRecord], refusals: Sequence[CallRecord]
) -> list[CallRecord]:
    """Put these records where the ledger has their calls as `lost`; those of refused calls go without a successor.

    Returns the rows that are gone. All of them are locked in one sorted statement, before any is touched.
    """
    if not known and not refusals:
        return []
    found = (await connection.exec_driver_sql(LOST_SELECT, _calls([*known, *refusals]))).mappings().all()
    gone = [_lost_record(dict(row)) for row in found]
    if gone:
        await connection.exec_driver_sql(LOST_DELETE, _calls(gone))
        ids = {record.request_id for record in gone}
        await _insert(connection, LEDGER_INSERT, _LEDGER_FIELDS, [r for r in known if r.request_id in ids])
    return gone


def _lost_record(row: dict[str, Any]) -> CallRecord:
    created_at: datetime = row.pop("created_at")
    ids = {name: None if row[name] is None else str(row[name]) for name in _IDS}
    since = created_at - datetime(1970, 1, 1, tzinfo=UTC)
    return CallRecord(**{**row, **ids}, created_at_ms=since // timedelta(milliseconds=1), detail=RecordDetail())


def _calls(records: Sequence[CallRecord]) -> tuple[list[datetime], list[str]]:
    return [_time_of(record) for record in records], [record.request_id for record in records]


def _one_for_each_call(records: Iterable[CallRecord]) -> Iterable[CallRecord]:
    """The first of each call, unless that one is `lost` and a later one knows more."""
    first: dict[str, CallRecord] = {}
    for record in records:
        if record.request_id not in first or (first[record.request_id].is_lost and not record.is_lost):
            first[record.request_id] = record
    return first.values()


# ── Rollups ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _add_to_rollups(
    connection: AsyncConnection, added: Sequence[CallRecord], removed: Sequence[CallRecord]
) -> None:
    if not added and not removed:
        return
    rollups = rollups_of(added, removed)
    await connection.exec_driver_sql(ROLLUP_UPSERT, _columns(rollups))
    await connection.exec_driver_sql(DAY_UPSERT, _columns(_day_rollups_of(rollups)))
    await connection.exec_driver_sql(ENDPOINT_UPSERT, _columns(_endpoint_rollups_of(rollups, added, removed)))
    if removed:  # what a lost call was booked under may be nobody's now (it had no endpoint yet, say)
        keys = sorted({_rollup_key(record) for record in removed})
        await connection.exec_driver_sql(ROLLUP_DELETE, _columns(keys))
        await connection.exec_driver_sql(DAY_DELETE, _columns(sorted({_day_key(record) for record in removed})))
        await connection.exec_driver_sql(ENDPOINT_DELETE, _columns(sorted({_endpoint_key(each) for each in removed})))


async def _count_refusals(connection: AsyncConnection, refused: Sequence[CallRecord]) -> None:
    counts = Counter(map(_refusal_key, refused))
    if counts:
        await connection.exec_driver_sql(REFUSAL_UPSERT, _columns((*key, counts[key]) for key in sorted(counts)))


def _columns(rows: Iterable[tuple[object, ...]]) -> tuple[list[object], ...]:
    return tuple(list(column) for column in zip(*rows, strict=True))


RollupKey = tuple[datetime, str, str, str, str, str]
DayKey = tuple[datetime, str, str, str]
EndpointKey = tuple[datetime, str, str]


def rollups_of(added: Iterable[CallRecord], removed: Iterable[CallRecord] = ()) -> list[tuple[object, ...]]:
    """What these records change in the rollups, sorted: hour, user, key, app, model, endpoint and then the sums."""
    sums: defaultdict[RollupKey, list[int]] = defaultdict(lambda: [0] * len(SUMS))
    for sign, records in ((1, added), (-1, removed)):
        alike: defaultdict[RollupKey, list[CallRecord]] = defaultdict(list)
        for record in records:
            alike[_rollup_key(record)].append(record)
        for key, group in alike.items():
            row = sums[key]
            for position, amount in enumerate(_AMOUNTS):
                row[position] += sign * sum(map(amount, group))
    return [(*key, *row) for key, row in sorted(sums.items())]


def _day_rollups_of(rollups: Iterable[tuple[Any, ...]]) -> list[tuple[object, ...]]:
    """The same by day, user, key and app."""
    sums: defaultdict[DayKey, list[int]] = defaultdict(lambda: [0] * len(SUMS))
    for hour, user_oid, key_id, app_id, _, _, *amounts in rollups:
        _add(sums[hour.replace(hour=0), user_oid, key_id, app_id], amounts)
    return [(*key, *row) for key, row in sorted(sums.items())]


def _endpoint_rollups_of(
    rollups: Iterable[tuple[Any, ...]], added: Iterable[CallRecord], removed: Iterable[CallRecord]
) -> list[tuple[object, ...]]:
    """The same by hour, model and endpoint: sums, then durations and first tokens by bucket."""
    sums: defaultdict[EndpointKey, list[int]] = defaultdict(lambda: [0] * len(ENDPOINT_SUMS))
    for hour, _, _, _, model, endpoint_id, *amounts in rollups:
        _add(sums[hour, model, endpoint_id], amounts)
    for sign, records in ((1, added), (-1, removed)):
        for record in records:
            row = sums[_endpoint_key(record)]
            for position in _buckets(record):
                row[position] += sign
    return [(*key, *sums[key]) for key in sorted(sums)]


def _add(row: list[int], amounts: Iterable[int]) -> None:
    for position, amount in enumerate(amounts):
        row[position] += amount


def _buckets(record: CallRecord) -> Iterable[int]:
    """Where in `ENDPOINT_SUMS` a call's latencies are counted: only calls that went well say how fast an endpoint is."""
    if record.outcome == "ok":
        yield len(SUMS) + bucket_of(record.duration_ms)
        if record.is_stream and record.first_token_ms is not None:
            yield len(SUMS) + BUCKETS + bucket_of(record.first_token_ms)


def _day_key(record: CallRecord) -> DayKey:
    hour, user_oid, key_id, app_id, *_ = _rollup_key(record)
    return hour.replace(hour=0), user_oid, key_id, app_id


def _refusal_key(record: CallRecord) -> tuple[datetime, str, int]:
    return _hour(record.created_at_ms // HOUR_MS), record.error_code or "", record.http_status


def _endpoint_key(record: CallRecord) -> EndpointKey:
    return _hour(record.created_at_ms // HOUR_MS), record.served_model, record.endpoint_id or ""


_AMOUNTS: tuple[Callable[[CallRecord], int], ...] = (
    lambda record: 1,
    lambda record: int(record.outcome not in NO_ERRORS),
    *(attrgetter(name) for name in SUMS[2:]),
)
"""In the order of `SUMS`."""


def _rollup_key(record: CallRecord) -> RollupKey:
    key_id, app_id, endpoint_id = record.key_id or "", record.app_id or "", record.endpoint_id or ""
    hour = _hour(record.created_at_ms // HOUR_MS)
    return hour, record.user_oid, key_id, app_id, record.served_model, endpoint_id


@lru_cache(maxsize=64)
def _hour(number: int) -> datetime:
    """The n-th since 1970. Asked for every record, and nearly always for the same one."""
    return datetime.fromtimestamp(number * 3_600, UTC)


# ── Making records fit ────────────────────────────────────────────────────────────────────────────────────────────────

_TEXT_CHARS = {
    "user_oid": MAX_NAME_CHARS,
    "app_id": MAX_NAME_CHARS,
    "requested_model": MAX_NAME_CHARS,
    "served_model": MAX_NAME_CHARS,
    "client_request_id": 200,
    "provider": 100,
    "dialect": 100,
    "outcome": 100,
    "error_code": 100,
    "error_reason": 1_000,
    "usage_quality": 100,
    "price_id": 200,
}
_texts = attrgetter(*_TEXT_CHARS)
_IDS = ("request_id", "key_id", "endpoint_id")


def _fit_to_store(record: CallRecord) -> CallRecord:
    """The record as it can be stored: without NULs (PostgreSQL has none), names cut, ids in their one spelling."""
    changes: dict[str, object] = {}
    for (name, longest), value in zip(_TEXT_CHARS.items(), _texts(record), strict=True):
        if value is not None and (len(value) > longest or "\x00" in value or not value.isascii()):
            changes[name] = _storable(value)[:longest]
    for name in _IDS:
        value = getattr(record, name)
        if value is not None and not (len(value) == 36 and value.islower()):
            changes[name] = _canonical(value)
    return msgspec.structs.replace(record, **changes) if changes else record


def _storable(text: str) -> str:
    return text.replace("\x00", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


def _canonical(ident: str) -> str:
    try:
        return str(UUID(ident))
    except ValueError:
        return ident  # the database will say so


_to_json = msgspec.json.Encoder().encode


def detail_json(record: CallRecord) -> str:
    """The explanation as JSON that PostgreSQL takes; of an absurdly large one only the numbers (the bill must stay provable)."""
    packed = _to_json(record.detail)
    if len(packed) > MAX_DETAIL_BYTES:
        detail = record.detail
        packed = _to_json(
            RecordDetail(
                estimated_prompt_tokens=detail.estimated_prompt_tokens,
                estimated_completion_tokens=detail.estimated_completion_tokens,
                capped_max_tokens=detail.capped_max_tokens,
                arithmetic=detail.arithmetic[:MAX_COST_LINES],
                usage=detail.usage,
            )
        )
    if b"\\u0000" in packed:
        packed = _to_json(_without_nul(msgspec.json.decode(packed)))
    return packed.decode()


def _without_nul(value: object) -> object:
    match value:
        case str():
            return value.replace("\x00", "\N{REPLACEMENT CHARACTER}")
        case list():
            return [_without_nul(item) for item in value]
        case dict():
            return {key: _without_nul(item) for key, item in value.items()}
        case _:
            return value


def _time_of(item: CallRecord | CallContent) -> datetime:
    """Raises: ValueError for a time that no call of ours can have."""
    moment = datetime.fromtimestamp(item.created_at_ms / 1000, UTC)
    if not OLDEST <= moment < NEWEST:
        raise ValueError(f"its time, {moment}, cannot be true")
    return moment


_FIELDS: dict[str, Callable[[CallRecord], object]] = {
    **{name: attrgetter(name) for name in _LEDGER_TYPES},
    "created_at": _time_of,
    "detail": detail_json,
}
_LEDGER_FIELDS = [_FIELDS[name] for name in _LEDGER_TYPES]
_REFUSED_FIELDS = [_FIELDS[name] for name in _REFUSED_TYPES]
_CONTENT_FIELDS: list[Callable[[CallContent], object]] = [
    _time_of,
    *(attrgetter(name) for name in _CONTENT_TYPES if name != "created_at"),
]


def _id(item: CallRecord | CallContent) -> str:
    return item.request_id


def _compressed(contents: Sequence[CallContent], masks_secrets: bool) -> list[CallContent]:
    readable = mask_secrets if masks_secrets else bytes
    return [
        msgspec.structs.replace(
            content,
            request_id=_canonical(content.request_id),
            user_oid=_storable(content.user_oid)[:MAX_NAME_CHARS],
            request_body=zlib.compress(readable(content.request_body), COMPRESSION),
            response_body=zlib.compress(readable(content.response_body), COMPRESSION),
        )
        for content in contents
    ]


def _fault_of_content(error: DBAPIError | OverflowError | ValueError) -> str:
    """Why the database refuses what it was given, in one line. Raises: DependencyUnavailable if that was not the reason
    (a missing table, say): the records are good and must wait."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(
            cause,
            asyncpg.DataError
            | asyncpg.IntegrityConstraintViolationError
            | asyncpg.ProgramLimitExceededError
            | OverflowError
            | ValueError,
        ):
            return str(cause).partition("\n")[0][:300]
        cause = cause.orig if isinstance(cause, DBAPIError) else cause.__cause__
    raise DependencyUnavailable("database") from error


# ── What was spent ────────────────────────────────────────────────────────────────────────────────────────────────────

_ROLLUP_HOLDER = {
    Scope.KEY: usage_rollups.c.key_id,
    Scope.USER: usage_rollups.c.user_oid,
    Scope.APP: usage_rollups.c.app_id,
    Scope.MODEL: usage_rollups.c.model,
}
_LEDGER_HOLDER = {
    Scope.KEY: usage_records.c.key_id,
    Scope.USER: usage_records.c.user_oid,
    Scope.APP: usage_records.c.app_id,
    Scope.MODEL: usage_records.c.served_model,
}


def spent_statement(claim: BudgetClaim) -> Select[int]:
    of_holder = _ROLLUP_HOLDER[claim.scope] == claim.scope_id
    start, end = claim.period.starts_at, claim.period.ends_at
    if start is None or end is None:
        return _sum_of(usage_rollups, of_holder)
    first_hour, hours_end = _whole_hours(start, end)
    hours = usage_rollups.c.hour
    in_hours = _sum_of(usage_rollups, of_holder, hours >= first_hour, hours < hours_end)
    edges = [(a, b) for a, b in ((start, first_hour), (hours_end, end)) if a < b]
    if not edges:
        return in_hours
    at = usage_records.c.created_at
    in_edges = _sum_of(
        usage_records,
        _LEDGER_HOLDER[claim.scope] == claim.scope_id,
        or_(*((at >= a) & (at < b) for a, b in edges)),
    )
    return select(in_hours.scalar_subquery() + in_edges.scalar_subquery())


def _sum_of(table: Table, *where: ColumnElement[bool]) -> Select[int]:
    return select(func.coalesce(func.sum(table.c.cost_nanousd), 0)).where(*where)


def _whole_hours(start: datetime, end: datetime) -> tuple[datetime, datetime]:
    """The first hour (UTC) that begins in the period, and the end of the last one that ends in it."""
    first = start.astimezone(UTC)
    floor = first.replace(minute=0, second=0, microsecond=0)
    return floor if floor == first else floor + timedelta(hours=1), end.astimezone(UTC).replace(
        minute=0, second=0, microsecond=0
    )
