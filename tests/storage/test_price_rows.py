"""Prices in their column: whatever the domain can say is read back as it was written."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from app.domain.money import PicoUsd
from app.domain.pricing import Price, Rates, ServiceTier, Tier
from app.storage.sql_rows import price_of, rates_value

A_RATE = st.integers(0, 10**15).map(PicoUsd)
RATES = st.builds(Rates, A_RATE, A_RATE, *(st.none() | A_RATE for _ in range(9)))
TIERS = st.lists(
    st.builds(Tier, st.integers(1, 10**7), RATES), max_size=3, unique_by=lambda tier: tier.above_prompt_tokens
)
RISING = TIERS.map(lambda tiers: tuple(sorted(tiers, key=lambda tier: tier.above_prompt_tokens)))
PRICES = st.builds(
    Price,
    st.just("p"),
    RATES,
    RISING,
    request=A_RATE,
    image=A_RATE,
    service_tiers=st.lists(st.builds(ServiceTier, st.text(min_size=1, max_size=9), RATES, RISING), max_size=3).map(
        tuple
    ),
)


@given(PRICES)
def test_a_price_reads_back_as_it_was_written(price: Price) -> None:
    assert price_of("p", json.loads(json.dumps(rates_value(price)))) == price


def test_a_price_written_before_there_were_service_tiers_is_read() -> None:
    assert price_of("p", {"input": 1, "output": 2}) == Price("p", Rates(PicoUsd(1), PicoUsd(2)))
