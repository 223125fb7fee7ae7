"""The record of every call: one, whatever happened, and on its way to the ledger nothing is lost and nothing holds it up."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from app.domain.budget import BudgetClaim
from app.domain.call import Attempt, Meter, Outcome
from app.domain.identity import Identity, LogContent
from app.domain.money import NanoUsd
from app.domain.record import CallContent, CallRecord, decode_record, encode_record
from app.exceptions import (
    AttemptFailed,
    DependencyUnavailable,
    FailureKind,
    GatewayError,
    ModelNotFound,
    NoHealthyEndpoint,
    RateLimited,
    UpstreamBadResponse,
    UpstreamError,
    UpstreamTimeout,
    UpstreamTruncated,
)
from app.services import usage_log as usage_log_module
from app.services.usage_log import UsageLog
from app.storage.ports import PendingRecord
from app.storage.rejected import RecordsRejected
from tests.calls import ALICE, a_call, a_key, a_meter, a_request_id, an_app, an_identity
from tests.kit.clock import ManualClock
from tests.storage.records import a_record


class FakeSink:
    """A durable queue in memory."""

    def __init__(self) -> None:
        self.held: list[PendingRecord] = []
        self.is_away = False
        self.confirmed = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self._next = 0

    def put(self, packed: bytes) -> None:
        self._next += 1
        self.held.append(PendingRecord(f"{self._next}-0", packed))

    async def append(self, call_id: str, packed: bytes) -> str:
        await self.gate.wait()
        if self.is_away:
            raise DependencyUnavailable("counter store")
        self.put(packed)
        return self.held[-1].position

    async def pending(self, *, limit: int, wait_s: float) -> list[PendingRecord]:
        if self.is_away:
            raise DependencyUnavailable("counter store")
        return self.held[:limit]

    async def confirm(self, records: Sequence[PendingRecord]) -> None:
        assert list(records) == self.held[: len(records)]
        del self.held[: len(records)]
        self.confirmed += len(records)

    async def depth(self) -> int:
        return len(self.held)

    @property
    def records(self) -> list[CallRecord]:
        return [decode_record(pending.packed) for pending in self.held]


class FakeLedger:
    def __init__(self) -> None:
        self.written: list[CallRecord] = []
        self.contents: list[CallContent] = []
        self.rejects: dict[str, str] = {}
        self.is_away = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def write(self, records: Sequence[CallRecord]) -> int:
        if self.is_away:
            raise DependencyUnavailable("database")
        known = {record.request_id for record in self.written}
        new = [r for r in records if r.request_id not in known and r.request_id not in self.rejects]
        self.written.extend(new)
        rejected = {r.request_id: self.rejects[r.request_id] for r in records if r.request_id in self.rejects}
        if rejected:
            raise RecordsRejected(rejected, written=len(new))
        return len(new)

    async def write_content(self, contents: Sequence[CallContent]) -> None:
        await self.gate.wait()
        if self.is_away:
            raise DependencyUnavailable("database")
        rejected = {c.request_id: self.rejects[c.request_id] for c in contents if c.request_id in self.rejects}
        self.contents.extend(content for content in contents if content.request_id not in rejected)
        if rejected:
            raise RecordsRejected(rejected, written=len(contents) - len(rejected))

    async def spent(self, claim: BudgetClaim) -> NanoUsd:
        raise AssertionError("the log asks for no sums")

    async def recorded(self, call_ids: Sequence[str]) -> dict[str, bool]:
        raise AssertionError("the log asks for no calls")


class House:
    def __init__(self, *, log_content: LogContent = LogContent.METADATA, cap: int = 1_000) -> None:
        self.sink, self.ledger, self.clock = FakeSink(), FakeLedger(), ManualClock()
        self.log = UsageLog(
            sink=self.sink, store=self.ledger, clock=self.clock, log_content=log_content, content_max_bytes=cap
        )

    async def call(self, meter: Meter, error: BaseException | None = None, *, answer: bytes = b"") -> None:
        """A call that ends so."""
        try:
            async with self.log.logged(meter):
                if meter.answer_body is not None:
                    meter.answer_body += answer
                if error is not None:
                    raise error
        except BaseException as raised:
            if raised is not error:
                raise


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture
def content_house() -> House:
    return House(log_content=LogContent.FULL)


def broke(error: GatewayError, reason: str) -> AttemptFailed:
    return AttemptFailed(kind=FailureKind.ANSWER_BEGUN, reason=reason, error=error)


LIMITED = RateLimited(scope="key", kind="requests", limit=1, window_s=60, retry_after_s=1)
ENDS = [
    # how it ended, whether an upstream was tried, and what the record says: outcome, status, code, reason
    (None, True, Outcome.OK, 200, None, None),
    (ModelNotFound("x"), False, Outcome.REFUSED, 404, "model_not_found", None),
    (LIMITED, False, Outcome.REFUSED, 429, "rate_limit_exceeded", None),
    (NoHealthyEndpoint(), False, Outcome.REFUSED, 503, "no_healthy_endpoint", None),
    (DependencyUnavailable("x"), False, Outcome.REFUSED, 503, "dependency_unavailable", None),
    (UpstreamError(), True, Outcome.UPSTREAM_ERROR, 502, "upstream_error", None),
    (UpstreamBadResponse(), True, Outcome.UPSTREAM_ERROR, 502, "upstream_bad_response", None),
    (UpstreamTimeout(), True, Outcome.TIMEOUT, 504, "upstream_timeout", None),
    (broke(UpstreamTruncated(), "truncated"), True, Outcome.TRUNCATED, 200, "upstream_truncated", "truncated"),
    (broke(UpstreamError(), "reset"), True, Outcome.TRUNCATED, 200, "upstream_error", "reset"),
    (broke(UpstreamTimeout(), "between_tokens_timeout"), True, Outcome.TIMEOUT, 200, "upstream_timeout", "between_tokens_timeout"),
    (asyncio.CancelledError(), True, Outcome.INTERRUPTED, 503, "interrupted", None),
    (GeneratorExit(), True, Outcome.INTERRUPTED, 503, "interrupted", None),
    (ZeroDivisionError(), True, Outcome.INTERRUPTED, 500, "internal_error", None),
    (SystemExit(1), True, Outcome.INTERRUPTED, 500, "internal_error", None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "is_tried", "outcome", "status", "code", "reason"),
    ENDS,
    ids=[f"{type(end[0]).__name__}-{end[2]}-{end[5]}" for end in ENDS],
)
async def test_every_way_in_which_a_call_ends_has_its_words(
    house: House,
    error: BaseException | None,
    is_tried: bool,
    outcome: Outcome,
    status: int,
    code: str | None,
    reason: str | None,
) -> None:
    meter = a_meter()
    if is_tried:
        meter.attempts, meter.is_admitted = [Attempt("e1", "openai", 0)], True
    await house.clock.advance(0.25)

    await house.call(meter, error)

    (record,) = house.sink.records
    assert (record.outcome, record.http_status, record.error_code, record.error_reason) == (
        outcome,
        status,
        code,
        reason,
    )
    assert (record.request_id, record.duration_ms) == (meter.request_id, 250)


async def test_a_client_that_left_is_told_from_a_shutdown(house: House) -> None:
    meter = a_meter(has_client_left=True, is_admitted=True)

    await house.call(meter, asyncio.CancelledError())

    (record,) = house.sink.records
    assert (record.outcome, record.http_status, record.error_code) == ("client_cancelled", 499, "client_cancelled")


async def test_the_first_conclusion_stands(house: House) -> None:
    meter = a_meter(is_admitted=True)
    house.log.conclude(meter, None)
    await house.clock.advance(9)
    house.log.conclude(meter, ZeroDivisionError())

    assert (meter.outcome, meter.http_status, meter.duration_ms) == (Outcome.OK, 200, 0)


async def test_a_record_that_a_settlement_carries_is_not_written_again(house: House) -> None:
    await house.call(a_meter(is_settled=True))

    assert house.sink.held == []


async def test_a_refusal_waits_here_while_the_sink_is_away_and_is_sent_once_it_is_back(house: House) -> None:
    house.sink.is_away = True
    meters = [a_meter() for _ in range(3)]
    for meter in meters:
        await house.call(meter, LIMITED)
    with pytest.raises(DependencyUnavailable):
        await house.log.send_unsent()
    house.sink.is_away = False

    await house.log.send_unsent()
    await house.log.drain_once()

    assert [record.request_id for record in house.ledger.written] == [meter.request_id for meter in meters]


async def test_what_waits_is_sent_once_each_though_two_send_at_the_same_moment(house: House) -> None:
    """The chore and the stop of the process may both be at it."""
    house.sink.is_away = True
    meters = [a_meter() for _ in range(3)]
    for meter in meters:
        await house.call(meter, LIMITED)
    house.sink.is_away = False
    house.sink.gate.clear()
    both = [asyncio.create_task(house.log.send_unsent()) for _ in range(2)]
    await house.clock.turns()
    house.sink.gate.set()
    await asyncio.gather(*both, return_exceptions=True)
    while house.sink.held:
        await house.log.drain_once()

    assert sorted(r.request_id for r in house.ledger.written) == sorted(meter.request_id for meter in meters)


async def test_a_batch_is_written_then_confirmed(house: House) -> None:
    records = [a_record() for _ in range(3)]
    for record in records:
        house.sink.put(encode_record(record))

    assert await house.log.drain_once() == 3
    assert house.ledger.written == records
    assert house.sink.held == []
    assert await house.log.drain_once() == 0


async def test_a_batch_is_bounded(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_log_module, "BATCH", 2)
    for _ in range(5):
        house.sink.put(encode_record(a_record()))

    assert [await house.log.drain_once() for _ in range(4)] == [2, 2, 1, 0]


async def test_what_could_not_be_written_is_not_confirmed(house: House) -> None:
    house.sink.put(encode_record(a_record()))
    house.ledger.is_away = True
    with pytest.raises(DependencyUnavailable):
        await house.log.drain_once()
    assert len(house.sink.held) == 1
    house.ledger.is_away = False

    assert await house.log.drain_once() == 1
    assert len(house.ledger.written) == 1


async def test_bytes_that_are_no_record_do_not_hold_up_the_others_and_are_kept_in_the_log(house: House) -> None:
    good = [a_record(), a_record()]
    for packed in (encode_record(good[0]), b"\xc1garbage", b"", encode_record(good[1])):
        house.sink.put(packed)

    with capture_logs() as lines:
        await house.log.drain_once()

    assert house.ledger.written == good
    assert house.sink.held == []
    assert [line["packed"] for line in lines if line["event"] == "unreadable_record"] == [b"\xc1garbage".hex(), ""]


async def test_a_record_the_database_will_never_take_is_kept_in_the_log_whole(house: House) -> None:
    good, bad = a_record(), a_record()
    house.ledger.rejects = {bad.request_id: "a figure out of range"}
    for record in (bad, good):
        house.sink.put(encode_record(record))
    house.sink.put(b"garbage")

    with capture_logs() as lines:
        await house.log.drain_once()

    assert house.ledger.written == [good]
    assert house.sink.held == []
    (line,) = (line for line in lines if line["event"] == "record_rejected")
    assert decode_record(bytes.fromhex(line["packed"])) == bad
    assert line["why"] == "a figure out of range"


# Bodies.


FULL, METADATA = LogContent.FULL, LogContent.METADATA


@pytest.mark.parametrize(
    ("default", "identity", "is_kept"),
    [
        (FULL, an_identity(), True),
        (METADATA, an_identity(), False),
        (METADATA, an_identity(key=a_key(log_content=FULL)), True),
        (FULL, an_identity(key=a_key(log_content=METADATA)), False),
        (METADATA, an_identity(key=None, app=an_app(log_content=FULL)), True),
        (FULL, an_identity(key=None, app=an_app(log_content=METADATA)), False),
        (METADATA, an_identity(replace(ALICE, log_content=FULL)), True),
        (FULL, an_identity(replace(ALICE, log_content=METADATA)), False),
        (FULL, an_identity(replace(ALICE, log_content=METADATA), key=a_key(log_content=FULL)), False),
        (FULL, an_identity(replace(ALICE, log_content=FULL), key=a_key(log_content=METADATA)), False),
        (METADATA, an_identity(key=a_key(log_content=METADATA), app=an_app(log_content=FULL)), False),
    ],
)
async def test_bodies_are_kept_only_where_content_is_logged(
    default: LogContent, identity: Identity, is_kept: bool
) -> None:
    house = House(log_content=default)
    await house.call(a_meter(identity))

    await house.log.write_contents_once()

    assert len(house.ledger.contents) == is_kept


async def test_bodies_are_written_as_they_were_and_cut_at_the_cap() -> None:
    house = House(log_content=LogContent.FULL, cap=10)
    short, long = a_meter(call=a_call(body=b"short")), a_meter(call=a_call(body=b"x" * 11))
    await house.call(short, answer=b"0123456789")
    await house.call(long, answer=b"y")

    await house.log.write_contents_once()

    first, second = house.ledger.contents
    assert (first.request_body, first.response_body, first.is_truncated) == (b"short", b"0123456789", False)
    assert (second.request_body, second.response_body, second.is_truncated) == (b"x" * 10, b"y", True)
    assert (first.request_id, first.user_oid) == (short.request_id, "alice")


async def test_bodies_wait_while_the_database_is_away(content_house: House) -> None:
    await content_house.call(a_meter())
    content_house.ledger.is_away = True
    with pytest.raises(DependencyUnavailable):
        await content_house.log.write_contents_once()
    content_house.ledger.is_away = False

    await content_house.log.write_contents_once()
    await content_house.log.write_contents_once()

    assert len(content_house.ledger.contents) == 1


async def test_bodies_that_wait_are_bounded_and_what_is_dropped_is_counted(
    content_house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_log_module, "CONTENT_QUEUE_BYTES", 100)
    for _ in range(3):
        await content_house.call(a_meter(call=a_call(body=b"x" * 40)))
    assert content_house.log.dropped_contents == 1

    await content_house.log.write_contents_once()
    await content_house.call(a_meter(call=a_call(body=b"x" * 100)))

    assert content_house.log.dropped_contents == 1, "what was written makes room again"
    assert len(content_house.ledger.contents) == 2


async def test_a_body_that_the_database_will_never_take_does_not_hold_up_the_others(content_house: House) -> None:
    meters = [a_meter(), a_meter()]
    for meter in meters:
        await content_house.call(meter)
    content_house.ledger.rejects = {meters[0].request_id: "no"}

    await content_house.log.write_contents_once()

    assert [content.request_id for content in content_house.ledger.contents] == [meters[1].request_id]


async def test_bodies_are_written_once_though_two_write_at_the_same_moment(content_house: House) -> None:
    """The chore may be in the middle of a batch when the stop of the process writes what is left."""
    meters = [a_meter() for _ in range(3)]
    await content_house.call(meters[0])
    content_house.ledger.gate.clear()
    both = [asyncio.create_task(content_house.log.write_contents_once()) for _ in range(2)]
    await content_house.clock.turns()
    for meter in meters[1:]:
        await content_house.call(meter)
    content_house.ledger.gate.set()
    await asyncio.gather(*both)
    await content_house.log.write_contents_once()

    assert [content.request_id for content in content_house.ledger.contents] == [m.request_id for m in meters]


async def test_a_body_wakes_its_writer(content_house: House) -> None:
    writer = asyncio.create_task(content_house.log.write_contents())
    try:
        await content_house.call(a_meter(request_id=a_request_id()))
        await content_house.clock.turns()
        await content_house.call(a_meter())
        await content_house.clock.turns()

        assert len(content_house.ledger.contents) == 2
        assert not writer.done()
    finally:
        writer.cancel()
        await asyncio.wait([writer])
