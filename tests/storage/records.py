"""Records as calls leave them, made by hand."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, tzinfo

import msgspec

from app.domain.budget import Budget, BudgetClaim, PeriodKind, period_at
from app.domain.ids import uuid7
from app.domain.limits import Scope
from app.domain.money import NanoUsd
from app.domain.pricing import Usage
from app.domain.record import AttemptDetail, CallContent, CallRecord, LimitDetail, RecordDetail

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
KEY_A, KEY_B = "0192aaaa-0000-7000-8000-000000000001", "0192aaaa-0000-7000-8000-000000000002"
ENDPOINT = "0192bbbb-0000-7000-8000-000000000001"

_numbers = itertools.count(1)

DETAIL = RecordDetail(
    attempts=(AttemptDetail(ENDPOINT, "openai", 3, "ok", upstream_status=200, first_byte_ms=40, ended_ms=90),),
    limits=(LimitDetail("key", KEY_A, "requests", 60, 60, 1, 59),),
    price_source="operator",
    estimated_prompt_tokens=12,
    finish_reason="stop",
    usage=Usage(prompt_tokens=10, completion_tokens=5),
)


def an_id(at: datetime = NOON) -> str:
    """A UUIDv7 of that moment, unlike any other of this process."""
    return uuid7(int(at.timestamp() * 1000), next(_numbers).to_bytes(10, "big"))


def a_record(at: datetime = NOON, **changes: object) -> CallRecord:
    """A call that went well, with whatever is to be different."""
    record = CallRecord(
        request_id=an_id(at),
        created_at_ms=int(at.timestamp() * 1000),
        client_request_id="their-1",
        user_oid="user-1",
        key_id=KEY_A,
        app_id=None,
        requested_model="gpt-4",
        served_model="gpt-4",
        endpoint_id=ENDPOINT,
        provider="openai",
        dialect="chat",
        is_stream=False,
        outcome="ok",
        http_status=200,
        error_code=None,
        error_reason=None,
        prompt_tokens=10,
        completion_tokens=5,
        cached_tokens=2,
        reasoning_tokens=1,
        usage_quality="exact",
        cost_nanousd=1_500,
        price_id="p1",
        first_token_ms=40,
        duration_ms=90,
        attempts=1,
        detail=DETAIL,
    )
    return msgspec.structs.replace(record, **changes)


def a_refusal(at: datetime = NOON, **changes: object) -> CallRecord:
    """A call that a limit refused."""
    refused: dict[str, object] = {
        "outcome": "refused",
        "http_status": 429,
        "error_code": "rate_limit_exceeded",
        "error_reason": "requests",
        "endpoint_id": None,
        "provider": None,
        "price_id": None,
        "first_token_ms": None,
        "attempts": 0,
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "cached_tokens": 0,
        "reasoning_tokens": 0,
        "cost_nanousd": 0,
        "detail": RecordDetail(limits=DETAIL.limits),
    }
    return a_record(at, **{**refused, **changes})


def a_content(record: CallRecord, **changes: object) -> CallContent:
    content = CallContent(
        request_id=record.request_id,
        created_at_ms=record.created_at_ms,
        user_oid=record.user_oid,
        request_body=b'{"model":"gpt-4"}' * 50,
        response_body=b"data: [DONE]\n\n",
        is_truncated=False,
    )
    return msgspec.structs.replace(content, **changes)


def a_claim(
    scope: Scope,
    scope_id: str,
    period: PeriodKind = PeriodKind.TOTAL,
    *,
    now: datetime = NOON,
    zone: tzinfo = UTC,
) -> BudgetClaim:
    return BudgetClaim(scope, scope_id, Budget(period, None, NanoUsd(1)), period_at(period, now, zone), NanoUsd(0))
