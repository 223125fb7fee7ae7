"""T122: what is reserved for a call covers every service tier that it may be served in, and no other."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.money import PicoUsd
from app.domain.pricing import Price, Rates, ServiceTier, Tier, Usage, cost_of, dearest, worst_case
from app.domain.service_tiers import asked_tiers


def rates(unit: int) -> Rates:
    return Rates(PicoUsd(unit * 1_000), PicoUsd(unit * 4_000))


PRICE = Price(
    "p",
    rates(10),
    tiers=(Tier(1_000, rates(15)),),
    service_tiers=(
        ServiceTier("priority", rates(20), (Tier(1_000, rates(40)),)),
        ServiceTier("flex", rates(5)),
        ServiceTier("ultrafast", rates(60)),
    ),
)


@pytest.mark.parametrize(
    ("asked", "prompt_tokens", "unit"),
    [
        ((), 100, 20),  # the provider's own setting may say priority
        (("auto",), 100, 20),
        (("auto",), 1_001, 40),
        (("default",), 100, 10),
        (("default",), 1_001, 15),
        (("standard_only",), 100, 10),
        (("flex",), 100, 10),  # may be served as the default when there is no room
        (("priority",), 100, 20),
        (("ultrafast",), 100, 60),
        (("a word nobody knows",), 100, 20),
    ],
)
def test_the_dearest_tier_that_can_apply_is_reserved(asked: tuple[str, ...], prompt_tokens: int, unit: int) -> None:
    _, per_token = dearest(PRICE, prompt_tokens=prompt_tokens, asked_tiers=asked)
    assert per_token == unit * 4_000
    worst = worst_case(PRICE, prompt_tokens=prompt_tokens, completion_tokens=0, asked_tiers=asked)
    assert worst == prompt_tokens * unit


@given(
    st.sampled_from([(), ("auto",), ("priority",), ("flex",), ("default",), ("ultrafast",)]),
    st.integers(0, 3_000),
    st.integers(0, 3_000),
)
def test_no_tier_that_may_apply_costs_more_than_was_reserved(
    asked: tuple[str, ...], prompt: int, completion: int
) -> None:
    worst = worst_case(PRICE, prompt_tokens=prompt, completion_tokens=completion, asked_tiers=asked)
    for served in (None, "default", *asked, *(() if "default" in asked or "flex" in asked else ("priority",))):
        assert cost_of(Usage(prompt, completion, service_tier=served), PRICE).nanousd <= worst


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({}, set()),
        ({"service_tier": b'"Priority"'}, {"priority"}),
        ({"service_tier": b"null"}, set()),
        ({"service_tier": b"7"}, set()),
        ({"service_tier": b'"auto"', "speed": b'"fast"', "inference_geo": b'"us"'}, {"auto", "fast", "us"}),
        ({"model": b'"priority"'}, set()),
    ],
)
def test_what_a_request_asks_for_is_read_from_its_own_members(fields: dict[str, bytes], asked: set[str]) -> None:
    assert asked_tiers({name: msgspec.Raw(value) for name, value in fields.items()}) == asked
