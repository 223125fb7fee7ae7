"""From a meter to a record: what was seen of a call, in the shape the ledger keeps."""

from __future__ import annotations

from typing import TypedDict

import msgspec

from app.domain.call import Attempt, AttemptBill, Meter, Outcome, Quality
from app.domain.pricing import Cost, Price, Usage
from app.domain.record import (
    LOST,
    AttemptDetail,
    BudgetDetail,
    CallRecord,
    CandidateDetail,
    CostLineDetail,
    LimitDetail,
    RecordDetail,
)

NOTHING = Usage()


def record_of(meter: Meter) -> CallRecord:
    """The record of a call that has been concluded (and billed, if it reached an upstream)."""
    usage, cost = meter.usage or NOTHING, meter.cost
    return _record(
        meter,
        usage=usage,
        quality=meter.quality if meter.usage else Quality.EXACT,
        outcome=meter.outcome or Outcome.INTERRUPTED,
        http_status=meter.http_status,
        error_code=meter.error_code,
        cost_nanousd=cost.nanousd if cost else 0,
        duration_ms=meter.duration_ms or 0,
        detail=_detail(meter),
    )


def record_if_lost(meter: Meter, *, lost_nanousd: int) -> CallRecord:
    """The record to write should this process die before the call ends: what was surely sent is charged, the rest unknown."""
    estimate = meter.estimate
    return _record(
        meter,
        usage=Usage(prompt_tokens=estimate.prompt_tokens if estimate else 0),
        quality=Quality.ESTIMATED,
        outcome=Outcome.LOST,
        http_status=0,
        error_code=LOST,
        cost_nanousd=lost_nanousd,
        duration_ms=0,
        detail=RecordDetail(
            estimated_prompt_tokens=estimate.prompt_tokens if estimate else None,
            estimated_completion_tokens=estimate.completion_tokens if estimate else None,
        ),
    )


def record_if_interrupted(
    meter: Meter, *, usage: Usage, price: Price | None, cost: Cost, duration_ms: int
) -> CallRecord:
    """The record to write should this process die now, in the middle of a stream: what it has delivered is charged."""
    detail = msgspec.structs.replace(
        _detail(meter), usage=usage, price_source=price.source if price else None, arithmetic=_arithmetic(cost)
    )
    return _record(
        meter,
        usage=usage,
        quality=Quality.PARTIAL,
        outcome=Outcome.INTERRUPTED,
        http_status=200,
        error_code=LOST,
        cost_nanousd=cost.nanousd + meter.failed_nanousd,
        duration_ms=duration_ms,
        price=price,
        detail=detail,
    )


def _record(
    meter: Meter,
    *,
    usage: Usage,
    quality: Quality,
    outcome: Outcome,
    http_status: int,
    error_code: str | None,
    cost_nanousd: int,
    duration_ms: int,
    detail: RecordDetail,
    price: Price | None = None,
) -> CallRecord:
    price = price or meter.price
    identity, call, endpoint = meter.identity, meter.call, meter.endpoint
    return CallRecord(
        request_id=meter.request_id,
        created_at_ms=meter.created_at_ms,
        client_request_id=meter.client_request_id,
        user_oid=identity.user.oid,
        key_id=identity.key.id if identity.key else None,
        app_id=identity.app.id if identity.app else None,
        requested_model=call.model,
        served_model=meter.model.name if meter.model else call.model,
        endpoint_id=endpoint.id if endpoint else None,
        provider=endpoint.provider if endpoint else None,
        dialect=call.dialect,
        is_stream=call.is_stream,
        outcome=outcome,
        http_status=http_status,
        error_code=error_code,
        error_reason=meter.error_reason,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        usage_quality=quality,
        cost_nanousd=cost_nanousd,
        price_id=price.id if price else None,
        first_token_ms=meter.first_token_ms,
        duration_ms=duration_ms,
        attempts=len(meter.attempts),
        detail=detail,
    )


def _detail(meter: Meter) -> RecordDetail:
    estimate, price, cost = meter.estimate, meter.price, meter.cost
    return RecordDetail(
        attempts=tuple([_attempt(attempt) for attempt in meter.attempts]),
        candidates=tuple([CandidateDetail(c.endpoint_id, c.verdict) for c in meter.candidates]),
        limits=tuple(
            [
                LimitDetail(
                    scope=state.claim.scope,
                    scope_id=state.claim.scope_id,
                    kind=state.claim.limit.kind,
                    limit=state.claim.limit.limit,
                    window_seconds=state.claim.limit.window_s,
                    claimed=state.claim.amount,
                    remaining_after=state.remaining,
                )
                for state in meter.limits
            ]
        ),
        budgets=tuple(
            [
                BudgetDetail(
                    scope=state.claim.scope,
                    scope_id=state.claim.scope_id,
                    period=state.claim.period.name,
                    hard_limit_nanousd=state.claim.budget.hard_limit_nanousd,
                    reserved_nanousd=state.claim.amount_nanousd,
                    spent_before_nanousd=state.spent_nanousd,
                    reserved_by_others_nanousd=state.reserved_nanousd,
                )
                for state in meter.budgets
            ]
        ),
        arithmetic=_arithmetic(cost) if cost else (),
        price_source=price.source if price else None,
        estimated_prompt_tokens=estimate.prompt_tokens if estimate else None,
        estimated_completion_tokens=estimate.completion_tokens if estimate else None,
        capped_max_tokens=meter.capped_max_tokens,
        finish_reason=meter.finish_reason,
        usage=meter.usage,
        warnings=tuple(meter.warnings),
    )


def _arithmetic(cost: Cost) -> tuple[CostLineDetail, ...]:
    return tuple([CostLineDetail(line.what, line.quantity, line.unit_pico) for line in cost.lines])


def _attempt(attempt: Attempt) -> AttemptDetail:
    return AttemptDetail(
        endpoint_id=attempt.endpoint_id,
        provider=attempt.provider,
        started_ms=attempt.started_ms,
        outcome=attempt.outcome,
        reason=attempt.reason,
        upstream_status=attempt.upstream_status,
        first_byte_ms=attempt.first_byte_ms,
        ended_ms=attempt.ended_ms,
        **_billed(attempt.bill),
    )


class _Billed(TypedDict, total=False):
    cost_nanousd: int
    prompt_tokens: int
    completion_tokens: int
    usage_quality: str
    price_id: str | None
    arithmetic: tuple[CostLineDetail, ...]


def _billed(bill: AttemptBill | None) -> _Billed:
    if bill is None:
        return {}
    return {
        "cost_nanousd": bill.cost.nanousd,
        "prompt_tokens": bill.usage.prompt_tokens,
        "completion_tokens": bill.usage.completion_tokens,
        "usage_quality": bill.quality,
        "price_id": bill.price.id if bill.price else None,
        "arithmetic": _arithmetic(bill.cost),
    }
