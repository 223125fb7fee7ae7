"""Prices in forms: the model's own, or none (then the price map's, or the model's, hold)."""

from __future__ import annotations

import json
from typing import Any, Final

from app.admin.forms import Form, amount_in
from app.admin.looks import pretty
from app.domain.pricing import Price
from app.models.schemas import PriceView, RatesShape

RATES: Final = tuple(RatesShape.model_fields)
EACH: Final = ("request_usd", "image_usd")
LISTS: Final = ("tiers", "service_tiers")
FREE: Final = {"input_usd_per_mtok": "0", "output_usd_per_mtok": "0"}


def price_fields(price: Price | None) -> dict[str, Any]:
    """The fields of a price as a form shows them, under `price.…`."""
    view = PriceView.of(price)
    if view is None:
        return {"price_policy": "none", **dict.fromkeys((f"price.{name}" for name in (*RATES, *EACH, *LISTS)), "")}
    shown = view.model_dump(exclude_none=True)
    texts = {f"price.{name}": shown.get(name, "") for name in RATES}
    texts |= {f"price.{name}": "" if shown[name] in ("0", "") else shown[name] for name in EACH}
    texts |= {f"price.{name}": pretty(shown[name]) if shown[name] else "" for name in LISTS}
    return {"price_policy": "own", **texts}


def price_typed(form: Form) -> dict[str, Any]:
    names = (f"price.{name}" for name in (*RATES, *EACH, *LISTS))
    return {"price_policy": form.text("price_policy") or "none", **{name: form.text(name) for name in names}}


def price_in(form: Form) -> dict[str, object] | None:
    """The price as the admin API takes it."""
    match form.text("price_policy"):
        case "own":
            given = {name: amount_in(form.text(f"price.{name}")) for name in (*RATES, *EACH)}
            price: dict[str, object] = {name: value for name, value in given.items() if value is not None}
            for name in LISTS:
                if text := form.text(f"price.{name}"):
                    price[name] = _read(text)
            return price
        case "free":
            return dict(FREE)
        case _:
            return None


def _read(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text  # no list, says the model, at this field
