"""Money: exact integers in, exact integers out, and one rounding."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.money import (
    MAX_BUDGET_NANOUSD,
    nano_to_usd,
    pico_to_nano_rounded_up,
    pico_to_usd_per_mtok,
    usd_per_mtok_to_pico,
    usd_to_nano,
    usd_to_pico,
)

AMOUNTS = st.integers(min_value=0, max_value=10**20)


@pytest.mark.parametrize(
    ("usd", "nanousd"),
    [
        ("0", 0),
        ("0.000000001", 1),
        ("0.001234500", 1_234_500),
        ("1", 10**9),
        (1, 10**9),
        (Decimal("4.20"), 4_200_000_000),
        ("1e-9", 1),
        ("1E+3", 10**12),
        ("-0.5", -500_000_000),
    ],
)
def test_an_amount_is_read_exactly(usd: str | int | Decimal, nanousd: int) -> None:
    assert usd_to_nano(usd) == nanousd


@pytest.mark.parametrize(
    ("usd", "picousd"), [("2.50", 2_500_000), ("10", 10_000_000), ("0.075", 75_000), ("0.000001", 1), ("0", 0)]
)
def test_a_price_per_million_tokens_is_read_exactly(usd: str, picousd: int) -> None:
    assert usd_per_mtok_to_pico(usd) == picousd


def test_a_price_per_token_is_read_exactly() -> None:
    assert usd_to_pico("0.0000042") == 4_200_000


@pytest.mark.parametrize(
    "fine",
    [
        "0.0000000001",
        "1.0000000005",
        "1e-10",
        "1e-400",
        "1e-2000000",
        "1." + "0" * 40 + "1",
        "100000000000000000000.0000000001",
    ],
)
def test_an_amount_finer_than_a_nanodollar_is_refused_not_rounded(fine: str) -> None:
    with pytest.raises(ValueError, match="finer than one nanodollar"):
        usd_to_nano(fine)


def test_a_long_amount_is_read_to_its_last_digit() -> None:
    assert usd_to_nano("100000000000000000000.000000001") == 10**29 + 1


@pytest.mark.parametrize("amount", [0.1, 1.0, float("nan"), True, False])
def test_a_float_and_a_truth_value_are_no_money(amount: float) -> None:
    with pytest.raises(ValueError, match="never as a float"):
        usd_to_nano(amount)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "abc",
        "1,5",
        "NaN",
        "sNaN",
        "Infinity",
        "-inf",
        "1e30",
        "0x10",
        "1 2",
        "1_0",
        " 5",
        "5 ",
        "\u0661",
        "\uff11",
        "+",
        ".",
    ],
)
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a decimal number|not an amount"):
        usd_to_nano(text)


@given(AMOUNTS)
def test_an_amount_survives_being_written_and_read(nanousd: int) -> None:
    assert usd_to_nano(nano_to_usd(nanousd)) == nanousd
    assert usd_to_nano(nano_to_usd(-nanousd)) == -nanousd


@given(AMOUNTS)
def test_an_amount_is_written_with_nine_digits_after_the_point(nanousd: int) -> None:
    assert len(nano_to_usd(nanousd).partition(".")[2]) == 9


@given(st.integers(min_value=0, max_value=10**15))
def test_a_price_survives_being_written_and_read(picousd: int) -> None:
    assert usd_per_mtok_to_pico(pico_to_usd_per_mtok(picousd)) == picousd


@pytest.mark.parametrize(
    ("picousd", "usd"), [(0, "0"), (2_500_000, "2.5"), (10_000_000, "10"), (1, "0.000001"), (100_000_000, "100")]
)
def test_a_price_is_written_without_trailing_zeros(picousd: int, usd: str) -> None:
    assert pico_to_usd_per_mtok(picousd) == usd


@given(st.integers(min_value=0, max_value=10**25))
def test_the_one_rounding_goes_up_by_less_than_a_nanodollar(picousd: int) -> None:
    rounded = Fraction(pico_to_nano_rounded_up(picousd))

    assert 0 <= rounded - Fraction(picousd, 1000) < 1


def test_the_largest_budget_is_exact_in_a_double() -> None:
    assert int(float(MAX_BUDGET_NANOUSD)) == MAX_BUDGET_NANOUSD < 2**53
