"""Money: integers only, in two units.

Amounts are nanodollars (10⁻⁹ USD), prices are picodollars (10⁻¹² USD) per token, which holds every list price exactly:
2.50 USD per million tokens is 2,500,000 picodollars per token. Floats are refused, not rounded.
"""

from __future__ import annotations

import re
from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import NewType

NanoUsd = NewType("NanoUsd", int)
"""An amount of money in 10⁻⁹ USD."""

PicoUsd = NewType("PicoUsd", int)
"""A unit price in 10⁻¹² USD per token (or per request, image …)."""

NANO_PER_USD = 10**9
PICO_PER_NANO = 10**3

MAX_BUDGET_NANOUSD = NanoUsd(9_000_000 * NANO_PER_USD)
"""Lua's numbers are exact up to 2⁵³; nine million dollars in nanodollars stay below it."""


_EXACT = Context(prec=40, traps=[Inexact, InvalidOperation])
"""Holds the largest amount that is read to its last picodollar, and refuses where the default context would round in silence."""


_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
"""Decimal would read spaces, underscores and the digits of every script as well."""


def usd_to_nano(usd: str | int | Decimal) -> NanoUsd:
    """Parse an amount in USD, exactly. Raises ValueError for floats, fractions of a nanodollar, NaN and infinities."""
    return NanoUsd(_scaled(usd, 9, "nanodollar"))


def usd_per_mtok_to_pico(usd: str | int | Decimal) -> PicoUsd:
    """Parse a price in USD per million tokens. Raises ValueError when it is finer than a picodollar per token."""
    return PicoUsd(_scaled(usd, 6, "picodollar per token"))


def usd_to_pico(usd: str | int | Decimal) -> PicoUsd:
    """Parse a unit price in USD (per token, request or image)."""
    return PicoUsd(_scaled(usd, 12, "picodollar"))


def nano_to_usd(amount: int) -> str:
    """Format as a decimal string with all nine digits: 1_234_500 → "0.001234500"."""
    sign = "-" if amount < 0 else ""
    whole, fraction = divmod(abs(amount), NANO_PER_USD)
    return f"{sign}{whole}.{fraction:09d}"


def pico_to_usd_per_mtok(price: int) -> str:
    """Format a price per token as USD per million tokens, without trailing zeros: 2_500_000 → "2.5"."""
    whole, fraction = divmod(price, 10**6)
    return f"{whole}.{fraction:06d}".rstrip("0").rstrip(".")


def pico_to_nano_rounded_up(pico: int) -> NanoUsd:
    """The one rounding there is: up to a nanodollar, once per attempt."""
    return NanoUsd(-(-pico // PICO_PER_NANO))


def _scaled(value: str | int | Decimal, exponent: int, unit: str) -> int:
    if isinstance(value, float | bool):
        raise ValueError("money is written as a decimal string, never as a float")
    if isinstance(value, str) and not _DECIMAL.fullmatch(value):
        raise ValueError(f"{value[:40]!r} is not a decimal number")
    try:
        number = Decimal(value)
    except InvalidOperation:
        raise ValueError(f"{str(value)[:40]!r} is not a decimal number") from None
    if not number.is_finite() or number.adjusted() > 20:
        raise ValueError(f"{str(value)[:40]!r} is not an amount of money")
    try:
        scaled = number.scaleb(exponent, _EXACT).to_integral_exact(context=_EXACT)
    except Inexact:
        raise ValueError(f"{str(value)[:40]!r} is finer than one {unit}") from None
    return int(scaled)
