"""Money on the wire: decimal strings in USD. A JSON number with a fraction is a float by the time it is read, so it is refused."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from app.domain.money import NanoUsd, PicoUsd, nano_to_usd, usd_per_mtok_to_pico, usd_to_nano, usd_to_pico

MAX_PRICE_USD = 1_000_000
"""Per million tokens, per request or per image: far above any price, and every cost stays a 64-bit integer."""


def _decimal_text(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError('money is written as a decimal string such as "0.10", never as a JSON number with a fraction')
    if len(str(value)) > 40:
        raise ValueError("this is not an amount of money")
    return value


def _amount(value: Any) -> NanoUsd:
    return usd_to_nano(_decimal_text(value))


def _price_per_mtok(value: Any) -> PicoUsd:
    price = usd_per_mtok_to_pico(_decimal_text(value))
    if not 0 <= price <= MAX_PRICE_USD * 10**6:
        raise ValueError(f"a price is between 0 and {MAX_PRICE_USD} USD")
    return price


def _price_each(value: Any) -> PicoUsd:
    price = usd_to_pico(_decimal_text(value))
    if not 0 <= price <= MAX_PRICE_USD * 10**12:
        raise ValueError(f"a price is between 0 and {MAX_PRICE_USD} USD")
    return price


def _schema(example: str, unit: str) -> WithJsonSchema:
    pattern = r"^[0-9]+(\.[0-9]+)?$"
    return WithJsonSchema({"type": "string", "pattern": pattern, "examples": [example], "description": unit})


Usd = Annotated[NanoUsd, BeforeValidator(_amount), _schema("10", "USD, as a decimal string")]
"""An amount, read into nanodollars."""
UsdPerMtok = Annotated[
    PicoUsd, BeforeValidator(_price_per_mtok), _schema("2.50", "USD per million tokens, as a decimal string")
]
UsdEach = Annotated[PicoUsd, BeforeValidator(_price_each), _schema("0.002", "USD each, as a decimal string")]


def amount_text(amount: int) -> str:
    """An amount as an administrator writes it: without the zeros that say nothing ("10", "0.5")."""
    return nano_to_usd(amount).rstrip("0").rstrip(".")


def each_text(price: int) -> str:
    whole, fraction = divmod(price, 10**12)
    return f"{whole}.{fraction:012d}".rstrip("0").rstrip(".")
