"""Failover: which failures go to the next endpoint, which end the call, and what the record keeps of each attempt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace

import pytest

from app.dialects.base import Dialect
from app.dialects.openai_chat import OpenAIChat
from app.domain.breaker import BreakerRules
from app.domain.call import Call, Meter, Quality
from app.domain.catalog import EMPTY, Catalog, Endpoint, Model, ProviderKind, Timeouts
from app.domain.pricing import Usage
from app.domain.retry_budget import FLOOR, RetryBudget
from app.exceptions import (
    AttemptFailed,
    DependencyUnavailable,
    FailureKind,
    GatewayError,
    NoHealthyEndpoint,
    Overloaded,
    UpstreamError,
    UpstreamRejected,
    UpstreamTimeout,
)
from app.providers.base import Answer
from app.services.budget import bill, need_of
from app.services.endpoint_limits import EndpointLimits
from app.services.failover import MAX_RETRIES, Failover
from app.services.load_balancer import LoadBalancer
from app.services.recording import record_of
from app.services.waiting_room import WaitingRoom
from app.storage.endpoint_ports import EndpointClaim, EndpointFull, LimitName
from tests.calls import PRICE, a_budget, a_key, a_meter, a_model, an_endpoint, an_estimate, an_identity
from tests.kit.clock import ManualClock

TO_OPEN = BreakerRules().faults_in_row
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
    status: int | None = 500,
    code: str | None = None,
    may_be_billed: bool = False,
) -> AttemptFailed:
    return AttemptFailed(
        kind=kind,
        reason=reason,
        error=error or UpstreamError(),
        is_endpoint_fault=is_endpoint_fault,
        is_caller_fault=is_caller_fault,
        upstream_status=status,
        upstream_code=code,
        upstream_message=message,
        may_be_billed=may_be_billed,
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

    def play(self, *steps: BaseException | float | None) -> None:
        self._script += steps

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


class FakeClaims:
    """Endpoints' limits as a list of who is there; `refuses` answers for an endpoint instead."""

    def __init__(self) -> None:
        self.there: list[str] = []
        self.freed: list[tuple[str, int]] = []
        self.refuses: dict[str, EndpointFull] = {}
        self.is_away = False

    async def claim(self, endpoint: Endpoint, attempt: str, tokens: int) -> EndpointClaim | EndpointFull:
        if self.is_away:
            raise DependencyUnavailable("counter store")
        if endpoint.id in self.refuses:
            return self.refuses[endpoint.id]
        self.there.append(endpoint.id)
        return EndpointClaim(endpoint.id, attempt, 1, tokens)

    async def free(self, claim: EndpointClaim, tokens: int) -> None:
        self.there.remove(claim.endpoint_id)
        self.freed.append((claim.endpoint_id, tokens))

    async def hold(self, claims: Sequence[EndpointClaim]) -> None: ...


class House:
    def __init__(self, *script: BaseException | float | None) -> None:
        self.clock = ManualClock()
        self.balancer = LoadBalancer(self.clock, chance=lambda: 0.5)
        self.retries = RetryBudget(20)
        self.swapped: list[str] = []
        self.may_swap = True
        self.claims = FakeClaims()
        self.provider = FakeProvider(self.clock, *script)
        self.failover = Failover(
            providers={ProviderKind.OPENAI: self.provider},
            balancer=self.balancer,
            clock=self.clock,
            retries=self.retries,
            room=WaitingRoom(self.clock),
            limits=EndpointLimits(self.claims),
            swap=self._swap,
        )
        self.meter = a_meter()

    async def call(self, model: Model, *others: Model) -> Answer:
        catalog = Catalog.of(1, [model, *others])
        async with self.failover.opened(CHAT, model, self.meter, catalog) as answer:
            return answer

    async def _swap(self, model: Model, meter: Meter) -> bool:
        self.swapped.append(model.name)
        return self.may_swap


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
    house = House(*[fault] * TO_OPEN)

    for _ in range(TO_OPEN):
        with pytest.raises(UpstreamRejected, match="temperature is too high"):
            await house.call(a_model("m", A))

    assert house.provider.tried == ["a"] * TO_OPEN
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
    assert len(house.meter.attempts) == 1 + MAX_RETRIES
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
    house = House(*[failed()] * TO_OPEN)
    for _ in range(TO_OPEN):
        with pytest.raises(UpstreamError):
            await house.call(a_model("m", A))
    assert house.balancer.state_of("a") == "open"
    await house.clock.advance(BreakerRules().open_s)
    house.meter = a_meter()

    await house.call(a_model("m", A))

    assert house.balancer.state_of("a") == "closed"


async def test_an_upstream_that_says_when_to_come_back_is_left_alone_until_then() -> None:
    house = House(failed("status_429", retry_after_s=30.0), None)

    await house.call(TWO)

    assert house.balancer.state_of("a") == "open"


async def test_a_stream_that_breaks_off_counts_against_its_endpoint_and_is_not_tried_again() -> None:
    house = House(*[None] * TO_OPEN)
    for _ in range(TO_OPEN):
        with pytest.raises(AttemptFailed):
            async with house.failover.opened(CHAT, a_model("m", A), house.meter, EMPTY):
                raise failed("truncated", kind=FailureKind.ANSWER_BEGUN)

    assert house.balancer.state_of("a") == "open"
    assert house.provider.closed_after == ["AttemptFailed"] * TO_OPEN
    assert [(a.outcome, a.reason) for a in house.meter.attempts] == [("broke_off", "truncated")] * TO_OPEN
    assert house.meter.endpoint is A, "who delivered something is paid"


async def test_a_caller_who_leaves_closes_the_upstream_and_blames_nobody() -> None:
    house = House(*[None] * TO_OPEN)
    for _ in range(TO_OPEN):
        with pytest.raises(asyncio.CancelledError):
            async with house.failover.opened(CHAT, a_model("m", A), house.meter, EMPTY):
                raise asyncio.CancelledError

    assert house.provider.closed_after == ["CancelledError"] * TO_OPEN
    assert house.balancer.state_of("a") == "closed"
    assert house.meter.attempts[-1].outcome == "cancelled"


async def test_a_caller_who_leaves_while_the_answer_is_waited_for_is_not_served_elsewhere() -> None:
    house = House(asyncio.CancelledError())

    with pytest.raises(asyncio.CancelledError):
        await house.call(TWO)

    assert house.provider.tried == ["a"]
    assert house.meter.attempts[-1].outcome == "cancelled"
    assert house.meter.endpoint is A, "the request was sent: it may have to be paid"


async def hung_up(house: House, *, after_s: float, of: Endpoint = A) -> None:
    """A caller who waits in vain and leaves."""
    house.provider.play(after_s, asyncio.CancelledError())
    house.meter.has_client_left = True
    with pytest.raises(asyncio.CancelledError):
        await house.call(a_model("m", of))


async def test_callers_who_all_hang_up_on_a_hung_endpoint_open_it() -> None:
    house = House()
    for number in range(TO_OPEN):
        assert house.balancer.state_of("a") == "closed", number
        await hung_up(house, after_s=5.0)

    assert house.balancer.state_of("a") == "open"
    mishap = house.balancer.live(A).mishap
    assert mishap is not None
    assert (mishap.fault, mishap.reason) == ("timeout", "caller_gave_up")


async def test_callers_who_hang_up_early_say_nothing() -> None:
    house = House()
    for _ in range(TO_OPEN):
        await hung_up(house, after_s=4.9)
    assert house.balancer.live(A).breaker.faults_in_row == 0


async def test_callers_who_hang_up_on_an_endpoint_that_others_have_answers_of_say_nothing() -> None:
    house = House()
    for _ in range(TO_OPEN):
        house.provider.on_open = lambda _: house.balancer.live(A).latency.observe(0.2, house.clock.monotonic())
        await hung_up(house, after_s=30.0)
    assert house.balancer.live(A).breaker.faults_in_row == 0


async def test_a_slow_endpoint_is_given_ten_times_what_it_usually_takes() -> None:
    house = House(2.0, None)
    await house.call(a_model("m", A))
    for _ in range(TO_OPEN):
        await hung_up(house, after_s=19.0)
    assert house.balancer.live(A).breaker.faults_in_row == 0
    await hung_up(house, after_s=21.0)
    assert house.balancer.live(A).breaker.faults_in_row == 1


async def test_a_call_that_ends_for_another_reason_than_its_caller_says_nothing() -> None:
    """A drain, say."""
    house = House()
    for _ in range(TO_OPEN):
        house.provider.play(30.0, asyncio.CancelledError())
        with pytest.raises(asyncio.CancelledError):
            await house.call(a_model("m", A))
    assert house.balancer.live(A).breaker.faults_in_row == 0


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


# ── Bounds on asking again ────────────────────────────────────────────────────────────────────────────────────────────


async def test_with_one_retry_configured_two_endpoints_are_asked() -> None:
    """T062."""
    house = House(*[failed() for _ in range(4)])

    with pytest.raises(UpstreamError):
        await house.call(a_model("m", A, B, C, D, max_retries=1))

    assert house.provider.tried == ["a", "b"]


async def test_when_the_retry_budget_is_spent_nobody_else_is_asked_and_the_record_says_so() -> None:
    """T093."""
    house = House(failed(), None)
    for _ in range(FLOOR):
        assert house.retries.may_retry(house.clock.monotonic())

    with pytest.raises(UpstreamError):
        await house.call(TWO)

    assert house.provider.tried == ["a"]
    assert house.meter.candidates[-1].verdict == "retry budget spent"


async def test_what_was_never_sent_costs_nothing_of_the_retry_budget() -> None:
    house = House(failed("connect_refused", kind=FailureKind.NOTHING_SENT), None)
    for _ in range(FLOOR):
        house.retries.may_retry(house.clock.monotonic())

    assert await house.call(TWO) is ANSWER


async def test_an_endpoint_that_was_just_told_to_wait_is_not_asked_again_and_the_caller_learns_when() -> None:
    """T065: 503 with the time of the next probe, which is the sooner of the two."""
    house = House(
        failed("status_429", status=429, error=NoHealthyEndpoint(), retry_after_s=30.0),
        failed("status_429", status=429, error=NoHealthyEndpoint(), retry_after_s=7.0),
    )

    with pytest.raises(NoHealthyEndpoint) as told:
        await house.call(TWO)

    assert house.provider.tried == ["a", "b"]
    assert told.value.retry_after_s == pytest.approx(house.balancer.next_try_s(TWO))
    assert 7.0 <= (told.value.retry_after_s or 0) <= 7.7


async def test_while_all_are_open_nobody_is_asked_and_the_caller_learns_when_to_come_back() -> None:
    """T090."""
    house = House(*[failed() for _ in range(TO_OPEN)])
    for _ in range(TO_OPEN):
        with pytest.raises(UpstreamError):
            await house.call(a_model("m", A))
    house.meter = a_meter()

    with pytest.raises(NoHealthyEndpoint) as told:
        await house.call(a_model("m", A))

    assert house.meter.attempts == []
    assert told.value.retry_after_s == pytest.approx(2.0)


async def test_a_refused_credential_takes_the_endpoint_out_at_once() -> None:
    """T064."""
    house = House(failed("status_401", status=401), None)

    assert await house.call(TWO) is ANSWER
    assert house.balancer.state_of("a") == "open"


@pytest.mark.parametrize("status", [400, 404, 413, 422])
async def test_a_hundred_bad_requests_leave_the_breaker_closed(status: int) -> None:
    """T063, T066."""
    fault = failed(f"status_{status}", status=status, is_caller_fault=True, is_endpoint_fault=False, message="no")
    house = House(*[fault] * 100)
    for _ in range(100):
        with pytest.raises(UpstreamRejected):
            await house.call(a_model("m", A))

    assert house.balancer.state_of("a") == "closed"
    assert house.balancer.live(A).breaker.counted(house.clock.monotonic()) == (0, 0)


# ── Fallbacks ─────────────────────────────────────────────────────────────────────────────────────────────────────────

SMALL, LARGE, LAST = (
    a_model("small", an_endpoint("s", model="small"), fallbacks=("large", "last")),
    a_model("large", an_endpoint("l", model="large")),
    a_model("last", an_endpoint("x", model="last")),
)


async def test_when_a_model_has_nobody_left_its_fallbacks_are_asked_in_order() -> None:
    house = House(failed(), failed(), None)

    assert await house.call(SMALL, LARGE, LAST) is ANSWER

    assert house.provider.tried == ["s", "l", "x"]
    assert house.swapped == ["large", "last"]


async def test_a_fallback_whose_cost_cannot_be_reserved_is_not_asked() -> None:
    house = House(failed())
    house.may_swap = False

    with pytest.raises(UpstreamError):
        await house.call(SMALL, LARGE, LAST)

    assert house.provider.tried == ["s"]
    assert house.meter.candidates[-1].verdict == "fallback refused: limits or budgets"


@pytest.mark.parametrize("code", ["context_length_exceeded", "content_filter"])
async def test_a_prompt_that_is_too_long_or_against_the_rules_goes_to_the_fallback(code: str) -> None:
    fault = failed("status_400", status=400, is_caller_fault=True, is_endpoint_fault=False, code=code)
    house = House(fault, None)

    assert await house.call(SMALL, LARGE, LAST) is ANSWER
    assert house.provider.tried == ["s", "l"]


async def test_any_other_fault_of_the_caller_goes_nowhere_else() -> None:
    fault = failed("status_400", status=400, is_caller_fault=True, is_endpoint_fault=False, code="invalid_value")
    house = House(fault)

    with pytest.raises(UpstreamRejected):
        await house.call(SMALL, LARGE, LAST)

    assert house.provider.tried == ["s"]


async def test_a_fallback_that_the_caller_may_not_use_is_passed_over() -> None:
    house = House(failed(), None)
    house.meter = a_meter(an_identity(key=a_key(allowed_models=frozenset({"small", "last"}))))

    assert await house.call(SMALL, LARGE, LAST) is ANSWER
    assert house.provider.tried == ["s", "x"]


# ── Room ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_call_waits_for_room_at_a_small_endpoint_and_gets_it() -> None:
    house, small = House(None, None), a_model("m", an_endpoint("a", model="m", max_concurrency=1))
    waiting: asyncio.Task[Answer]
    async with house.failover.opened(CHAT, small, house.meter, EMPTY):
        waiting = asyncio.create_task(house.call(small))
        await house.clock.turns()
        assert house.provider.tried == ["a"]

    assert await waiting is ANSWER


async def test_where_everybody_is_full_and_nobody_is_waited_for_the_caller_is_told_at_once() -> None:
    """T087."""
    house = House()
    live = house.balancer.live(A)
    for _ in range(512):
        house.balancer.begin(live)

    with pytest.raises(Overloaded) as told:
        await house.call(a_model("m", A))

    assert told.value.retry_after_s
    assert house.provider.tried == []


# ── What failed and is billed all the same ────────────────────────────────────────────────────────────────────────────


async def test_an_attempt_that_its_upstream_may_bill_is_a_part_of_the_calls_cost() -> None:
    house = House(failed("first_token_timeout", status=None, may_be_billed=True))
    model = a_model("m", A, B, price=PRICE)
    house.meter.model, house.meter.estimate = model, an_estimate(100, 50)

    await house.call(model)
    house.meter.usage, house.meter.quality = Usage(90, 10), Quality.EXACT
    bill(house.meter)

    (first, second) = record_of(house.meter).detail.attempts
    assert (first.cost_nanousd, first.prompt_tokens, first.usage_quality) == (200, 100, "estimated")
    assert [(line.what, line.quantity) for line in first.arithmetic] == [("input", 100)]
    assert second.cost_nanousd == 0
    assert house.meter.cost_nanousd == 200 + 90 * 2 + 10 * 8
    assert house.swapped == [], "nothing is promised, so nothing more has to be reserved"


async def test_a_call_whose_only_attempt_timed_out_costs_the_prompt_that_was_sent() -> None:
    house = House(failed("total_timeout", status=None, may_be_billed=True))
    model = a_model("m", A, price=PRICE)
    house.meter.model, house.meter.estimate = model, an_estimate(100, 50)

    with pytest.raises(GatewayError):
        await house.call(model)
    bill(house.meter)

    record = record_of(house.meter)
    assert (record.cost_nanousd, record.prompt_tokens, record.endpoint_id) == (200, 0, None)


async def test_what_an_upstream_refused_or_never_had_costs_nothing() -> None:
    house = House(
        failed("status_500"), failed("connect_refused", kind=FailureKind.NOTHING_SENT), failed("no_choices", status=200)
    )
    model = a_model("m", A, B, C, price=PRICE)
    house.meter.model, house.meter.estimate = model, an_estimate(100, 50)

    with pytest.raises(GatewayError):
        await house.call(model)
    bill(house.meter)

    assert house.meter.cost_nanousd == 0


@pytest.mark.parametrize("may_swap", [True, False])
async def test_under_a_hard_budget_the_next_attempt_waits_for_room_beside_the_cost_of_the_last(may_swap: bool) -> None:
    house = House(failed("first_token_timeout", status=None, may_be_billed=True))
    house.may_swap = may_swap
    model = a_model("m", A, B, price=PRICE)
    house.meter.model, house.meter.estimate, house.meter.granted_tokens = model, an_estimate(100, 50), 50

    if may_swap:
        assert await house.call(model) is ANSWER
    else:
        with pytest.raises(GatewayError):
            await house.call(model)

    assert house.swapped == ["m"]
    assert house.provider.tried == (["a", "b"] if may_swap else ["a"])
    need = need_of(house.meter, replace(model, budgets=(a_budget(10**6),)), floor_tokens=1, expected_tokens=1)
    assert need.fixed_nanousd == 200 + 200, "the failed attempt, and the prompt of the next"


# ── Limits of endpoints ───────────────────────────────────────────────────────────────────────────────────────────────

LIMITED = a_model("m", an_endpoint("a", model="m", tokens_per_minute=1000), an_endpoint("b", model="m", priority=-1))


async def test_an_attempt_holds_its_endpoints_limits_and_frees_them_whatever_happens() -> None:
    house = House(failed(), None)
    house.meter.estimate = an_estimate(100, 50)

    await house.call(LIMITED)

    assert house.provider.tried == ["a", "b"]
    assert (house.claims.there, house.claims.freed) == ([], [("a", 0)])


async def test_what_was_used_takes_the_place_of_what_was_claimed() -> None:
    house = House(None)

    def note(meter: Meter) -> None:
        meter.usage = Usage(prompt_tokens=7, completion_tokens=5)

    house.provider.on_open = note
    await house.call(LIMITED)

    assert house.claims.freed == [("a", 12)]


async def test_a_lower_priority_takes_what_a_limit_of_the_higher_one_refuses() -> None:
    house = House(None, None)
    house.claims.refuses = {"a": EndpointFull(LimitName.TOKENS, 30_000)}

    await house.call(LIMITED)
    again = house.meter = a_meter()
    house.claims.refuses = {}
    await house.call(LIMITED)

    assert house.provider.tried == ["b", "b"], "and is not asked again before it can have room"
    assert again.candidates[0].verdict == "rate limited: tokens_per_minute"


async def test_when_the_only_endpoint_is_used_up_the_caller_learns_when_it_is_not() -> None:
    house = House()
    house.claims.refuses = {"a": EndpointFull(LimitName.REQUESTS, 30_000)}

    with pytest.raises(NoHealthyEndpoint) as told:
        await house.call(a_model("m", an_endpoint("a", model="m", requests_per_minute=1)))

    assert told.value.retry_after_s == pytest.approx(30.0)
    assert house.provider.tried == []


async def test_while_the_store_is_away_nothing_is_claimed_and_calls_go_on() -> None:
    house = House(None)
    house.claims.is_away = True

    assert await house.call(LIMITED) is ANSWER
    assert house.provider.tried == ["a"]
