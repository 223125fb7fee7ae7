"""The record of a call survives its way to the ledger, bit by bit; anything else is told apart from a record."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.pricing import Usage
from app.domain.record import (
    AttemptDetail,
    BudgetDetail,
    CallRecord,
    CandidateDetail,
    CostLineDetail,
    LimitDetail,
    RecordDetail,
    decode_record,
    encode_record,
)
from tests.calls import a_meter
from tests.storage.records import NOON, a_record, a_refusal

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
MAYBE_TEXT = st.none() | TEXT
COUNT = st.integers(min_value=0, max_value=2**53)
MAYBE_COUNT = st.none() | COUNT
USAGES = st.builds(Usage, prompt_tokens=COUNT, completion_tokens=COUNT, cached_tokens=COUNT, reasoning_tokens=COUNT)
DETAILS = st.builds(
    RecordDetail,
    attempts=st.lists(
        st.builds(AttemptDetail, TEXT, TEXT, COUNT, TEXT, MAYBE_TEXT, MAYBE_COUNT, MAYBE_COUNT, MAYBE_COUNT), max_size=3
    ).map(tuple),
    candidates=st.lists(st.builds(CandidateDetail, TEXT, TEXT), max_size=3).map(tuple),
    limits=st.lists(
        st.builds(LimitDetail, TEXT, TEXT, TEXT, COUNT, COUNT, COUNT, st.integers(-100, 100)), max_size=3
    ).map(tuple),
    budgets=st.lists(st.builds(BudgetDetail, TEXT, TEXT, TEXT, MAYBE_COUNT, COUNT, COUNT, COUNT), max_size=3).map(
        tuple
    ),
    arithmetic=st.lists(st.builds(CostLineDetail, TEXT, COUNT, COUNT), max_size=3).map(tuple),
    price_source=MAYBE_TEXT,
    estimated_prompt_tokens=MAYBE_COUNT,
    estimated_completion_tokens=MAYBE_COUNT,
    capped_max_tokens=MAYBE_COUNT,
    finish_reason=MAYBE_TEXT,
    usage=st.none() | USAGES,
)
RECORDS = st.builds(
    CallRecord,
    request_id=TEXT,
    created_at_ms=COUNT,
    client_request_id=MAYBE_TEXT,
    user_oid=TEXT,
    key_id=MAYBE_TEXT,
    app_id=MAYBE_TEXT,
    requested_model=TEXT,
    served_model=TEXT,
    endpoint_id=MAYBE_TEXT,
    provider=MAYBE_TEXT,
    dialect=TEXT,
    is_stream=st.booleans(),
    outcome=TEXT,
    http_status=COUNT,
    error_code=MAYBE_TEXT,
    error_reason=MAYBE_TEXT,
    prompt_tokens=COUNT,
    completion_tokens=COUNT,
    cached_tokens=COUNT,
    reasoning_tokens=COUNT,
    usage_quality=TEXT,
    cost_nanousd=COUNT,
    price_id=MAYBE_TEXT,
    first_token_ms=MAYBE_COUNT,
    duration_ms=COUNT,
    attempts=COUNT,
    detail=DETAILS,
)


@given(RECORDS)
def test_a_record_survives_being_packed_and_unpacked(record: CallRecord) -> None:
    assert decode_record(encode_record(record)) == record


@given(st.binary(max_size=200))
def test_bytes_that_are_no_record_are_told_by_one_kind_of_error(packed: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        decode_record(packed)


@given(st.data())
def test_a_record_cut_short_is_no_record(data: st.DataObject) -> None:
    packed = encode_record(a_record())

    with pytest.raises(msgspec.MsgspecError):
        decode_record(packed[: data.draw(st.integers(0, len(packed) - 1))])


def test_the_time_of_a_record_is_aware() -> None:
    assert a_record(NOON).created_at == NOON


def test_only_a_call_refused_before_any_upstream_stands_outside_the_ledger() -> None:
    assert a_refusal().is_refusal
    assert not any(
        a_record(outcome=outcome).is_refusal
        for outcome in ("ok", "client_cancelled", "truncated", "upstream_error", "timeout", "interrupted", "lost")
    )


def test_bodies_do_not_show_in_a_calls_repr() -> None:
    assert "gpt-4" not in repr(a_meter().call).replace("model='gpt-4'", "")
