"""The record of one call, as it travels from the settlement to the ledger (msgpack) and as it stands there (SQL columns)."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from app.domain.pricing import Usage

LOST = "lost"
"""The error code of what nobody lived to record; as an outcome: nothing is known of the call but that it was admitted."""


class CostLineDetail(msgspec.Struct, frozen=True):
    what: str
    quantity: int
    unit_picousd: int


class AttemptDetail(msgspec.Struct, frozen=True, omit_defaults=True):
    endpoint_id: str
    provider: str
    started_ms: int
    outcome: str
    reason: str | None = None
    upstream_status: int | None = None
    first_byte_ms: int | None = None
    ended_ms: int | None = None
    cost_nanousd: int = 0
    """What its upstream bills although it failed. It is a part of the call's cost."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usage_quality: str | None = None
    price_id: str | None = None
    arithmetic: tuple[CostLineDetail, ...] = ()


class LimitDetail(msgspec.Struct, frozen=True):
    scope: str
    scope_id: str
    kind: str
    limit: int
    window_seconds: int
    claimed: int
    remaining_after: int


class BudgetDetail(msgspec.Struct, frozen=True):
    scope: str
    scope_id: str
    period: str
    hard_limit_nanousd: int | None
    reserved_nanousd: int
    spent_before_nanousd: int
    reserved_by_others_nanousd: int


class CandidateDetail(msgspec.Struct, frozen=True):
    endpoint_id: str
    verdict: str


class RecordDetail(msgspec.Struct, frozen=True):
    """The explanation of a call: everything that is shown of one record but never searched for."""

    attempts: tuple[AttemptDetail, ...] = ()
    candidates: tuple[CandidateDetail, ...] = ()
    limits: tuple[LimitDetail, ...] = ()
    budgets: tuple[BudgetDetail, ...] = ()
    arithmetic: tuple[CostLineDetail, ...] = ()
    price_source: str | None = None
    estimated_prompt_tokens: int | None = None
    estimated_completion_tokens: int | None = None
    capped_max_tokens: int | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    warnings: tuple[str, ...] = ()
    """What was not as it should be: figures of the provider that were not believed, say."""


class CallRecord(msgspec.Struct, frozen=True, array_like=True):
    """One call. Money in nanodollars, times in milliseconds; `created_at_ms` is the time inside the UUIDv7 `request_id`."""

    request_id: str
    created_at_ms: int
    client_request_id: str | None
    user_oid: str
    key_id: str | None
    app_id: str | None
    requested_model: str
    served_model: str
    endpoint_id: str | None
    provider: str | None
    dialect: str
    is_stream: bool
    outcome: str
    http_status: int
    error_code: str | None
    error_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    usage_quality: str
    cost_nanousd: int
    price_id: str | None
    first_token_ms: int | None
    duration_ms: int
    attempts: int
    detail: RecordDetail

    @property
    def created_at(self) -> datetime:
        return datetime.fromtimestamp(self.created_at_ms / 1000, UTC)

    @property
    def is_refusal(self) -> bool:
        """Refused before any upstream was tried: logged, but no part of the ledger."""
        return self.outcome == "refused"

    @property
    def is_lost(self) -> bool:
        """Written in the name of a process that was gone; when that was only paused, what it knows takes this record's place."""
        return self.error_code == LOST and self.outcome in (LOST, "interrupted")

    @property
    def is_price_unknown(self) -> bool:
        """An endpoint had it, and nobody knew that endpoint's price: its cost of 0 says nothing."""
        return self.endpoint_id is not None and self.price_id is None


class CallContent(msgspec.Struct, frozen=True):
    """The bodies of one call, kept apart from its record."""

    request_id: str
    created_at_ms: int
    user_oid: str
    request_body: bytes
    response_body: bytes
    is_truncated: bool


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(CallRecord)


def encode_record(record: CallRecord) -> bytes:
    return _encoder.encode(record)


def decode_record(packed: bytes) -> CallRecord:
    """Raises msgspec.ValidationError or DecodeError on bytes that are no record."""
    return _decoder.decode(packed)
