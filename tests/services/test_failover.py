"""Failover: which failures go to the next endpoint, which end the call, and what the record keeps of each attempt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import pytest

from app.dialects.base import Dialect
from app.dialects.openai_chat import OpenAIChat
from app.domain.call import Call, Meter, Quality
from app.domain.catalog import Endpoint, Model, ProviderKind, Timeouts
from app.domain.pricing import Usage
from app.exceptions import (
    AttemptFailed,
    FailureKind,
    GatewayError,
    NoHealthyEndpoint,
    UpstreamError,
    UpstreamRejected,
    UpstreamTimeout,
)
from app.providers.base import Answer
from app.services.failover import MAX_ATTEMPTS, Failover
from app.services.load_balancer import FAILURES_TO_REST, LoadBalancer
from tests.calls import a_meter, a_model, an_endpoint
from tests.kit.clock import ManualClock

ANSWER = Answer("application/json", b"{}")
CHAT = OpenAIChat()


def failed(
    reason: str = "status_500",
    *,
    kind: FailureKind = FailureKind.NO_ANSWER,
    error: GatewayError | None = None,
    is_endpoint_fault: bool = True,
    is_caller_fault: bool = False,
    message: str | None = None,
    retry_after_s: float | None = None,
) -> AttemptFailed:
    return AttemptFailed(
        kind=kind,
        reason=reason,
        error=error or UpstreamError(),
        is_endpoint_fault=is_endpoint_fault,
        is_caller_fault=is_caller_fault,
        upstream_status=500,
        upstream_message=message,
        retry_after_s=retry_after_s,
    )


@dataclass
class Opened:
    endpoint_id: str
    max_tokens: int | None
    deadline_s: float


class FakeProvider:
    """Answers or fails by script, one step per attempt: an error to raise, a time to take first, or an answer (None)."""

    def __init__(self, clock: ManualClock, *script: BaseException | float | None) -> None:
        self._clock = clock
        self._script = list(script)
        self.opened_with: list[Opened] = []
        self.closed_after: list[str] = []
        self.on_open: Callable[[Meter], None] = lambda _: None

    def opened(
        self,
        call: Call,
        endpoint: Endpoint,
        dialect: Dialect,
        meter: Meter,
        *,
        max_tokens: int | None,
        deadline_s: float,
    ) -> AbstractAsyncContextManager[Answer]:
        self.opened_with.append(Opened(endpoint.id, max_tokens, deadline_s))
        return self._attempt(meter)

    @asynccontextmanager
    async def _attempt(self, meter: Meter) -> AsyncIterator[Answer]:
        self.on_open(meter)
        step = self._script.pop(0) if self._script else None
        if isinstance(step, float):
            await self._clock.advance(step)
            step = self._script.pop(0)
        if isinstance(step, BaseException):
            raise step
        try:
            yield ANSWER
        except BaseException as error:
            self.closed_after.append(type(error).__name__)
            raise
        self.closed_after.append("")

    async def close(self) -> None: ...

    @property
    def tried(self) -> list[str]:
        return [opened.endpoint_id for opened in self.opened_with]


class House:
    def __init__(self, *script: BaseException | float | None) -> None:
        self.clock = ManualClock()
        self.balancer = LoadBalancer(self.clock)
        self.provider = FakeProvider(self.clock, *script)
        self.failover = Failover(
            providers={ProviderKind.OPENAI: self.provider}, balancer=self.balancer, clock=self.clock
        )
        self.meter = a_meter()

    async def call(self, model: Model) -> Answer:
        async with self.failover.opened(CHAT, model, self.meter) as answer:
            return answer


A, B, C, D = (an_endpoint(id) for id in "abcd")
TWO = a_model("m", A, B)
FOUR = a_model("m", A, B, C, D)


async def test_an_answer_of_the_first_endpoint_is_the_answer() -> None:
    house = House()

    assert await house.call(TWO) is ANSWER
    assert house.provider.tried == ["a"]
    assert house.meter.endpoint is A
    assert [(attempt.endpoint_id, attempt.outcome) for attempt in house.meter.attempts] == [("a", "ok")]


@pytest.mark.parametrize("kind", [FailureKind.NOTHING_SENT, FailureKind.NO_ANSWER])
async def test_what_was_not_answered_goes_to_the_next_endpoint(kind: FailureKind) -> None:
    house = House(failed("connect_refused", kind=kind))

    assert await house.call(TWO) is ANSWER
    assert house.provider.tried == ["a", "b"]
    assert house.meter.endpoint is B
    assert [(a.endpoint_id, a.outcome, a.reason) for a in house.meter.attempts] == [
        ("a", "failed", "connect_refused"),
        ("b", "ok", None),
    ]


async def test_a_fault_of_the_caller_is_answered_at_once_and_blames_nobody() -> None:
    fault = failed("status_400", is_caller_fault=True, is_endpoint_fault=False, message="temperature is too high")
    house = House(fault, fault, fault)

    for _ in range(FAILURES_TO_REST):
        with pytest.raises(UpstreamRejected, match="temperature is too high"):
            await house.call(a_model("m", A))

    assert house.provider.tried == ["a"] * FAILURES_TO_REST
    assert house.balancer.state_of("a") == "closed"


async def test_a_client_that_left_is_not_served_elsewhere() -> None:
    house = House(failed("client_left", kind=FailureKind.CLIENT_LEFT, is_endpoint_fault=False))

    with pytest.raises(GatewayError):
        await house.call(TWO)

    assert house.provider.tried == ["a"]


async def test_when_all_fail_the_last_failure_is_told() -> None:
    house = House(failed(), failed("timeout", error=UpstreamTimeout()))

    with pytest.raises(UpstreamTimeout):
        await house.call(TWO)

    assert house.meter.endpoint is None
    assert house.meter.error_reason == "timeout"


async def test_a_call_is_tried_so_often_and_no_more() -> None:
    house = House(*[failed() for _ in range(4)])

    with pytest.raises(UpstreamError):
        await house.call(FOUR)

    assert house.provider.tried == ["a", "b", "c"]
    assert len(house.meter.attempts) == MAX_ATTEMPTS
    assert [candidate.endpoint_id for candidate in house.meter.candidates] == ["a", "b", "c"]


async def test_without_endpoints_there_is_none_that_is_healthy() -> None:
    house = House()

    with pytest.raises(NoHealthyEndpoint):
        await house.call(a_model("m", an_endpoint("a", is_draining=True)))

    assert house.meter.attempts == []


async def test_all_attempts_share_one_deadline() -> None:
    house = House(120.0, failed(), None)

    await house.call(TWO)

    assert [opened.deadline_s for opened in house.provider.opened_with] == [house.meter.started_s + 600.0] * 2


async def test_once_the_calls_time_is_over_nobody_else_is_asked_or_blamed() -> None:
    soon = Timeouts(total_s=10.0)
    house = House(10.0, failed("total_timeout", error=UpstreamTimeout()), None)
    model = a_model("m", an_endpoint("a", timeouts=soon), an_endpoint("b", timeouts=soon))

    with pytest.raises(UpstreamTimeout):
        await house.call(model)

    assert house.provider.tried == ["a"]
    assert house.meter.candidates[-1].verdict == "no time left"


async def test_a_lowered_maximum_is_handed_to_every_endpoint() -> None:
    house = House(failed(), None)
    house.meter.capped_max_tokens = 17

    await house.call(TWO)

    assert [opened.max_tokens for opened in house.provider.opened_with] == [17, 17]


async def test_a_failure_counts_against_its_endpoint_and_a_success_wipes_the_slate() -> None:
    house = House(*[failed()] * FAILURES_TO_REST)
    for _ in range(FAILURES_TO_REST):
        with pytest.raises(UpstreamError):
            await house.call(a_model("m", A))
    assert house.balancer.state_of("a") == "open"
    house.meter = a_meter()

    await house.call(a_model("m", A))

    assert house.balancer.state_of("a") == "closed"


async def test_an_upstream_that_says_when_to_come_back_is_left_alone_until_then() -> None:
    house = House(failed("status_429", retry_after_s=30.0), None)

    await house.call(TWO)

    assert house.balancer.state_of("a") == "open"


async def test_a_stream_that_breaks_off_counts_against_its_endpoint_and_is_not_tried_again() -> None:
    house = House(*[None] * FAILURES_TO_REST)
    for _ in range(FAILURES_TO_REST):
        with pytest.raises(AttemptFailed):
            async with house.failover.opened(CHAT, a_model("m", A), house.meter):
                raise failed("truncated", kind=FailureKind.ANSWER_BEGUN)

    assert house.balancer.state_of("a") == "open"
    assert house.provider.closed_after == ["AttemptFailed"] * FAILURES_TO_REST
    assert [(a.outcome, a.reason) for a in house.meter.attempts] == [("broke_off", "truncated")] * FAILURES_TO_REST
    assert house.meter.endpoint is A, "who delivered something is paid"


async def test_a_caller_who_leaves_closes_the_upstream_and_blames_nobody() -> None:
    house = House(*[None] * FAILURES_TO_REST)
    for _ in range(FAILURES_TO_REST):
        with pytest.raises(asyncio.CancelledError):
            async with house.failover.opened(CHAT, a_model("m", A), house.meter):
                raise asyncio.CancelledError

    assert house.provider.closed_after == ["CancelledError"] * FAILURES_TO_REST
    assert house.balancer.state_of("a") == "closed"
    assert house.meter.attempts[-1].outcome == "cancelled"


async def test_a_caller_who_leaves_while_the_answer_is_waited_for_is_not_served_elsewhere() -> None:
    house = House(asyncio.CancelledError())

    with pytest.raises(asyncio.CancelledError):
        await house.call(TWO)

    assert house.provider.tried == ["a"]
    assert house.meter.attempts[-1].outcome == "cancelled"
    assert house.meter.endpoint is A, "the request was sent: it may have to be paid"


async def test_nothing_that_a_failed_attempt_noted_counts_for_the_next_one() -> None:
    house = House(failed("bad_body"), None)

    def note_something_once(meter: Meter) -> None:
        if len(meter.attempts) == 1:
            meter.usage, meter.quality = Usage(999, 999), Quality.EXACT
            meter.delivered_tokens, meter.finish_reason, meter.first_token_ms = 999, "stop", 5

    house.provider.on_open = note_something_once
    await house.call(TWO)

    meter = house.meter
    assert (meter.usage, meter.delivered_tokens, meter.finish_reason, meter.first_token_ms) == (None, 0, None, None)
    assert meter.quality is Quality.ESTIMATED


async def test_the_times_of_an_attempt_count_from_the_beginning_of_the_call() -> None:
    house = House(0.25, failed(), 0.5, None)
    await house.clock.advance(0.1)

    await house.call(TWO)

    assert [(a.started_ms, a.first_byte_ms, a.ended_ms) for a in house.meter.attempts] == [
        (100, None, 350),
        (350, 850, 850),
    ]


async def test_the_endpoints_credential_is_struck_out_of_what_the_caller_reads() -> None:
    fault = failed("status_400", is_caller_fault=True, message="bad request by org-correct-horse")
    house = House(fault)

    with pytest.raises(UpstreamRejected) as told:
        await house.call(a_model("m", an_endpoint("a", credential="org-correct-horse")))

    assert "correct" not in told.value.message
