"""T086: figures of a provider that cannot be true are not believed, and those that may be are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.belief import believable, disbelief
from app.domain.call import Estimate
from app.domain.pricing import Usage
from app.services import budget
from tests import calls

ESTIMATE = Estimate(400, 200, prompt_bound=2_000)


@pytest.mark.parametrize(
    "usage",
    [
        Usage(-1, 5),
        Usage(5, -1),
        Usage(5, 5, cached_tokens=-1),
        Usage(5, 5, reasoning_tokens=-1),
        Usage(20_001, 5),  # ten times what bytes can hold
        Usage(5, 2_001),  # ten times what was asked for
        Usage(10**12, 10**12),
    ],
)
def test_what_cannot_be_true_is_not_believed(usage: Usage) -> None:
    assert believable(usage, ESTIMATE, None) is None
    assert str(usage.prompt_tokens) in disbelief(usage)


@pytest.mark.parametrize("usage", [Usage(), Usage(20_000, 2_000), Usage(1, 1, cached_tokens=5)])
def test_what_may_be_true_is_believed_as_it_stands(usage: Usage) -> None:
    assert believable(usage, ESTIMATE, 128_000) is usage


def test_more_than_ten_times_what_the_model_can_hold_is_not_believed_of_any_call() -> None:
    assert believable(Usage(79_999, 1), None, 8_000) is not None
    assert believable(Usage(80_000, 1), None, 8_000) is None


def test_a_short_prompt_may_have_a_providers_instructions_before_it() -> None:
    assert believable(Usage(10_000, 1), Estimate(1, 1), None) is not None
    assert believable(Usage(10_001, 1), Estimate(1, 1), None) is None


@given(st.integers(0, 50_000), st.integers(0, 50_000), st.integers(0, 50_000), st.integers(0, 50_000))
def test_what_stays_within_the_estimate_is_always_believed(prompt: int, completion: int, more: int, most: int) -> None:
    usage = Usage(prompt, completion)
    assert believable(usage, Estimate(prompt + more, completion + most), None) is usage


def test_a_call_whose_usage_is_not_believed_is_billed_by_what_was_seen_and_says_so() -> None:
    model = calls.a_model(price=calls.PRICE)
    meter = calls.a_meter(
        model=model,
        endpoint=model.endpoints[0],
        estimate=calls.an_estimate(100, 50),
        usage=Usage(10**9, 7),
        delivered_tokens=12,
    )

    budget.bill(meter)

    assert meter.usage == Usage(prompt_tokens=100, completion_tokens=12)
    assert meter.quality == "estimated"
    assert meter.cost_nanousd == 100 * 2 + 12 * 8
    assert len(meter.warnings) == 1
    assert "1000000000" in meter.warnings[0]


def test_nothing_at_all_is_not_believed_of_an_answer_that_came() -> None:
    assert believable(Usage(), ESTIMATE, None, delivered_tokens=1) is None
    assert believable(Usage(), ESTIMATE, None, delivered_tokens=0) is not None, "a filter took all of it, say"
    assert believable(Usage(0, 1), ESTIMATE, None, delivered_tokens=1) is not None, "a prompt out of a cache"
    assert believable(Usage(images=1), ESTIMATE, None, delivered_tokens=1) is not None


def test_an_answer_whose_provider_counts_nothing_is_not_for_free() -> None:
    model = calls.a_model(price=calls.PRICE)
    meter = calls.a_meter(
        model=model,
        endpoint=model.endpoints[0],
        estimate=calls.an_estimate(100, 50),
        usage=Usage(),
        delivered_tokens=12,
    )

    budget.bill(meter)

    assert (meter.usage, meter.quality) == (Usage(prompt_tokens=100, completion_tokens=12), "estimated")
