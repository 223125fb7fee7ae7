"""Admission: everything claimed from everybody or nothing, and one settlement however the call ends."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC
from typing import cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.budget import Budget, BudgetState, PeriodKind
from app.domain.call import Meter, Quality
from app.domain.catalog import Catalog, Model
from app.domain.limits import Claim, ClaimState, Limit, LimitKind, Scope
from app.domain.money import NanoUsd, PicoUsd
from app.domain.pricing import Price, Rates, Usage, cost_of
from app.domain.record import CallRecord, decode_record
from app.exceptions import (
    BudgetExceeded,
    DependencyUnavailable,
    PriceUnknown,
    RateLimited,
    UpstreamError,
)
from app.services import context_validation
from app.services.admission import Admission
from app.services.estimation import Estimation, NoTokenizer
from app.services.expectations import Expectations
from app.storage.ports import (
    Admitted,
    BudgetRefused,
    Counters,
    LimitRefused,
    Reservation,
    Settlement,
)
from tests.calls import (
    PRICE,
    a_budget,
    a_call,
    a_key,
    a_meter,
    a_model,
    a_user,
    an_app,
    an_endpoint,
    an_estimate,
    an_identity,
)
from tests.kit.clock import ManualClock

Refusal = LimitRefused | BudgetRefused | DependencyUnavailable


class FakeCounters:
    """Admits everything, unless told otherwise; settles and releases while it is there."""

    def __init__(self) -> None:
        self.refusals: list[Refusal] = []
        self.is_away = False
        self.asked: list[Reservation] = []
        self.settled: list[Settlement] = []
        self.released: list[str] = []
        self.renewed: list[list[str]] = []

    async def admit(self, reservation: Reservation) -> Admitted | LimitRefused | BudgetRefused:
        self.asked.append(reservation)
        if self.refusals:
            refusal = self.refusals.pop(0)
            if isinstance(refusal, DependencyUnavailable):
                raise refusal
            return refusal
        return Admitted(
            limits=tuple(ClaimState(claim, 7, 1_000) for claim in reservation.claims),
            budgets=tuple(BudgetState(claim, NanoUsd(0), NanoUsd(0)) for claim in reservation.budgets),
            output_tokens=reservation.need.max_output_tokens,
        )

    async def settle(self, settlement: Settlement) -> None:
        await asyncio.sleep(0)
        if self.is_away:
            raise DependencyUnavailable("counter store")
        self.settled.append(settlement)

    async def release(self, call_id: str, *, is_over: bool = True) -> None:
        assert is_over
        self.released.append(call_id)

    async def room_in_ms(self, claim: Claim, amount: int) -> int:
        return 0

    async def renew(self, call_ids: Sequence[str], lease_s: int) -> list[str]:
        self.renewed.append(list(call_ids))
        return []


DEFAULTS = (Limit(LimitKind.REQUESTS, 60, 60),)
MODEL = a_model("gpt-4", price=PRICE)


class House:
    def __init__(self) -> None:
        self.counters, self.clock = FakeCounters(), ManualClock()
        self.concluded: list[tuple[str, BaseException | None]] = []
        self.catalog = Catalog.of(1, [MODEL])
        """As it is by now."""
        self.admission = Admission(
            counters=cast(Counters, self.counters),
            clock=self.clock,
            conclude=lambda meter, error: self.concluded.append((meter.request_id, error)),
            default_limits=DEFAULTS,
            zone=UTC,
            lease_s=60,
            estimation=Estimation(NoTokenizer()),
            expectations=Expectations(),
            catalog=lambda: self.catalog,
        )

    async def call(self, meter: Meter, model: Model = MODEL, *, error: BaseException | None = None) -> None:
        """A call that reaches an upstream, uses 10 and 5 tokens, and ends so."""
        if meter.estimate is None:
            meter.estimate = an_estimate(100, 50)
        async with self.admission.admitted(model, meter, Catalog.of(1, [model])):
            meter.endpoint = model.endpoints[0]
            meter.usage, meter.quality = Usage(10, 5), Quality.EXACT
            if error is not None:
                raise error

    @property
    def reservation(self) -> Reservation:
        return self.counters.asked[-1]

    def settled_record(self) -> CallRecord:
        (settlement,) = self.counters.settled
        return decode_record(settlement.record)


@pytest.fixture
def house() -> House:
    return House()


def limits(*amounts: int) -> tuple[Limit, ...]:
    return tuple(Limit(LimitKind.REQUESTS, amount, 60) for amount in amounts)


def held_by_all(**everyone: tuple[Budget, ...]) -> tuple[Meter, Model]:
    """A call of a key through an app, each holder with limits and budgets of its own."""
    identity = an_identity(
        a_user(limits=limits(1), budgets=everyone.get("user", ())),
        key=a_key(limits=limits(2), budgets=everyone.get("key", ())),
        app=an_app(limits=limits(3), budgets=everyone.get("app", ())),
    )
    return a_meter(identity), a_model("gpt-4", price=PRICE, limits=limits(4), budgets=everyone.get("model", ()))


# ── What is claimed ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_limits_of_user_key_app_and_model_are_claimed_in_one_step(house: House) -> None:
    await house.call(*held_by_all())

    claimed = {(claim.scope, claim.scope_id, claim.limit.limit) for claim in house.reservation.claims}
    assert claimed == {
        (Scope.USER, "alice", 1),
        (Scope.KEY, "key-1", 2),
        (Scope.APP, "crm", 3),
        (Scope.MODEL, "gpt-4", 4),
    }
    assert len(house.counters.asked) == 1


async def test_budgets_of_user_key_app_and_model_are_claimed_in_one_step(house: House) -> None:
    budget = (a_budget(10**9, period=PeriodKind.DAILY), a_budget(None, soft=5))
    await house.call(*held_by_all(user=budget, key=budget, app=budget, model=budget))

    claimed = sorted(claim.counter for claim in house.reservation.budgets)
    holders = ("app:crm", "key:key-1", "model:gpt-4", "user:alice")
    assert claimed == [f"{holder}:{period}" for holder in holders for period in ("daily:2026-01-15", "total")]


@pytest.mark.parametrize(
    ("own", "expected"), [(None, DEFAULTS), ((), ()), (limits(5, 6), limits(5, 6))], ids=["default", "none", "own"]
)
async def test_a_key_without_limits_of_its_own_has_the_defaults_and_an_empty_list_is_none(
    house: House, own: tuple[Limit, ...] | None, expected: tuple[Limit, ...]
) -> None:
    await house.call(a_meter(an_identity(key=a_key(limits=own))))

    assert tuple(claim.limit for claim in house.reservation.claims) == expected


async def test_a_call_is_booked_to_the_period_it_was_made_in(house: House) -> None:
    """T125: the period is the one of the request, however long the admission takes."""
    meter = a_meter(an_identity(a_user(budgets=(a_budget(10**9, period=PeriodKind.DAILY),))))
    house.clock.set_now(meter.created_at.replace(day=16))

    await house.call(meter)

    assert [claim.period.name for claim in house.reservation.budgets] == ["daily:2026-01-15"]


async def test_a_model_without_a_price_is_refused_only_where_a_hard_budget_would_pay(house: House) -> None:
    unpriced, free = a_model("m"), a_model("m", price=Price("free", Rates(PicoUsd(0), PicoUsd(0))))
    half_priced = a_model("m", an_endpoint("a", price=PRICE), an_endpoint("b"))

    def caller(*budgets: Budget) -> Meter:
        return a_meter(an_identity(a_user(budgets=budgets)))

    for model in (unpriced, half_priced):
        with pytest.raises(PriceUnknown):
            await house.call(caller(a_budget(None, soft=1), a_budget(10**9)), model)
    assert house.counters.asked == []

    await house.call(caller(), unpriced)
    await house.call(caller(a_budget(None, soft=1)), unpriced)
    await house.call(caller(a_budget(10**9)), free)
    assert len(house.counters.settled) == 3


RATES = st.builds(
    Rates,
    input=st.integers(0, 10**6).map(PicoUsd),
    output=st.integers(0, 10**6).map(PicoUsd),
    cached_input=st.none() | st.integers(0, 10**6).map(PicoUsd),
    reasoning=st.none() | st.integers(0, 10**6).map(PicoUsd),
)


@given(
    st.lists(RATES, min_size=1, max_size=3),
    st.booleans(),
    st.integers(min_value=0, max_value=10**5),
    st.none() | st.integers(min_value=1, max_value=10**5),
    st.data(),
)
async def test_the_claim_covers_whatever_any_endpoint_may_charge_within_the_estimate(
    rates: list[Rates], is_stream: bool, prompt_bytes: int, max_tokens: int | None, data: st.DataObject
) -> None:
    house = House()
    endpoints = [an_endpoint(f"e{i}", price=Price(f"p{i}", each)) for i, each in enumerate(rates)]
    call = a_call(prompt_bytes=prompt_bytes, max_tokens=max_tokens, is_stream=is_stream)
    model = a_model("gpt-4", *endpoints)
    meter = a_meter(an_identity(a_user(budgets=(a_budget(9 * 10**15),))), call=call)
    meter.estimate = context_validation.estimate(call, model)
    usage = Usage(
        data.draw(st.integers(0, meter.estimate.prompt_tokens)),
        data.draw(st.integers(0, meter.estimate.completion_tokens)),
        cached_tokens=data.draw(st.integers(0, 10**5)),
        reasoning_tokens=data.draw(st.integers(0, 10**5)),
    )

    await house.call(meter, model)

    (claim,) = house.reservation.budgets
    assert all(cost_of(usage, Price("p", each)).nanousd <= claim.amount_nanousd for each in rates)
    assert 0 <= claim.lost_nanousd <= claim.amount_nanousd


# ── Refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_limit_that_is_used_up_is_named_with_a_true_time_to_come_back(house: House) -> None:
    claim = Claim(Scope.APP, "crm", Limit(LimitKind.TOKENS, 1_000, 3_600), 200)
    house.counters.refusals = [LimitRefused(ClaimState(claim, 12, 90_000), 1_500)]

    with pytest.raises(RateLimited) as told:
        await house.call(a_meter())

    error = told.value
    assert (error.scope, error.kind, error.limit, error.window_s, error.type) == (
        "app",
        "tokens",
        1_000,
        3_600,
        "tokens",
    )
    assert error.retry_after_s == 1.5


async def test_money_that_is_spent_is_refused_for_good_and_says_when_the_period_ends(house: House) -> None:
    meter = a_meter(an_identity(a_user(budgets=(a_budget(1_000, period=PeriodKind.DAILY),))))
    await house.call(meter)
    (claim,) = house.reservation.budgets
    house.counters.refusals = [BudgetRefused(BudgetState(claim, NanoUsd(1_000), NanoUsd(0)))]

    with pytest.raises(BudgetExceeded) as told:
        await house.call(msgspec.structs.replace(meter, is_settled=False))

    assert (told.value.scope, told.value.period) == ("user", "daily")
    assert told.value.resets_at is not None
    assert told.value.resets_at.startswith("2026-01-16T00:00:00")


async def test_a_refused_call_is_neither_settled_nor_running(house: House) -> None:
    claim = Claim(Scope.KEY, "k", DEFAULTS[0], 1)
    house.counters.refusals = [LimitRefused(ClaimState(claim, 0, 1), 1)]
    meter = a_meter()

    with pytest.raises(RateLimited):
        await house.call(meter)

    assert house.counters.settled == []
    assert not meter.is_settled
    assert house.admission.running_calls == 0
    assert house.concluded == []


async def test_a_store_that_is_away_refuses_and_what_it_may_have_taken_is_given_back_later(house: House) -> None:
    house.counters.refusals = [DependencyUnavailable("counter store")]
    meter = a_meter()
    with pytest.raises(DependencyUnavailable):
        await house.call(meter)

    await house.admission.settle_again()

    assert house.counters.released == [meter.request_id]


# ── The way out ──────────────────────────────────────────────────────────────────────────────────────────────────────

ENDS = [None, UpstreamError(), ZeroDivisionError(), asyncio.CancelledError(), GeneratorExit()]


@pytest.mark.parametrize("error", ENDS, ids=lambda error: type(error).__name__)
async def test_however_a_call_ends_it_is_concluded_billed_and_settled_once(
    house: House, error: BaseException | None
) -> None:
    meter = a_meter()
    try:
        await house.call(meter, error=error)
    except BaseException as raised:
        if raised is not error:
            raise

    assert house.concluded == [(meter.request_id, error)]
    (settlement,) = house.counters.settled
    assert (settlement.call_id, settlement.cost_nanousd, settlement.tokens) == (meter.request_id, 60, 15)
    record = house.settled_record()
    assert (record.cost_nanousd, record.prompt_tokens, record.completion_tokens) == (60, 10, 5)
    assert meter.is_settled
    assert house.admission.running_calls == 0


async def test_a_call_that_reached_no_upstream_is_settled_for_nothing(house: House) -> None:
    meter = a_meter(estimate=an_estimate(100, 50))
    with pytest.raises(UpstreamError):
        async with house.admission.admitted(MODEL, meter, Catalog.of(1, [MODEL])):
            raise UpstreamError

    (settlement,) = house.counters.settled
    assert (settlement.cost_nanousd, settlement.tokens) == (0, 0)


async def test_a_settlement_the_store_cannot_take_is_kept_and_repeated_in_order(house: House) -> None:
    house.counters.is_away = True
    meters = [a_meter() for _ in range(3)]
    for meter in meters:
        await house.call(meter)  # whoever has his answer is not told of it
    with pytest.raises(DependencyUnavailable):
        await house.admission.settle_again()
    house.counters.is_away = False

    await house.admission.settle_again()
    await house.admission.settle_again()

    assert [settlement.call_id for settlement in house.counters.settled] == [meter.request_id for meter in meters]


async def test_leases_of_calls_that_run_are_renewed_and_no_others(house: House) -> None:
    meter = a_meter(estimate=an_estimate())
    await house.admission.renew_leases()
    async with house.admission.admitted(MODEL, meter, Catalog.of(1, [MODEL])):
        assert house.admission.running_calls == 1
        await house.admission.renew_leases()
    await house.admission.renew_leases()

    assert [ids for ids in house.counters.renewed if ids] == [[meter.request_id]]
    assert house.admission.running_calls == 0


async def test_what_was_claimed_is_noted_for_the_headers_and_the_record(house: House) -> None:
    meter = a_meter(an_identity(a_user(budgets=(a_budget(10**9),))))

    await house.call(meter)

    assert [state.remaining for state in meter.limits] == [7]
    assert [state.claim.counter for state in meter.budgets] == ["user:alice:total"]


@pytest.mark.parametrize(
    ("hard", "is_stream", "cost_nanousd"),
    [
        pytest.param(None, False, 200, id="no hard budget: the prompt, as estimated"),
        pytest.param(None, True, 200, id="no hard budget, a stream: the same"),
        pytest.param(10**9, False, 200 + 90 * 8, id="a hard budget: all that the upstream may yet bill"),
        pytest.param(10**9, True, 200 + 64 * 8, id="a hard budget, a stream: as far as it gets without a checkpoint"),
    ],
)
async def test_the_record_of_a_call_that_may_be_lost_names_it_before_anything_is_sent(
    house: House, hard: int | None, is_stream: bool, cost_nanousd: int
) -> None:
    meter = a_meter(an_identity(a_user(budgets=(a_budget(hard, soft=1),))), call=a_call(is_stream=is_stream))
    meter.estimate = an_estimate(100, 90)

    await house.call(meter)

    lost = decode_record(house.reservation.record)
    assert (lost.request_id, lost.outcome, lost.user_oid) == (meter.request_id, "lost", "alice")
    assert lost.cost_nanousd == cost_nanousd
    assert [claim.lost_nanousd for claim in house.reservation.budgets] == [cost_nanousd]
