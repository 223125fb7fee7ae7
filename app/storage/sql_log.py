"""Searching the log: the ledger and the refused calls as one list, newest first, read by keyset.

A ledger has millions of rows, and not every question has an index. So that no search takes long, whatever is asked for:

1. One condition leads: the one whose index has few rows, in the order of the list (a key, a user, a model, what went wrong).
   Without one it is the list itself that is walked.
2. All other conditions are looked at row by row, and a statement looks at `SCANNED_ROWS` at most. Where that was not enough, it
   tells how far it came, and the next one goes on from there.
3. What a call cost has no place in that order. Where few calls were as dear, they are all fetched by their index and sorted.
4. Both tables are read in the same manner. What is found counts as far back as both were looked through.

Values travel as parameters: no word of a caller is ever part of a statement.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import (
    Column,
    ColumnElement,
    FromClause,
    Select,
    Subquery,
    Table,
    Text,
    cast,
    func,
    literal,
    literal_column,
    null,
    select,
    text,
    tuple_,
    union_all,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.call import Outcome
from app.models.tables import DEAR_NANOUSD, refused_calls, usage_records
from app.storage.ports import ANY_CALL, LogFilter
from app.storage.sql_rows import AnyRow, is_uuid
from app.storage.sql_usage import NO_ERRORS

SCANNED_ROWS: Final = 5_000
"""Rows that one statement looks at: some milliseconds of an index scan, some tens where each row is on a page of its own."""
FEW_CALLS: Final = 5_000
"""Calls at a cost of at least so much that are rather fetched at once than met on a walk; more of them are met soon."""
EARLIEST, LATEST = datetime(2000, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
"""Times outside of these are taken as these: PostgreSQL's and Python's calendars end in different years."""

Place = tuple[datetime, str]
"""Of a row in the list: when, and which of that moment."""
Conditions = Sequence[ColumnElement[bool]]


@dataclass(frozen=True, slots=True)
class Found:
    """The next rows that match, and how far back was looked; None: to the end."""

    rows: list[AnyRow]
    looked_to: Place | None


async def next_found(connection: AsyncConnection, log_filter: LogFilter, wanted: int, before: Place | None) -> Found:
    """One step of a search. Fewer rows than wanted and a place mean: go on from there."""
    if matches_nothing(log_filter):
        return Found([], None)
    found = [await _looked(connection, half, wanted, before) for half in await _halves(connection, log_filter)]
    rows = sorted((row for each in found for row in each.rows), key=_place_of, reverse=True)
    reached = max((each.looked_to for each in found if each.looked_to is not None), default=None)
    if reached is not None:
        rows = [row for row in rows if _place_of(row) >= reached]
    if len(rows) > wanted:
        rows, reached = rows[:wanted], _place_of(rows[wanted - 1])
    return Found(rows, reached)


def _place_of(row: AnyRow) -> Place:
    return row.created_at, str(row.request_id)


# ── One table ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Half:
    """How one of the two tables is searched."""

    table: Table
    leads: Sequence[Conditions]
    """One way in, or several whose rows are merged; each walks an index in the list's order."""
    rest: LogFilter
    """What is left to be looked at in each row."""
    is_sorted: bool = True
    """False: few rows, to be sorted after they were fetched."""


async def _looked(connection: AsyncConnection, half: Half, wanted: int, before: Place | None) -> Found:
    """Wherever rows have to be looked at one by one, at most `SCANNED_ROWS` of them."""
    is_walk = half.is_sorted and bool(_conditions(half.table.c, half.table, half.rest))
    if is_walk:
        await connection.execute(_ROW_BY_ROW)
    scanned = SCANNED_ROWS if is_walk else wanted if half.is_sorted else None
    rows = (await connection.execute(_matching(half, wanted, before, scanned))).all()
    if not is_walk or len(rows) >= wanted:
        return Found(list(rows), None if len(rows) < wanted else _place_of(rows[-1]))
    last = (await connection.execute(_last_scanned(half, before))).first()
    return Found(list(rows), None if last is None else _place_of(last))


def _matching(half: Half, wanted: int, before: Place | None, scanned: int | None) -> Select[Any]:
    found = _scan(half, half.table.c, before, scanned)
    columns = [_told(found, name) for name in _NAMES]
    statement = select(*columns).where(*_conditions(found.c, half.table, half.rest))
    return _newest_first(statement, found).limit(wanted)


def _last_scanned(half: Half, before: Place | None) -> Select[Any]:
    found = _scan(half, (half.table.c.created_at, half.table.c.request_id), before, SCANNED_ROWS)
    return _newest_first(select(found.c.created_at, found.c.request_id), found).offset(SCANNED_ROWS - 1).limit(1)


def _scan(half: Half, columns: Iterable[Column[Any]], before: Place | None, limit: int | None) -> Subquery:
    """The rows that lead, from a place on. A limit (or an offset) is also what keeps the planner from looking through it."""
    columns = list(columns)
    ways = []
    for lead in half.leads:
        way = select(*columns).where(*lead, *_after(half.table, before))
        ways.append(_newest_first(way, half.table).limit(limit) if limit is not None else way.offset(0))
    if len(ways) == 1:
        return ways[0].subquery()
    merged = union_all(*(select(way.subquery()) for way in ways)).subquery()
    return _newest_first(select(merged), merged).limit(limit).subquery()


def _newest_first(statement: Select[Any], source: FromClause) -> Select[Any]:
    return statement.order_by(source.c.created_at.desc(), source.c.request_id.desc())


def _after(table: Table, before: Place | None) -> list[ColumnElement[bool]]:
    if before is None:
        return []
    # The first condition says nothing new, but it lets the planner leave out later partitions.
    at, ident = table.c.created_at, table.c.request_id
    place = tuple_(literal(before[0], at.type), literal(before[1], ident.type))
    return [at <= before[0], tuple_(at, ident) < place]


# ── What leads ────────────────────────────────────────────────────────────────────────────────────────────────────────

_LEADING: Final = {
    # Fields of the filter and the columns they are about, those with the fewest rows first. Each has an index.
    "request_id": "request_id",
    "client_request_id": "client_request_id",
    "key_id": "key_id",
    "user_oid": "user_oid",
    "app_id": "app_id",
}
_LOOKED_AT: Final = {
    "model": "requested_model",
    "http_status": "http_status",
    "dialect": "dialect",
    "error_code": "error_code",
    "is_stream": "is_stream",
    "outcome": "outcome",
    "served_model": "served_model",
    "endpoint_id": "endpoint_id",
    "provider": "provider",
}
_NOT_OK: Final = tuple(each for each in Outcome if each not in (Outcome.OK, Outcome.REFUSED))
_ERRORS: Final = tuple(each for each in _NOT_OK if each not in NO_ERRORS)


async def _halves(connection: AsyncConnection, wanted: LogFilter) -> list[Half]:
    if wanted.outcome == "refused":
        return [] if excludes_refusals(wanted) else [_refused(wanted)]
    ledger = await _ledger(connection, wanted)
    is_ledger_alone = wanted.is_error or wanted.outcome is not None or excludes_refusals(wanted)
    return [ledger] if is_ledger_alone else [ledger, _refused(wanted)]


def _refused(wanted: LogFilter) -> Half:
    lead = _equal(refused_calls, wanted) or _equal(refused_calls, wanted, "model")
    return Half(refused_calls, [[*lead.values(), *_within(refused_calls, wanted)]], _without(wanted, lead))


async def _ledger(connection: AsyncConnection, wanted: LogFilter) -> Half:
    within = _within(usage_records, wanted)
    if lead := _equal(usage_records, wanted):
        return Half(usage_records, [[*lead.values(), *within]], _without(wanted, lead))
    outcomes, rest = _outcomes(wanted)
    if outcomes:
        # `outcome <> 'ok'` says nothing new, but it is the condition of the index: written out, or a plan for any value lacks it.
        is_indexed = usage_records.c.outcome != literal_column("'ok'")
        named = [(usage_records.c.outcome == each, is_indexed) for each in outcomes]
        return Half(usage_records, [[*each, *within] for each in named], rest)
    if (costs := _dear(wanted)) and await _are_few(connection, costs):
        rest = _without(wanted, ("min_cost_nanousd", "max_cost_nanousd"))
        return Half(usage_records, [[*costs, *within]], rest, is_sorted=False)
    lead = _equal(usage_records, wanted, "model")
    return Half(usage_records, [[*lead.values(), *within]], _without(wanted, lead))


def _equal(table: Table, wanted: LogFilter, *fields: str) -> dict[str, ColumnElement[bool]]:
    """The first of these conditions (of all that lead) that the filter has."""
    for field in fields or _LEADING:
        value = getattr(wanted, field)
        if value is not None:
            return {field: table.c[{**_LEADING, **_LOOKED_AT}[field]] == value}
    return {}


def _outcomes(wanted: LogFilter) -> tuple[Sequence[Outcome | str], LogFilter]:
    """The outcomes to look among, where not those that went well: they are few. And what is left to be looked at."""
    if wanted.outcome not in (None, "ok"):
        return [wanted.outcome], _without(wanted, ("outcome",))
    if wanted.outcome is None and wanted.is_error:
        return _ERRORS, _without(wanted, ("is_error",))
    # A call that went well answered 200 and has no code of an error.
    is_fault = wanted.http_status not in (None, 200) or wanted.error_code is not None
    return (_NOT_OK, wanted) if wanted.outcome is None and is_fault else ((), wanted)


def _costs(columns: Any, wanted: LogFilter) -> list[ColumnElement[bool]]:
    least, most = wanted.min_cost_nanousd, wanted.max_cost_nanousd
    conditions = [] if least is None else [columns.cost_nanousd >= least]
    return conditions if most is None else [*conditions, columns.cost_nanousd <= most]


def _dear(wanted: LogFilter) -> list[ColumnElement[bool]]:
    """The condition of the index (written out, or a plan for any value lacks it) and those asked for; nothing for cheap calls."""
    if (wanted.min_cost_nanousd or 0) < DEAR_NANOUSD:
        return []
    return [usage_records.c.cost_nanousd >= literal_column(str(DEAR_NANOUSD)), *_costs(usage_records.c, wanted)]


async def _are_few(connection: AsyncConnection, costs: Conditions) -> bool:
    # By the index, whatever the planner expects: its figures are of the last analysis, and a plan for any amount is none for this.
    await connection.execute(_BY_INDEX)
    some = select(literal_column("1")).select_from(usage_records).where(*costs).limit(FEW_CALLS + 1).subquery()
    return bool((await connection.execute(select(func.count()).select_from(some))).scalar_one() <= FEW_CALLS)


_BY_INDEX: Final = text(
    "SELECT set_config('enable_seqscan', 'off', true), set_config('plan_cache_mode', 'force_custom_plan', true)"
)


# A walk stops at the first rows that match. The planner expects it to go to its end, and would fetch and sort all it might look at.
_ROW_BY_ROW: Final = text(
    "SELECT set_config('enable_sort', 'off', true), set_config('enable_bitmapscan', 'off', true), "
    "set_config('enable_seqscan', 'off', true)"
)


def _without(wanted: LogFilter, fields: Iterable[str]) -> LogFilter:
    unasked: dict[str, Any] = {field: getattr(ANY_CALL, field) for field in fields}
    return replace(wanted, **unasked)


# ── What is looked at ─────────────────────────────────────────────────────────────────────────────────────────────────


def _conditions(columns: Any, table: Table, wanted: LogFilter) -> list[ColumnElement[bool]]:
    """Of what is left; times are not among them, they always lead."""
    named = {**_LEADING, **_LOOKED_AT}
    if table is refused_calls:
        named = {field: column for field, column in named.items() if column in refused_calls.c}
    given = {field: getattr(wanted, field) for field in named}
    conditions = [columns[named[field]] == value for field, value in given.items() if value is not None]
    if wanted.min_duration_ms is not None:
        conditions.append(columns.duration_ms >= wanted.min_duration_ms)
    if wanted.max_duration_ms is not None:
        conditions.append(columns.duration_ms <= wanted.max_duration_ms)
    if table is usage_records:
        conditions += _costs(columns, wanted)
        if wanted.is_error:
            conditions.append(columns.outcome.not_in(NO_ERRORS))
    return conditions


def _within(table: Table, wanted: LogFilter) -> list[ColumnElement[bool]]:
    since, until = wanted.since, wanted.until
    conditions = [] if since is None else [table.c.created_at >= bounded(since)]
    return conditions if until is None else [*conditions, table.c.created_at < bounded(until)]


def bounded(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return min(max(moment, EARLIEST), LATEST)


def excludes_refusals(wanted: LogFilter) -> bool:
    """They reached no endpoint and cost nothing; they were to be served by the model that was asked for."""
    return any((wanted.endpoint_id, wanted.provider, wanted.served_model)) or (wanted.min_cost_nanousd or 0) > 0


def matches_nothing(wanted: LogFilter) -> bool:
    ids = (wanted.request_id, wanted.key_id, wanted.endpoint_id)
    texts = (
        *(wanted.user_oid, wanted.app_id, wanted.model, wanted.outcome, wanted.client_request_id),
        *(wanted.served_model, wanted.provider, wanted.dialect, wanted.error_code),
    )
    status = wanted.http_status
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


# ── What is told ──────────────────────────────────────────────────────────────────────────────────────────────────────

_NAMES: Final = [column.name for column in usage_records.c]
_AS_REFUSED: Final[dict[str, ColumnElement[Any]]] = {
    # What a refused call's row leaves out, because it is the same for all of them.
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


def _told(found: Subquery, name: str) -> ColumnElement[Any]:
    if name == "detail":
        return cast(found.c.detail, Text).label(name)  # as text, to be read once, into its own type
    if name in found.c:
        return found.c[name]
    if name == "served_model":
        return found.c.requested_model.label(name)
    return cast(_AS_REFUSED[name], usage_records.c[name].type).label(name)
