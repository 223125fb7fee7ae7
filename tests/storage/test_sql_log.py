"""Searching the log: whatever is asked for, in steps of a few rows, finds exactly what looking at every record finds."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.domain.record import CallRecord
from app.storage import sql_log, sql_reports
from app.storage.ports import LogFilter
from app.storage.sql_reports import SqlReportStore
from app.storage.sql_usage import NO_ERRORS, SqlUsageStore
from tests.storage.conform_usage import everything
from tests.storage.records import ENDPOINT, KEY_A, KEY_B, NOON, a_record, a_refusal

MINUTE = timedelta(minutes=1)
FAULTS = {"upstream_error": 502, "timeout": 504, "truncated": 200, "client_cancelled": 499, "interrupted": 500}


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_log, "SCANNED_ROWS", 7)
    monkeypatch.setattr(sql_log, "FEW_CALLS", 3)


@pytest.fixture
async def records(engine: AsyncEngine) -> list[CallRecord]:
    """Two hundred calls over two months, many of them at the same moment."""
    chance = random.Random(3)
    made = [_any_call(chance, number) for number in range(200)]
    await SqlUsageStore(engine).write(made)
    return sorted(made, key=lambda each: (each.created_at_ms, each.request_id), reverse=True)


def _any_call(chance: random.Random, number: int) -> CallRecord:
    at = NOON - chance.randrange(60) * 1000 * MINUTE
    who = {"user_oid": chance.choice(("ann", "bob")), "key_id": chance.choice((KEY_A, KEY_B, None))}
    if chance.random() < 0.3:
        code, status = chance.choice((("rate_limit_exceeded", 429), ("insufficient_quota", 402)))
        return a_refusal(at, **who, error_code=code, http_status=status)
    outcome = chance.choice(tuple(FAULTS)) if chance.random() < 0.2 else "ok"
    return a_record(
        at,
        **who,
        app_id=chance.choice((None, "crm")),
        outcome=outcome,
        http_status=FAULTS.get(outcome, 200),
        error_code="upstream_timeout" if outcome == "timeout" else None,
        is_stream=chance.random() < 0.5,
        cost_nanousd=number * 1_000_000,
        duration_ms=chance.randrange(1_000),
    )


ASKED: dict[str, tuple[LogFilter, Callable[[CallRecord], bool]]] = {
    "anything": (LogFilter(), lambda each: True),
    "user": (LogFilter(user_oid="ann"), lambda each: each.user_oid == "ann"),
    "key and user": (
        LogFilter(key_id=KEY_A, user_oid="bob"),
        lambda each: (each.key_id, each.user_oid) == (KEY_A, "bob"),
    ),
    "app": (LogFilter(app_id="crm"), lambda each: each.app_id == "crm"),
    "outcome": (LogFilter(outcome="timeout"), lambda each: each.outcome == "timeout"),
    "refused": (LogFilter(outcome="refused"), lambda each: each.is_refusal),
    "refused for a reason": (
        LogFilter(outcome="refused", error_code="insufficient_quota"),
        lambda each: each.error_code == "insufficient_quota",
    ),
    "errors": (LogFilter(is_error=True), lambda each: not each.is_refusal and each.outcome not in NO_ERRORS),
    "errors of a user": (
        LogFilter(is_error=True, user_oid="ann"),
        lambda each: not each.is_refusal and each.outcome not in NO_ERRORS and each.user_oid == "ann",
    ),
    "status 200": (LogFilter(http_status=200), lambda each: each.http_status == 200),
    "status 504": (LogFilter(http_status=504), lambda each: each.http_status == 504),
    "status 429": (LogFilter(http_status=429), lambda each: each.http_status == 429),
    "status that no call had": (LogFilter(http_status=418), lambda each: False),
    "code": (LogFilter(error_code="upstream_timeout"), lambda each: each.error_code == "upstream_timeout"),
    "streams that took long": (
        LogFilter(is_stream=True, min_duration_ms=800),
        lambda each: each.is_stream and each.duration_ms >= 800,
    ),
    "dear, and few": (LogFilter(min_cost_nanousd=198_000_000), lambda each: each.cost_nanousd >= 198_000_000),
    "dear, and many": (LogFilter(min_cost_nanousd=20_000_000), lambda each: each.cost_nanousd >= 20_000_000),
    "dear of a key": (
        LogFilter(min_cost_nanousd=20_000_000, key_id=KEY_B),
        lambda each: each.cost_nanousd >= 20_000_000 and each.key_id == KEY_B,
    ),
    "cheap, refused ones among them": (
        LogFilter(max_cost_nanousd=3_000_000),
        lambda each: each.cost_nanousd <= 3_000_000,
    ),
    "dearer than any": (LogFilter(min_cost_nanousd=10**12), lambda each: False),
    "endpoint": (LogFilter(endpoint_id=ENDPOINT), lambda each: each.endpoint_id == ENDPOINT),
    "model and errors": (
        LogFilter(model="gpt-4", outcome="upstream_error"),
        lambda each: (each.requested_model, each.outcome) == ("gpt-4", "upstream_error"),
    ),
}


@pytest.mark.parametrize("limit", [1, 50])
@pytest.mark.parametrize("what", ASKED)
async def test_a_search_in_small_steps_finds_what_matches_and_nothing_twice_t139(
    engine: AsyncEngine, records: list[CallRecord], what: str, limit: int
) -> None:
    asked, matches = ASKED[what]
    reports = SqlReportStore(engine)
    since, until = NOON - 40_000 * MINUTE, NOON - 9_000 * MINUTE
    wanted = [each.request_id for each in records if matches(each)]
    of_a_time = [each.request_id for each in records if matches(each) and since <= each.created_at < until]

    assert [each.request_id for each in await everything(reports, asked, limit)] == wanted
    assert [
        r.request_id for r in await everything(reports, replace(asked, since=since, until=until), limit)
    ] == of_a_time
    assert [each.request_id async for each in reports.export(asked)] == wanted


async def test_a_search_that_takes_long_tells_how_far_it_came(
    engine: AsyncEngine, records: list[CallRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_reports, "PATIENCE_S", 0.0)
    reports = SqlReportStore(engine)
    page = await reports.log_page(LogFilter(dialect="none"), limit=50, cursor=None)
    assert page.items == []
    assert page.looked_to is not None
    assert page.looked_to <= records[6].created_at
    steps = 1
    while page.next_cursor is not None:
        page = await reports.log_page(LogFilter(dialect="none"), limit=50, cursor=page.next_cursor)
        steps += 1
    assert page.looked_to is None
    assert steps <= 2 + len(records) // 7
