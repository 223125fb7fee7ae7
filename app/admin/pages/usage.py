"""The usage log: calls found, one call explained, and what is filtered as a file."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from starlette.responses import Response, StreamingResponse

from app.admin.looks import pretty
from app.admin.visit import Family, Visit
from app.domain.call import Outcome
from app.domain.money import usd_to_nano
from app.domain.record import CallContent, CallRecord
from app.exceptions import InvalidRequest, NotFound
from app.models.usage_schemas import EXPORT_COLUMNS, CallView, ExplainedCallView, csv_line
from app.storage.ports import LogFilter, LogPage
from app.storage.sql_rows import is_uuid

family = Family()

PAGE: Final = 50
SHOWN_CHARS: Final = 100_000
"""Of a body: more than anybody reads, and a page that a browser lays out at once. The whole is in the export of the API."""
PERIODS: Final = {
    "1h": timedelta(hours=1),
    "24h": timedelta(days=1),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
}


ERRORS: Final = "errors"
"""A choice among the outcomes: all that the sums count as errors."""


def filter_of(visit: Visit) -> LogFilter:
    """The filter that the query describes. Raises: InvalidRequest."""
    words, request_id, user = visit.query("q"), visit.query("request_id"), visit.query("user")
    if words and is_uuid(words):
        request_id = request_id or words
    elif words:
        user = user or words
    since, until = _moment(visit, "from"), _moment(visit, "to")
    period = PERIODS.get(visit.query("period") or "")
    if period is not None and since is None:
        since = visit.now - period
    status, is_error = visit.query("http_status"), visit.query("outcome") == ERRORS
    if status is not None and not (status.isdecimal() and 100 <= int(status) <= 599):
        raise InvalidRequest("An HTTP status is a number from 100 to 599.", param="http_status")
    return LogFilter(
        request_id=request_id,
        user_oid=user,
        key_id=visit.query("key"),
        app_id=visit.query("app"),
        model=visit.query("model"),
        outcome=None if is_error else visit.query("outcome"),
        is_error=is_error,
        http_status=int(status) if status else None,
        since=since,
        until=until,
        endpoint_id=visit.query("endpoint"),
        error_code=visit.query("error_code"),
        min_cost_nanousd=_cost(visit, "min_cost"),
        min_duration_ms=_milliseconds(visit, "min_ms"),
    )


def _cost(visit: Visit, name: str) -> int | None:
    text = visit.query(name)
    if text is None:
        return None
    try:
        cost = usd_to_nano(text.lstrip("$"))
    except ValueError:
        raise InvalidRequest("A cost is an amount in USD, such as 0.05.", param=name) from None
    if not 0 <= cost < 2**63:
        raise InvalidRequest("No call can cost that.", param=name)
    return cost


def _milliseconds(visit: Visit, name: str) -> int | None:
    text = visit.query(name)
    if text is not None and not (text.isdecimal() and len(text) < 10):
        raise InvalidRequest("A duration is a number of milliseconds.", param=name)
    return int(text) if text else None


def _moment(visit: Visit, name: str) -> datetime | None:
    text = visit.query(name)
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text.replace(" ", "+") if "T" in text else text)
    except ValueError:
        raise InvalidRequest(f"'{name}' is no date or time.", param=name) from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


@family.get("/usage")
async def list_calls(visit: Visit) -> Response:
    try:
        page, fault = (
            await visit.services.reports.log_page(filter_of(visit), limit=PAGE, cursor=visit.query("cursor")),
            "",
        )
    except InvalidRequest as error:
        page, fault = LogPage([], None), error.message
    names = await visit.services.overview.key_names(list({each.key_id for each in page.items if each.key_id}))
    return visit.page(
        "usage/list.html",
        status=400 if fault else 200,
        page=page,
        fault=fault,
        key_names=names,
        outcomes=[ERRORS, *map(str, Outcome)],
        models=list(visit.services.catalog.current.models),
        periods=list(PERIODS),
    )


@family.get("/usage/export")
async def export(visit: Visit) -> Response:
    """What is filtered, all of it, as CSV or NDJSON."""
    records = visit.services.reports.export(filter_of(visit))
    first = await anext(records, None)
    kind = "ndjson" if visit.query("format") == "ndjson" else "csv"
    lines = _lines(first, records, is_csv=kind == "csv")
    media = "text/csv; charset=utf-8" if kind == "csv" else "application/x-ndjson"
    headers = {"content-disposition": f'attachment; filename="usage.{kind}"', "cache-control": "no-store"}
    return StreamingResponse(lines, media_type=media, headers=headers)


async def _lines(first: CallRecord | None, rest: AsyncIterator[CallRecord], *, is_csv: bool) -> AsyncIterator[bytes]:
    if is_csv:
        yield csv_line(list(EXPORT_COLUMNS))
    if first is None:
        return
    yield _line(first, is_csv=is_csv)
    async for record in rest:
        yield _line(record, is_csv=is_csv)


def _line(record: CallRecord, *, is_csv: bool) -> bytes:
    view = CallView.of(record)
    if not is_csv:
        return view.model_dump_json().encode() + b"\n"
    shown = view.model_dump(mode="json")
    return csv_line([shown[name] for name in EXPORT_COLUMNS])


@family.get("/usage/{request_id}")
async def show_call(visit: Visit) -> Response:
    record = await _record(visit)
    return await _call(visit, record, None, is_asked=False)


@family.post("/usage/{request_id}/content")
async def show_content(visit: Visit) -> Response:
    """With what was sent and answered. That somebody looked is written to the trail."""
    record = await _record(visit)
    content = await visit.services.call_contents.viewed(visit.actor, record.request_id)
    return await _call(visit, record, content, is_asked=True)


@dataclass(frozen=True, slots=True)
class Body:
    text: str
    is_cut: bool


async def _call(visit: Visit, record: CallRecord, content: CallContent | None, *, is_asked: bool) -> Response:
    names = await visit.services.overview.key_names([record.key_id] if record.key_id else [])
    endpoints = {
        endpoint.id: endpoint
        for model in visit.services.catalog.current.models.values()
        for endpoint in model.endpoints
    }
    return visit.page(
        "usage/show.html",
        call=record,
        story=ExplainedCallView.explained(record, None, await visit.services.reports.deletions({record.user_oid})),
        key_name=names.get(record.key_id or ""),
        endpoints=endpoints,
        is_asked=is_asked,
        content=content,
        request_body=_shown(content.request_body) if content else None,
        response_body=_shown(content.response_body) if content else None,
    )


async def _record(visit: Visit) -> CallRecord:
    record = await visit.services.reports.record(visit.path("request_id"))
    if record is None:
        raise NotFound("There is no record of this request. One that has just ended takes a moment to be written.")
    return record


def _shown(body: bytes) -> Body:
    text = body.decode("utf-8", "replace")
    if len(text) <= SHOWN_CHARS and text[:1] in "[{":
        text = _indented(text)
    return Body(text[:SHOWN_CHARS], len(text) > SHOWN_CHARS)


def _indented(text: str) -> str:
    try:
        return pretty(json.loads(text))
    except (ValueError, RecursionError):
        return text
