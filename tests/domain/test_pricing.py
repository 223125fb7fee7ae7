"""Costs: hand-computed vectors, and what holds for every usage and every price."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from app.domain.money import PicoUsd, nano_to_usd, pico_to_nano_rounded_up, usd_per_mtok_to_pico, usd_to_pico
from app.domain.pricing import Price, Rates, Tier, Usage, affordable_completion_tokens, cost_of, worst_case


def per_mtok(usd: str) -> PicoUsd:
    return usd_per_mtok_to_pico(usd)


PLAIN = Price("plain", Rates(per_mtok("2.50"), per_mtok("10")))
CACHED = Price("cached", Rates(per_mtok("2.50"), per_mtok("10"), cached_input=per_mtok("1.25")))
CLAUDE = Price(
    "claude",
    Rates(
        per_mtok("3"),
        per_mtok("15"),
        cached_input=per_mtok("0.30"),
        cache_write_5m=per_mtok("3.75"),
        cache_write_1h=per_mtok("6"),
    ),
)
THINKING = Price("thinking", Rates(per_mtok("1"), per_mtok("4"), reasoning=per_mtok("6")))
AUDIO = Price("audio", Rates(per_mtok("2.50"), per_mtok("10"), audio_input=per_mtok("40"), audio_output=per_mtok("80")))
TIERED = Price(
    "tiered",
    Rates(per_mtok("1.25"), per_mtok("10")),
    tiers=(
        Tier(200_000, Rates(per_mtok("2.50"), per_mtok("15"))),
        Tier(272_000, Rates(per_mtok("5"), per_mtok("30"), cached_input=per_mtok("0.50"))),
    ),
)
PER_CALL = Price(
    "per call",
    Rates(per_mtok("1"), per_mtok("2")),
    request=usd_to_pico("0.005"),
    image=usd_to_pico("0.04"),
)
FREE = Price("free", Rates(PicoUsd(0), PicoUsd(0)))

VECTORS = [
    # what, price, usage, nanodollars by hand
    ("nothing", PLAIN, Usage(), 0),
    ("one token in", PLAIN, Usage(1, 0), 2_500),
    ("one token out", PLAIN, Usage(0, 1), 10_000),
    ("in and out", PLAIN, Usage(123, 45), 757_500),  # 307,500 + 450,000
    ("a million each", PLAIN, Usage(10**6, 10**6), 12_500_000_000),
    ("cached without a rate costs input", PLAIN, Usage(1_000, 0, cached_tokens=400), 2_500_000),
    ("cached at its rate", CACHED, Usage(1_000, 0, cached_tokens=400), 2_000_000),  # 1,500,000 + 500,000
    ("all of it cached", CACHED, Usage(1_000, 0, cached_tokens=1_000), 1_250_000),
    ("more cached than there was", CACHED, Usage(1_000, 0, cached_tokens=9_999), 1_250_000),
    ("negative cached", CACHED, Usage(1_000, 0, cached_tokens=-5), 2_500_000),
    ("cache read", CLAUDE, Usage(2_000, 100, cached_tokens=1_500), 3_450_000),  # 1,500,000 + 450,000 + 1,500,000
    ("cache write, 5 minutes", CLAUDE, Usage(2_000, 0, cache_write_5m_tokens=1_000), 6_750_000),
    ("cache write, 1 hour", CLAUDE, Usage(2_000, 0, cache_write_1h_tokens=1_000), 9_000_000),
    (
        "every kind of cache at once",
        CLAUDE,
        Usage(4_000, 10, cached_tokens=1_000, cache_write_5m_tokens=1_000, cache_write_1h_tokens=1_000),
        13_200_000,  # 300,000 + 3,750,000 + 6,000,000 + 3,000,000 + 150,000
    ),
    (
        "parts that overlap are paid once",
        CLAUDE,
        Usage(1_000, 0, cached_tokens=800, cache_write_5m_tokens=800),
        990_000,  # 800 at 300 and the 200 that are left at 3,750
    ),
    ("reasoning is part of the output", THINKING, Usage(100, 500, reasoning_tokens=200), 2_500_000),
    ("reasoning without a rate costs output", PLAIN, Usage(0, 500, reasoning_tokens=500), 5_000_000),
    ("more reasoning than output", THINKING, Usage(0, 10, reasoning_tokens=999), 60_000),
    ("audio in", AUDIO, Usage(100, 0, audio_input_tokens=60), 2_500_000),  # 60 × 40,000 + 40 × 2,500
    ("audio out", AUDIO, Usage(0, 100, audio_output_tokens=50), 4_500_000),  # 50 × 80,000 + 50 × 10,000
    ("audio both ways", AUDIO, Usage(10, 10, audio_input_tokens=10, audio_output_tokens=10), 1_200_000),
    ("at the edge of a tier", TIERED, Usage(200_000, 100), 251_000_000),
    ("one token above the first tier", TIERED, Usage(200_001, 100), 501_502_500),
    ("at the edge of the second tier", TIERED, Usage(272_000, 0), 680_000_000),
    ("above the second tier", TIERED, Usage(272_001, 0), 1_360_005_000),
    ("a tier's own cached rate", TIERED, Usage(300_000, 0, cached_tokens=100_000), 1_050_000_000),
    ("a tier without a cached rate", TIERED, Usage(250_000, 0, cached_tokens=100_000), 625_000_000),
    ("a call's own price, without tokens", PER_CALL, Usage(), 5_000_000),
    ("a call's own price and tokens", PER_CALL, Usage(1_000, 1_000), 8_000_000),
    ("two images", PER_CALL, Usage(images=2), 85_000_000),
    ("negative images", PER_CALL, Usage(images=-2), 5_000_000),
    ("a negative prompt", PLAIN, Usage(-100, 10), 100_000),
    ("a negative completion", PLAIN, Usage(10, -100), 25_000),
    ("free", FREE, Usage(10**6, 10**6, images=5), 0),
]


@pytest.mark.parametrize(("price", "usage", "nanousd"), [v[1:] for v in VECTORS], ids=[v[0] for v in VECTORS])
def test_a_usage_costs_what_the_pencil_says(price: Price, usage: Usage, nanousd: int) -> None:
    """T121, T122."""
    assert cost_of(usage, price).nanousd == nanousd


def test_the_rounding_happens_once_per_call_and_up() -> None:
    price = Price("fine", Rates(PicoUsd(1), PicoUsd(1), reasoning=PicoUsd(1)), request=PicoUsd(1))

    assert cost_of(Usage(1, 2, reasoning_tokens=1), price).nanousd == 1
    assert cost_of(Usage(999, 0), price).nanousd == 1
    assert cost_of(Usage(1_000, 0), price).nanousd == 2


def test_a_million_calls_at_4_2_microdollars_are_exactly_4_dollars_20() -> None:
    """T124."""
    price = Price("p", Rates(usd_to_pico("0.0000042"), PicoUsd(0)))
    one = cost_of(Usage(prompt_tokens=1), price).nanousd

    assert nano_to_usd(sum(one for _ in range(10**6))) == "4.200000000"


KINDS = (
    *("cached_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens"),
    *("reasoning_tokens", "audio_input_tokens", "audio_output_tokens"),
)
RATES = st.integers(min_value=0, max_value=10**9).map(PicoUsd)
MAYBE_RATES = st.none() | RATES
TOKENS = st.integers(min_value=0, max_value=2_000_000)
OWN_RATES = ("cached_input", "cache_write_5m", "cache_write_1h", "reasoning", "audio_input", "audio_output")
A_RATE_CARD = st.builds(Rates, input=RATES, output=RATES, **dict.fromkeys(OWN_RATES, MAYBE_RATES))


@st.composite
def prices(draw: st.DrawFn) -> Price:
    edges = sorted(draw(st.sets(st.integers(min_value=1, max_value=1_000_000), max_size=3)))
    tiers = tuple(Tier(edge, draw(A_RATE_CARD)) for edge in edges)
    return Price("p", draw(A_RATE_CARD), tiers, request=draw(RATES), image=draw(RATES))


@st.composite
def usages(
    draw: st.DrawFn, most_prompt: int = 2_000_000, most_completion: int = 2_000_000, most_images: int = 20
) -> Usage:
    """Anything a provider may say, contradictions included: parts larger than their whole, and negative ones."""
    part = st.integers(min_value=-10, max_value=2_500_000)
    usage = Usage(
        draw(st.integers(min_value=0, max_value=most_prompt)),
        draw(st.integers(min_value=0, max_value=most_completion)),
        images=draw(st.integers(min_value=0, max_value=most_images)),
    )
    parts: dict[str, Any] = {kind: draw(part) for kind in KINDS}
    return replace(usage, **parts)


@given(usages(), prices())
def test_the_lines_of_the_arithmetic_add_up_to_the_cost(usage: Usage, price: Price) -> None:
    cost = cost_of(usage, price)

    assert cost.nanousd == pico_to_nano_rounded_up(sum(line.quantity * line.unit_pico for line in cost.lines))
    assert all(line.quantity > 0 and line.unit_pico > 0 for line in cost.lines)


@given(usages())
def test_no_token_is_paid_twice_and_none_is_forgotten(usage: Usage) -> None:
    one = PicoUsd(1_000)
    price = Price("p", Rates(input=one, output=one, **dict.fromkeys(OWN_RATES, one)))

    assert cost_of(usage, price).nanousd == usage.prompt_tokens + usage.completion_tokens


@given(prices(), TOKENS, TOKENS, st.integers(min_value=0, max_value=20), st.data())
def test_no_usage_within_the_estimate_costs_more_than_the_worst_case(
    price: Price, prompt_tokens: int, completion_tokens: int, images: int, data: st.DataObject
) -> None:
    usage = data.draw(usages(prompt_tokens, completion_tokens, images))

    worst = worst_case(price, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, images=images)

    assert 0 <= cost_of(usage, price).nanousd <= worst


@given(st.integers(min_value=0, max_value=300_000), TOKENS)
def test_the_worst_case_of_a_plain_price_is_what_using_all_of_it_costs(
    prompt_tokens: int, completion_tokens: int
) -> None:
    worst = worst_case(TIERED, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)

    assert worst == cost_of(Usage(prompt_tokens, completion_tokens), TIERED).nanousd


def test_the_worst_case_uses_the_dearest_kind_of_the_tier_that_can_apply() -> None:
    assert worst_case(CLAUDE, prompt_tokens=1_000, completion_tokens=0) == 6_000_000
    assert worst_case(AUDIO, prompt_tokens=0, completion_tokens=10) == 800_000
    assert worst_case(TIERED, prompt_tokens=200_000, completion_tokens=0) == 250_000_000
    assert worst_case(TIERED, prompt_tokens=200_001, completion_tokens=0) == 500_002_500


@given(prices(), TOKENS, st.integers(min_value=0, max_value=10**13))
def test_what_is_called_affordable_is_and_one_token_more_is_not(
    price: Price, prompt_tokens: int, budget_nanousd: int
) -> None:
    def cost(completion_tokens: int) -> int:
        return worst_case(price, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)

    most = affordable_completion_tokens(price, prompt_tokens=prompt_tokens, budget_nanousd=budget_nanousd)

    if cost(0) > budget_nanousd:
        assert most == 0
    else:
        assert cost(most) <= budget_nanousd
        assert cost(most + 1) > budget_nanousd or cost(1) == cost(0)


def test_a_budget_that_pays_exactly_for_the_prompt_pays_for_output_that_is_free() -> None:
    price = Price("p", Rates(PicoUsd(1_000), PicoUsd(0)))

    assert affordable_completion_tokens(price, prompt_tokens=5, budget_nanousd=5) > 10**6
    assert affordable_completion_tokens(price, prompt_tokens=5, budget_nanousd=4) == 0


def test_an_answer_is_affordable_to_the_last_picodollar() -> None:
    price = Price("p", Rates(PicoUsd(500), PicoUsd(400)))

    assert affordable_completion_tokens(price, prompt_tokens=1, budget_nanousd=1) == 1
