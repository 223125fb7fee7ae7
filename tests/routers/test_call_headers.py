"""What an answer's headers say of the call: the limit that ends first, the money that is left, the way it took."""

from __future__ import annotations

import re
from datetime import UTC

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.budget import BudgetClaim, BudgetState, PeriodKind, period_at
from app.domain.call import Attempt, Meter
from app.domain.limits import Claim, ClaimState, Limit, LimitKind, Scope
from app.domain.money import NanoUsd
from app.domain.pricing import Cost, Usage
from app.routers.call_headers import call_headers
from tests.calls import NOON, a_budget, a_meter, a_model, an_endpoint


def limit_state(kind: LimitKind, limit: int, remaining: int, reset_ms: int = 1_000) -> ClaimState:
    return ClaimState(Claim(Scope.KEY, "k", Limit(kind, limit, 60), 1), remaining, reset_ms)


def budget_state(
    hard: int | None, spent: int = 0, reserved: int = 0, *, claimed: int = 0, soft: int | None = None
) -> BudgetState:
    budget = a_budget(hard, soft=soft, period=PeriodKind.DAILY)
    claim = BudgetClaim(Scope.KEY, "k", budget, period_at(PeriodKind.DAILY, NOON, UTC), NanoUsd(claimed))
    return BudgetState(claim, NanoUsd(spent), NanoUsd(reserved))


def duration(ms: int) -> bytes:
    return dict(call_headers(a_meter(limits=(limit_state(LimitKind.REQUESTS, 60, 3, ms),))))[
        b"x-ratelimit-reset-requests"
    ]


def shown(meter: Meter) -> dict[str, str]:
    headers = [(name.decode(), value.decode("ascii")) for name, value in call_headers(meter)]
    return dict(headers)


def test_without_limits_and_money_only_the_way_is_told() -> None:
    meter = a_meter(model=a_model("gpt-4"), endpoint=an_endpoint("e-7"))
    meter.attempts = [Attempt("e-1", "openai", 0), Attempt("e-7", "openai", 5)]

    assert shown(meter) == {
        "x-gateway-model": "gpt-4",
        "x-gateway-endpoint": "e-7",
        "x-gateway-attempts": "2",
        "x-litellm-call-id": meter.request_id,
    }


def test_of_several_limits_of_a_kind_the_one_that_ends_first_is_told() -> None:
    headers = shown(
        a_meter(
            limits=(
                limit_state(LimitKind.REQUESTS, 1_000, 900, 60_000),
                limit_state(LimitKind.REQUESTS, 60, 3, 1_250),
                limit_state(LimitKind.TOKENS, 100_000, 42, 500),
                limit_state(LimitKind.CONCURRENCY, 1, 0),
            )
        )
    )

    assert {name: value for name, value in headers.items() if "ratelimit" in name} == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "3",
        "x-ratelimit-reset-requests": "1.25s",
        "x-ratelimit-limit-tokens": "100000",
        "x-ratelimit-remaining-tokens": "42",
        "x-ratelimit-reset-tokens": "500ms",
    }


def test_a_limit_that_was_overdrawn_shows_nothing_left_rather_than_less() -> None:
    assert shown(a_meter(limits=(limit_state(LimitKind.TOKENS, 10, -5),)))["x-ratelimit-remaining-tokens"] == "0"


def test_tokens_that_a_call_did_not_use_are_left_once_it_is_known_what_it_used() -> None:
    state = ClaimState(Claim(Scope.KEY, "k", Limit(LimitKind.TOKENS, 1_000, 60), 400), 500, 1_000)
    running, answered, failed = a_meter(limits=(state,)), a_meter(limits=(state,)), a_meter(limits=(state,))
    answered.usage, answered.cost = Usage(prompt_tokens=10, completion_tokens=5), Cost(NanoUsd(0), ())

    assert shown(running)["x-ratelimit-remaining-tokens"] == "500", "beside what is reserved for it"
    assert shown(answered)["x-ratelimit-remaining-tokens"] == "885"
    assert dict(call_headers(failed, is_over=True))[b"x-ratelimit-remaining-tokens"] == b"900"


def test_a_call_that_failed_gives_back_in_its_headers_too_what_was_reserved_for_it() -> None:
    meter = a_meter(budgets=(budget_state(1_000, spent=100, claimed=600),))
    assert shown(meter)["x-gateway-budget-remaining-usd"] == "0.000000300"
    assert dict(call_headers(meter, is_over=True))[b"x-gateway-budget-remaining-usd"] == b"0.000000900"


def test_a_known_cost_is_told_with_all_nine_digits() -> None:
    headers = shown(a_meter(cost=Cost(NanoUsd(1_234_500))))

    assert headers["x-gateway-cost-usd"] == headers["x-litellm-response-cost"] == "0.001234500"


def test_what_remains_of_the_tightest_budget_is_told_after_this_call() -> None:
    states = (budget_state(10_000), budget_state(5_000, 1_000, 500, claimed=300), budget_state(None, 9_999))

    assert shown(a_meter(budgets=states, cost=Cost(NanoUsd(200))))["x-gateway-budget-remaining-usd"] == "0.000003300"
    assert shown(a_meter(budgets=states))["x-gateway-budget-remaining-usd"] == "0.000003200", (
        "a stream: what it may cost"
    )


def test_a_budget_that_is_used_up_has_nothing_left_rather_than_less() -> None:
    headers = shown(a_meter(budgets=(budget_state(100, 90, 50),), cost=Cost(NanoUsd(70))))

    assert headers["x-gateway-budget-remaining-usd"] == "0.000000000"


@pytest.mark.parametrize(("spent", "cost", "is_warned"), [(900, 100, False), (900, 101, True), (1_001, 0, True)])
def test_past_a_soft_limit_there_is_a_warning(spent: int, cost: int, is_warned: bool) -> None:
    headers = shown(a_meter(budgets=(budget_state(None, spent, soft=1_000),), cost=Cost(NanoUsd(cost))))

    assert ("x-gateway-budget-warning" in headers) is is_warned
    if is_warned:
        assert re.search(r"key.*daily.*0\.000001000", headers["x-gateway-budget-warning"])


@given(st.text(min_size=1, max_size=50))
def test_no_model_name_breaks_or_forges_a_header(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        return
    value = dict(call_headers(a_meter(model=a_model(name))))[b"x-gateway-model"]

    assert value.isascii()
    assert not re.search(rb"[\x00-\x1f\x7f]", value)


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, b"0ms"),
        (850, b"850ms"),
        (999, b"999ms"),
        (1_000, b"1s"),
        (1_250, b"1.25s"),
        (59_999, b"59.999s"),
        (60_000, b"1m0s"),
        (360_000, b"6m0s"),
        (90_500, b"1m30.5s"),
        (86_400_000, b"1440m0s"),
    ],
)
def test_a_duration_is_written_as_openai_writes_it(ms: int, text: bytes) -> None:
    assert duration(ms) == text


@given(st.integers(min_value=0, max_value=10**10))
def test_a_duration_can_be_read_back_exactly(ms: int) -> None:
    text = duration(ms).decode()
    found = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)(?:\.(\d{1,3}))?s)?|(\d+)ms", text)

    assert found is not None
    minutes, seconds, fraction, only_ms = found.groups(default="0")
    assert int(minutes) * 60_000 + int(seconds) * 1_000 + int(fraction.ljust(3, "0")) + int(only_ms) == ms
