"""Which endpoint next: priority, weight, and rest for those that keep failing."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.catalog import Catalog, Endpoint, Model
from app.services.load_balancer import FAILURES_TO_REST, REST_S, LoadBalancer
from tests.calls import a_meter, a_model, an_endpoint
from tests.kit.clock import ManualClock

A, B, C = an_endpoint("a", weight=3), an_endpoint("b", weight=2), an_endpoint("c", weight=1)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def balancer(clock: ManualClock) -> LoadBalancer:
    return LoadBalancer(clock)


def order(balancer: LoadBalancer, model: Model) -> str:
    """The endpoints one call would try if all of them failed."""
    return "".join(endpoint.id for endpoint in balancer.candidates(model, a_meter()))


def first(balancer: LoadBalancer, model: Model) -> str:
    return next(balancer.candidates(model, a_meter())).id


def fail(balancer: LoadBalancer, endpoint: Endpoint, times: int = FAILURES_TO_REST) -> None:
    for _ in range(times):
        balancer.failed(endpoint)


def test_calls_are_shared_exactly_by_weight(balancer: LoadBalancer) -> None:
    model = a_model("m", A, B, C)

    assert Counter(first(balancer, model) for _ in range(600)) == {"a": 300, "b": 200, "c": 100}


def test_each_model_is_shared_out_by_itself(balancer: LoadBalancer) -> None:
    one = a_model("one", an_endpoint("a"), an_endpoint("b"))
    other = a_model("other", an_endpoint("c"), an_endpoint("d"))

    assert [first(balancer, model) for model in (one, other, one, other)] == ["a", "c", "b", "d"]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), st.booleans()), min_size=1, max_size=6))
def test_every_endpoint_that_does_not_drain_is_offered_exactly_once(shapes: list[tuple[int, int, bool]]) -> None:
    endpoints = [
        an_endpoint(f"e{i}", weight=weight, priority=priority, is_draining=is_draining)
        for i, (weight, priority, is_draining) in enumerate(shapes)
    ]
    balancer = LoadBalancer(ManualClock())
    for endpoint in endpoints[::2]:
        fail(balancer, endpoint)

    offered = [endpoint.id for endpoint in balancer.candidates(a_model("m", *endpoints), a_meter())]

    assert sorted(offered) == sorted(endpoint.id for endpoint in endpoints if not endpoint.is_draining)


def test_lower_priorities_are_tried_only_after_the_higher_ones(balancer: LoadBalancer) -> None:
    model = a_model("m", an_endpoint("low", priority=1), an_endpoint("a", priority=2), an_endpoint("b", priority=2))

    assert {order(balancer, model) for _ in range(4)} == {"ablow", "balow"}


def test_a_draining_endpoint_is_passed_over_and_the_record_says_so(balancer: LoadBalancer) -> None:
    meter = a_meter()
    model = a_model("m", an_endpoint("a", is_draining=True), an_endpoint("b"))

    offered = [endpoint.id for endpoint in balancer.candidates(model, meter)]

    assert offered == ["b"]
    assert [(c.endpoint_id, c.verdict) for c in meter.candidates] == [("a", "draining"), ("b", "tried")]


def test_when_all_drain_there_is_no_candidate(balancer: LoadBalancer) -> None:
    assert order(balancer, a_model("m", an_endpoint("a", is_draining=True))) == ""


def test_an_endpoint_rests_after_so_many_failures_in_a_row_and_not_before(
    balancer: LoadBalancer, clock: ManualClock
) -> None:
    """T088."""
    fail(balancer, A, FAILURES_TO_REST - 1)
    assert balancer.state_of("a") == "closed"
    balancer.failed(A)

    assert balancer.state_of("a") == "open"
    assert {first(balancer, a_model("m", A, B)) for _ in range(5)} == {"b"}


def test_a_success_in_between_wipes_the_slate(balancer: LoadBalancer) -> None:
    """T088."""
    for _ in range(5):
        fail(balancer, A, FAILURES_TO_REST - 1)
        balancer.succeeded(A)

    assert balancer.state_of("a") == "closed"


async def test_a_rest_ends_by_itself_and_one_more_failure_begins_another(
    balancer: LoadBalancer, clock: ManualClock
) -> None:
    fail(balancer, A)
    await clock.advance(REST_S - 0.001)
    assert balancer.state_of("a") == "open"
    await clock.advance(0.001)
    assert balancer.state_of("a") == "closed"

    balancer.failed(A)

    assert balancer.state_of("a") == "open"


async def test_an_upstream_that_says_when_to_come_back_rests_until_then(
    balancer: LoadBalancer, clock: ManualClock
) -> None:
    balancer.failed(A, retry_after_s=42.0)
    await clock.advance(41.9)
    assert balancer.state_of("a") == "open"
    await clock.advance(0.1)

    assert balancer.state_of("a") == "closed"


async def test_a_short_word_of_the_upstream_does_not_shorten_a_rest(balancer: LoadBalancer, clock: ManualClock) -> None:
    fail(balancer, A)
    balancer.failed(A, retry_after_s=0.1)
    await clock.advance(1)

    assert balancer.state_of("a") == "open"


def test_who_rests_is_tried_last_and_the_record_says_why(balancer: LoadBalancer) -> None:
    fail(balancer, A)
    meter = a_meter()

    offered = [endpoint.id for endpoint in balancer.candidates(a_model("m", A, B), meter)]

    assert offered == ["b", "a"]
    assert [(c.endpoint_id, c.verdict) for c in meter.candidates] == [
        ("a", "resting after failures"),
        ("b", "tried"),
        ("a", "tried"),
    ]


def test_a_model_whose_endpoints_all_rest_is_served_all_the_same(balancer: LoadBalancer) -> None:
    fail(balancer, A)
    fail(balancer, B)

    assert sorted(order(balancer, a_model("m", A, B))) == ["a", "b"]


def test_health_counts_who_is_well_and_who_rests_or_drains(balancer: LoadBalancer) -> None:
    catalog = Catalog.of(1, [a_model("m", A, B), a_model("n", C, an_endpoint("d", is_draining=True))])
    fail(balancer, A)

    assert balancer.healthy(catalog) == (2, 2)


def test_what_is_remembered_of_an_endpoint_that_is_gone_is_dropped(balancer: LoadBalancer) -> None:
    fail(balancer, A)
    fail(balancer, B)

    balancer.forget_all_but(Catalog.of(2, [a_model("m", B)]))

    assert (balancer.state_of("a"), balancer.state_of("b")) == ("closed", "open")


def test_shares_outlive_a_swap_of_the_catalog(balancer: LoadBalancer) -> None:
    model = a_model("m", an_endpoint("a"), an_endpoint("b"))
    assert first(balancer, model) == "a"

    balancer.forget_all_but(Catalog.of(2, [model]))

    assert first(balancer, model) == "b"
