"""What the admin API shows of calls: a line of the log, one call explained, sums, and the rows of an export."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec
from pydantic import BaseModel, Field

from app.domain.budget import BudgetClaim, PeriodKind
from app.domain.money import NanoUsd, nano_to_usd
from app.domain.record import (
    AttemptDetail,
    BudgetDetail,
    CallContent,
    CallRecord,
    CostLineDetail,
    LimitDetail,
    RecordDetail,
)
from app.models.money_fields import amount_text, each_text
from app.models.schemas import Moment
from app.storage.ports import UsageSums

Deletions = Mapping[str, datetime]
"""When users were last deleted, by their oid."""
NO_DELETIONS: Deletions = {}


class CallView(BaseModel):
    """One call. Tokens and money as billed; times in milliseconds."""

    request_id: str
    client_request_id: str | None
    created_at: Moment
    user_oid: str
    key_id: str | None
    app_id: str | None
    requested_model: str
    served_model: str
    endpoint_id: str | None
    provider: str | None
    dialect: str
    is_stream: bool
    outcome: str = Field(examples=["ok"])
    http_status: int
    error_code: str | None
    error_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    usage_quality: str = Field(examples=["exact"])
    cost_usd: str = Field(examples=["0.001234500"])
    price_unknown: bool = Field(description="It reached a model without a price: that it cost nothing is not known.")
    first_token_ms: int | None
    duration_ms: int
    attempts: int
    user_deleted: bool = Field(description="The user was deleted since; whoever has this oid now is another one.")

    @classmethod
    def of(cls, record: CallRecord, deletions: Deletions = NO_DELETIONS) -> CallView:
        return cls(**_call_fields(record, deletions))


def _call_fields(record: CallRecord, deletions: Deletions) -> dict[str, Any]:
    deleted_at = deletions.get(record.user_oid)
    computed = {
        "user_deleted": deleted_at is not None and record.created_at <= deleted_at,
        "created_at": record.created_at,
        "cost_usd": nano_to_usd(record.cost_nanousd),
        "price_unknown": record.is_price_unknown,
    }
    return {**{name: getattr(record, name) for name in CallView.model_fields if name not in computed}, **computed}


class AttemptView(BaseModel):
    """One try at one endpoint; times count from the beginning of the call."""

    endpoint_id: str
    provider: str
    outcome: str
    reason: str | None
    upstream_status: int | None
    started_ms: int
    first_byte_ms: int | None
    ended_ms: int | None
    cost_usd: str = Field(description="What its provider bills although it failed; a part of the call's cost.")
    prompt_tokens: int
    completion_tokens: int
    usage_quality: str | None
    price_id: str | None
    arithmetic: list[CostLineView]

    @classmethod
    def of(cls, attempt: AttemptDetail) -> AttemptView:
        told = msgspec.structs.asdict(attempt)
        cost = nano_to_usd(NanoUsd(told.pop("cost_nanousd")))
        return cls(**{**told, "arithmetic": _lines_of(attempt.arithmetic)}, cost_usd=cost)


class CandidateView(BaseModel):
    endpoint_id: str
    verdict: str = Field(description="Taken, or why it was passed over.")


class LimitClaimView(BaseModel):
    scope: str = Field(examples=["key"])
    scope_id: str
    kind: str
    limit: int
    window_seconds: int
    claimed: int
    remaining_before: int
    remaining_after: int

    @classmethod
    def of(cls, detail: LimitDetail) -> LimitClaimView:
        before = detail.remaining_after + detail.claimed
        return cls(remaining_before=before, **msgspec.structs.asdict(detail))


class BudgetClaimView(BaseModel):
    scope: str
    scope_id: str
    period: str
    hard_limit_usd: str | None
    spent_before_usd: str
    reserved_by_others_usd: str
    reserved_usd: str = Field(description="What this call reserved before it was made.")
    spent_after_usd: str = Field(description="What was spent before and the cost of this call.")

    @classmethod
    def of(cls, detail: BudgetDetail, cost_nanousd: int) -> BudgetClaimView:
        hard = detail.hard_limit_nanousd
        return cls(
            scope=detail.scope,
            scope_id=detail.scope_id,
            period=detail.period,
            hard_limit_usd=None if hard is None else nano_to_usd(hard),
            spent_before_usd=nano_to_usd(detail.spent_before_nanousd),
            reserved_by_others_usd=nano_to_usd(detail.reserved_by_others_nanousd),
            reserved_usd=nano_to_usd(detail.reserved_nanousd),
            spent_after_usd=nano_to_usd(detail.spent_before_nanousd + cost_nanousd),
        )


class PriceUsedView(BaseModel):
    id: str = Field(description="The row of the price history, which no edit changes.")
    source: str | None


class CostLineView(BaseModel):
    """One factor of the bill: quantity x unit price."""

    what: str = Field(examples=["input"])
    quantity: int
    unit_usd: str = Field(description="USD each, exactly.", examples=["0.0000025"])


class EstimateView(BaseModel):
    prompt_tokens: int | None
    completion_tokens: int | None


class ContentView(BaseModel):
    request: str
    response: str
    is_truncated: bool

    @classmethod
    def of(cls, content: CallContent) -> ContentView:
        return cls(
            request=content.request_body.decode("utf-8", "replace"),
            response=content.response_body.decode("utf-8", "replace"),
            is_truncated=content.is_truncated,
        )


class ExplainedCallView(CallView):
    """One call and why it went as it did."""

    attempt_details: list[AttemptView]
    candidates: list[CandidateView]
    limits: list[LimitClaimView]
    budgets: list[BudgetClaimView]
    price: PriceUsedView | None
    arithmetic: list[CostLineView] = Field(
        description="Their sum, rounded up to a nanodollar once, is the cost of the answer."
    )
    usage: dict[str, int | str | None] | None = Field(description="What the provider reported.")
    estimate: EstimateView
    capped_max_tokens: int | None = Field(description="max_tokens as lowered to what the budget could pay.")
    finish_reason: str | None
    warnings: list[str] = Field(
        description="What was not as it should be, such as figures of the provider not believed."
    )
    content: ContentView | None = Field(description="null where content is not kept.")

    @classmethod
    def explained(
        cls, record: CallRecord, content: CallContent | None, deletions: Deletions = NO_DELETIONS
    ) -> ExplainedCallView:
        detail = record.detail
        price = PriceUsedView(id=record.price_id, source=detail.price_source) if record.price_id else None
        return cls(
            **_call_fields(record, deletions),
            **_story(detail, record.cost_nanousd),
            price=price,
            content=None if content is None else ContentView.of(content),
        )


def _lines_of(lines: tuple[CostLineDetail, ...]) -> list[CostLineView]:
    return [
        CostLineView(what=line.what, quantity=line.quantity, unit_usd=each_text(line.unit_picousd)) for line in lines
    ]


def _story(detail: RecordDetail, cost_nanousd: int) -> dict[str, Any]:
    asdict = msgspec.structs.asdict
    return {
        "attempt_details": [AttemptView.of(each) for each in detail.attempts],
        "candidates": [CandidateView(**asdict(each)) for each in detail.candidates],
        "limits": [LimitClaimView.of(each) for each in detail.limits],
        "budgets": [BudgetClaimView.of(each, cost_nanousd) for each in detail.budgets],
        "arithmetic": _lines_of(detail.arithmetic),
        "usage": None if detail.usage is None else msgspec.to_builtins(detail.usage),
        "estimate": EstimateView(
            prompt_tokens=detail.estimated_prompt_tokens, completion_tokens=detail.estimated_completion_tokens
        ),
        "capped_max_tokens": detail.capped_max_tokens,
        "finish_reason": detail.finish_reason,
        "warnings": list(detail.warnings),
    }


# ── Sums ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


class SumsView(BaseModel):
    """Sums over one group, which is named by the field that was asked for (`model`, `key`, `hour` …)."""

    model_config = {"extra": "allow"}

    requests: int
    errors: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: str

    @classmethod
    def of(cls, sums: UsageSums, **group: str | None) -> SumsView:
        return cls(
            requests=sums.requests,
            errors=sums.errors,
            prompt_tokens=sums.prompt_tokens,
            completion_tokens=sums.completion_tokens,
            cost_usd=nano_to_usd(sums.cost_nanousd),
            **group,
        )


class SummaryView(BaseModel):
    items: list[SumsView]
    total: SumsView

    @classmethod
    def of(cls, group_by: str, groups: list[UsageSums]) -> SummaryView:
        total = UsageSums(
            group="",
            requests=sum(each.requests for each in groups),
            errors=sum(each.errors for each in groups),
            prompt_tokens=sum(each.prompt_tokens for each in groups),
            completion_tokens=sum(each.completion_tokens for each in groups),
            cost_nanousd=sum(each.cost_nanousd for each in groups),
        )
        # A call without a key, app or endpoint is summed under "", which is shown as what it means: none.
        first, _, second = group_by.partition(",")
        items = [
            SumsView.of(each, **{first: each.group or None} | ({second: each.subgroup or None} if second else {}))
            for each in groups
        ]
        return cls(items=items, total=SumsView.of(total))


class BudgetSpentView(BaseModel):
    period: PeriodKind
    spent_usd: str
    soft_limit_usd: str | None
    hard_limit_usd: str | None
    remaining_usd: str | None = Field(description="Of the hard limit; what running calls have reserved is not in it.")
    resets_at: Moment | None

    @classmethod
    def of(cls, claim: BudgetClaim, spent_nanousd: int) -> BudgetSpentView:
        soft, hard = claim.budget.soft_limit_nanousd, claim.budget.hard_limit_nanousd
        return cls(
            period=claim.budget.period,
            spent_usd=nano_to_usd(spent_nanousd),
            soft_limit_usd=None if soft is None else amount_text(soft),
            hard_limit_usd=None if hard is None else amount_text(hard),
            remaining_usd=None if hard is None else nano_to_usd(max(0, hard - spent_nanousd)),
            resets_at=claim.period.ends_at,
        )


class KeyUsageView(BaseModel):
    key_id: str
    since: Moment = Field(serialization_alias="from")
    until: Moment = Field(serialization_alias="to")
    requests: int
    errors: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: str
    budgets: list[BudgetSpentView] = Field(description="The key's budgets in their present periods.")

    @classmethod
    def of(cls, sums: UsageSums, since: datetime, until: datetime, budgets: list[BudgetSpentView]) -> KeyUsageView:
        return cls(
            key_id=sums.group,
            since=since,
            until=until,
            requests=sums.requests,
            errors=sums.errors,
            prompt_tokens=sums.prompt_tokens,
            completion_tokens=sums.completion_tokens,
            cost_usd=nano_to_usd(sums.cost_nanousd),
            budgets=budgets,
        )


# ── Exports ───────────────────────────────────────────────────────────────────────────────────────────────────────────

EXPORT_COLUMNS = tuple(CallView.model_fields)

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What makes a spreadsheet take a cell for a formula, full-width forms included (OWASP, CSV injection)."""


def csv_line(values: list[object]) -> bytes:
    """One line of CSV (RFC 4180). Text that a spreadsheet would run is given a leading apostrophe."""
    line = io.StringIO()
    csv.writer(line).writerow([_cell(value) for value in values])
    return line.getvalue().encode("utf-8", "replace")


def _cell(value: object) -> object:
    if isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA_STARTS):
        return f"'{value}"
    return "" if value is None else value
