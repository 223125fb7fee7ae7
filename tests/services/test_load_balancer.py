"""Which endpoint next: priority, strategy, and leaving alone those that fail, drain or are full."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.breaker import BreakerRules, BreakerState, Change, Fault
from app.domain.call import Meter
from app.domain.catalog import Catalog, Endpoint, Model, Sticky, Strategy
from app.domain.money import PicoUsd
from app.domain.pricing import Price, Rates
from app.exceptions import AttemptFailed, FailureKind, UpstreamError
from app.services.live_endpoint import LiveEndpoint, Mishap
from app.services.load_balancer import MAX_IN_FLIGHT, LoadBalancer
from tests.calls import a_call, a_meter, a_model, a_user, an_endpoint, an_estimate, an_identity
from tests.kit.clock import ManualClock

A, B, C = an_endpoint("a", weight=3), an_endpoint("b", weight=2), an_endpoint("c", weight=1)
TO_OPEN = BreakerRules().faults_in_row
OPEN_S = BreakerRules().open_s


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def balancer(clock: ManualClock) -> LoadBalancer:
    return LoadBalancer(clock, chance=lambda: 0.5)


def order(balancer: LoadBalancer, model: Model, meter: Meter | None = None) -> str:
    """The endpoints one call would try if all of them failed."""
    tried: tuple[str, ...] = ()
    meter = meter or a_meter()
    while (endpoint := balancer.pick(model, meter, tried)) is not None:
        tried += (endpoint.id,)
    return "".join(tried)


def first(balancer: LoadBalancer, model: Model) -> str:
    endpoint = balancer.pick(model, a_meter())
    assert endpoint is not None
    return endpoint.id


def fail(balancer: LoadBalancer, endpoint: Endpoint, times: int = TO_OPEN) -> None:
    live = balancer.live(endpoint)
    for _ in range(times):
        failure = AttemptFailed(kind=FailureKind.NO_ANSWER, reason="status_500", error=UpstreamError())
        balancer.failed(live, balancer.begin(live), failure, Fault.ERROR, None)
        balancer.end(live)


def notes(meter: Meter) -> list[tuple[str, str]]:
    return [(candidate.endpoint_id, candidate.verdict) for candidate in meter.candidates]


# ── Shares and order ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_calls_are_shared_exactly_by_weight(balancer: LoadBalancer) -> None:
    model = a_model("m", A, B, C)

    for _ in range(100):
        assert Counter(first(balancer, model) for _ in range(6)) == {"a": 3, "b": 2, "c": 1}


def test_each_model_is_shared_out_by_itself(balancer: LoadBalancer) -> None:
    one = a_model("one", an_endpoint("a"), an_endpoint("b"))
    other = a_model("other", an_endpoint("c"), an_endpoint("d"))

    assert [first(balancer, model) for model in (one, other, one, other)] == ["a", "c", "b", "d"]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), st.booleans()), min_size=1, max_size=6))
def test_every_endpoint_that_may_be_asked_is_offered_exactly_once(shapes: list[tuple[int, int, bool]]) -> None:
    endpoints = [
        an_endpoint(f"{i}", weight=weight, priority=priority, is_draining=is_draining)
        for i, (weight, priority, is_draining) in enumerate(shapes)
    ]
    balancer = LoadBalancer(ManualClock(), chance=lambda: 0.5)
    for endpoint in endpoints[::2]:
        fail(balancer, endpoint)

    offered = order(balancer, a_model("m", *endpoints))

    assert sorted(offered) == [endpoint.id for endpoint in endpoints[1::2] if not endpoint.is_draining]


def test_lower_priorities_are_tried_only_after_the_higher_ones(balancer: LoadBalancer) -> None:
    model = a_model("m", an_endpoint("l", priority=1), an_endpoint("a", priority=2), an_endpoint("b", priority=2))

    assert {order(balancer, model) for _ in range(4)} == {"abl", "bal"}


def test_the_strategy_is_the_models(balancer: LoadBalancer) -> None:
    cheap = Price("p", Rates(PicoUsd(1), PicoUsd(1)))
    dear = Price("q", Rates(PicoUsd(9), PicoUsd(9)))
    a, b = an_endpoint("a", price=dear), an_endpoint("b", price=cheap)
    meter = a_meter(estimate=an_estimate())

    assert balancer.pick(a_model("m", a, b, strategy=Strategy.COST), meter) is b
    balancer.begin(balancer.live(a))
    assert balancer.pick(a_model("m", a, b, strategy=Strategy.LEAST_BUSY), meter) is b
    for endpoint, took_s in ((a, 0.1), (b, 3.0)):
        balancer.answered(balancer.live(endpoint), 0, took_s=took_s)
    assert balancer.pick(a_model("m", a, b, strategy=Strategy.LATENCY), meter) is a


def test_a_user_stays_with_one_endpoint_and_another_one_is_found_when_that_is_gone(balancer: LoadBalancer) -> None:
    model = a_model("m", *(an_endpoint(id) for id in "abcde"), sticky=Sticky.USER)
    meter = a_meter(an_identity(a_user(oid="ada")))

    homes = {order(balancer, model, meter)[0] for _ in range(10)}

    assert len(homes) == 1
    (home,) = homes
    fail(balancer, next(each for each in model.endpoints if each.id == home))
    assert len({order(balancer, model, meter)[0] for _ in range(10)} - {home}) == 1


def test_prompts_that_begin_alike_stay_together(balancer: LoadBalancer) -> None:
    import msgspec

    model = a_model("m", *(an_endpoint(id) for id in "abcde"), sticky=Sticky.PROMPT)
    system = "x" * 2000

    def home(text: str) -> str:
        call = a_call(fields={"messages": msgspec.Raw(text.encode())})
        return order(balancer, model, a_meter(call=call))[0]

    assert home(system + "one") == home(system + "two")
    assert len({home(f"prompt {number}") for number in range(40)}) > 1


# ── Who is passed over ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_record_says_of_each_endpoint_why_it_was_passed_over(balancer: LoadBalancer) -> None:
    drains, opened, full = an_endpoint("d", is_draining=True), an_endpoint("o"), an_endpoint("f", max_concurrency=1)
    limited, low, one, two = an_endpoint("r"), an_endpoint("l", priority=-1), an_endpoint("1"), an_endpoint("2")
    fail(balancer, opened)
    balancer.begin(balancer.live(full))
    balancer.limited(balancer.live(limited), "requests_per_minute", 30)
    model, meter = a_model("m", drains, opened, full, limited, low, one, two), a_meter()

    meter.endpoint = balancer.pick(model, meter)
    balancer.explain_rest(model, meter)

    assert notes(meter) == [
        ("d", "draining"),
        ("o", "open until 12:00:02 UTC (error)"),
        ("f", "full"),
        ("r", "rate limited: requests_per_minute"),
        ("1", "tried"),
        ("l", "lower priority"),
        ("2", "not chosen"),
    ]


def test_of_a_model_with_one_endpoint_the_record_says_why_that_was_not_asked(balancer: LoadBalancer) -> None:
    meter = a_meter()
    fail(balancer, A)

    assert balancer.pick(a_model("m", A), meter) is None
    assert notes(meter) == [("a", "open until 12:00:02 UTC (error)")]


def test_when_all_drain_there_is_no_candidate(balancer: LoadBalancer) -> None:
    assert order(balancer, a_model("m", an_endpoint("a", is_draining=True))) == ""


def test_an_endpoint_without_a_limit_of_its_own_is_full_all_the_same_some_day(balancer: LoadBalancer) -> None:
    """T087."""
    live = balancer.live(A)
    for _ in range(MAX_IN_FLIGHT):
        balancer.begin(live)

    assert balancer.pick(a_model("m", A), a_meter()) is None
    assert balancer.has_full(a_model("m", A))
    balancer.end(live)
    assert balancer.pick(a_model("m", A), a_meter()) is A


# ── Failing and coming back ───────────────────────────────────────────────────────────────────────────────────────────


async def test_an_endpoint_is_left_alone_after_so_many_faults_in_a_row_and_comes_back_by_one_probe(
    balancer: LoadBalancer, clock: ManualClock
) -> None:
    """T088, T089."""
    model = a_model("m", A, B)
    fail(balancer, A, TO_OPEN - 1)
    assert balancer.state_of("a") == "closed"
    fail(balancer, A, 1)
    assert balancer.state_of("a") == "open"
    assert {first(balancer, model) for _ in range(5)} == {"b"}
    await clock.advance(OPEN_S)
    assert balancer.state_of("a") == "half_open"

    ticket = balancer.begin(balancer.live(A))
    meter = a_meter()
    assert balancer.pick(a_model("m", A), meter) is None
    assert notes(meter) == [("a", "half open: another call is its probe")]
    balancer.answered(balancer.live(A), ticket, took_s=0.1)

    assert balancer.state_of("a") == "closed"


async def test_all_endpoints_open_is_no_endpoint_until_the_first_may_be_probed(
    balancer: LoadBalancer, clock: ManualClock
) -> None:
    """T090: the time to come back is that of the next probe, and then a call goes through."""
    model = a_model("m", A, B)
    fail(balancer, A)
    await clock.advance(0.5)
    fail(balancer, B)

    assert order(balancer, model) == ""
    assert balancer.next_try_s(model) == pytest.approx(OPEN_S - 0.5)
    await clock.advance(OPEN_S - 0.5)

    assert order(balancer, model) == "a"


def test_a_stream_that_begins_late_counts_as_a_fault_where_the_operator_says_how_late(balancer: LoadBalancer) -> None:
    """T088."""
    slow = an_endpoint("a", breaker=BreakerRules(slow_first_token_s=1.0))
    live = balancer.live(slow)
    for _ in range(TO_OPEN):
        ticket = balancer.begin(live)
        balancer.answered(live, ticket, took_s=1.5)
        balancer.succeeded(live, ticket, took_s=1.5)

    assert (balancer.state_of("a"), live.breaker.fault) == ("open", Fault.SLOW)


async def test_checks_overrule_no_calls(balancer: LoadBalancer, clock: ManualClock) -> None:
    """T092: a check that succeeds does not close what calls have opened, one that fails does not open what calls use."""
    fail(balancer, A)
    balancer.told_checked("a", is_ok=True, reason=None, took_ms=1)
    assert balancer.state_of("a") == "open"

    live = balancer.live(B)
    balancer.succeeded(live, balancer.begin(live), took_s=0)
    for _ in range(5):
        balancer.told_checked("b", is_ok=False, reason="connect_failed", took_ms=1)
    assert balancer.state_of("b") == "closed"


async def test_an_endpoint_that_nobody_calls_is_opened_by_its_checks_and_closed_by_them(
    balancer: LoadBalancer, clock: ManualClock
) -> None:
    """T092."""
    balancer.live(A)
    balancer.told_checked("a", is_ok=False, reason="connect_failed", took_ms=1)
    assert balancer.state_of("a") == "closed", "once may be a hiccup"
    balancer.told_checked("a", is_ok=False, reason="connect_failed", took_ms=1)
    assert balancer.state_of("a") == "open"

    balancer.told_checked("a", is_ok=True, reason=None, took_ms=1)

    assert balancer.state_of("a") == "closed"


def test_changes_are_told_with_what_caused_them(clock: ManualClock) -> None:
    told: list[tuple[str, Change, Mishap | None]] = []

    def note(live: LiveEndpoint, change: Change, mishap: Mishap | None) -> None:
        told.append((live.id, change, mishap))

    balancer = LoadBalancer(clock, chance=lambda: 0.5, on_change=note)
    fail(balancer, A)
    balancer.told_open("a", Fault.ERROR, 60)

    ((endpoint_id, change, mishap),) = told
    assert (endpoint_id, change.before, change.after) == ("a", BreakerState.CLOSED, BreakerState.OPEN)
    assert mishap is not None
    assert mishap.reason == "status_500"


# ── Catalogs ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_health_counts_who_is_well_and_who_is_open_or_drains(balancer: LoadBalancer) -> None:
    catalog = Catalog.of(1, [a_model("m", A, B), a_model("n", C, an_endpoint("d", is_draining=True))])
    fail(balancer, A)

    assert balancer.healthy(catalog) == (2, 2)


def test_what_is_remembered_of_an_endpoint_that_is_gone_is_dropped(balancer: LoadBalancer) -> None:
    fail(balancer, A)
    fail(balancer, B)

    balancer.follow(Catalog.of(2, [a_model("m", B)]))

    assert (balancer.state_of("a"), balancer.state_of("b")) == ("closed", "open")


@pytest.mark.parametrize("field", ["credential", "api_base", "upstream_model"])
def test_an_endpoint_that_is_another_upstream_now_begins_anew(balancer: LoadBalancer, field: str) -> None:
    """T064: whoever mends the key need not wait."""
    fail(balancer, A)

    balancer.follow(Catalog.of(2, [a_model("m", replace(A, **{field: "new"}))]))  # type: ignore[arg-type]

    assert balancer.state_of("a") == "closed"


def test_shares_and_calls_in_flight_outlive_a_swap_of_the_catalog(balancer: LoadBalancer) -> None:
    model = a_model("m", an_endpoint("a"), an_endpoint("b"))
    assert first(balancer, model) == "a"
    balancer.begin(balancer.live(model.endpoints[0]))

    balancer.follow(Catalog.of(2, [model]))

    assert first(balancer, model) == "b"
    assert balancer.live(model.endpoints[0]).in_flight == 1


def test_a_change_of_one_model_leaves_what_is_remembered_of_all_others(balancer: LoadBalancer) -> None:
    untouched, before = a_model("n", C), a_model("m", A, B)
    catalog = Catalog.of(1, [before, untouched])
    balancer.follow(catalog)
    for endpoint in (A, B, C):
        fail(balancer, endpoint)

    balancer.follow(catalog.renewed(2, [a_model("m", replace(A, weight=5), an_endpoint("new"))]))

    assert [balancer.state_of(id) for id in ("a", "b", "c", "new")] == ["open", "closed", "open", "closed"]
    assert balancer.live(A).weight == 5
    assert {live.id for live in balancer.all_live()} == {"a", "c", "new"}


def test_a_call_that_outlived_its_endpoint_does_not_bring_it_back_for_good(balancer: LoadBalancer) -> None:
    catalog = Catalog.of(1, [a_model("m", A, B)])
    balancer.follow(catalog)
    catalog = catalog.renewed(2, [a_model("m", B)])
    balancer.follow(catalog)
    balancer.live(A)

    balancer.follow(catalog.renewed(3, [a_model("m", replace(B, weight=2))]))

    assert [live.id for live in balancer.all_live()] == ["b"]
