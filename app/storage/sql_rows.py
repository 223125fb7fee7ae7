"""Between rows and the domain: limits, budgets, prices and the small JSON shapes that stand in columns.

Every shape has both directions here, so that whoever writes a row and whoever reads it cannot disagree. Field names
inside JSON are the API's (`window_seconds`), money is integers (nanodollars, picodollars).
"""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import ColumnElement, Row, Text, cast, func, literal_column, select
from sqlalchemy.dialects.postgresql import aggregate_order_by

from app.domain.breaker import BreakerRules
from app.domain.budget import Budget, PeriodKind, ReserveMode
from app.domain.catalog import HealthCheck, HealthCheckKind, Shadow, Timeouts
from app.domain.identity import Network, Overflow, OverflowMode
from app.domain.limits import Limit, LimitKind, Scope
from app.domain.money import NanoUsd, PicoUsd
from app.domain.pricing import Price, Rates, ServiceTier, Tier
from app.models.tables import budgets, limits

AnyRow = Row[*tuple[Any, ...]]
"""What a statement gives; the function that takes it knows its columns."""

HOLDER_COLUMN = {Scope.KEY: "key_id", Scope.USER: "user_oid", Scope.APP: "app_id", Scope.MODEL: "model"}
"""Whose limit or budget a row is: the one of these columns that is not null."""


# ── Limits and budgets ────────────────────────────────────────────────────────────────────────────────────────────────


class LimitRow(msgspec.Struct, frozen=True):
    kind: LimitKind
    limit: int
    window_seconds: int


class BudgetRow(msgspec.Struct, frozen=True):
    period: PeriodKind
    soft_limit_nanousd: int | None
    hard_limit_nanousd: int | None
    reserve: ReserveMode
    opened_ms: int = 0


_limit_rows = msgspec.json.Decoder(list[LimitRow])
_budget_rows = msgspec.json.Decoder(list[BudgetRow])


def limit_of(row: LimitRow) -> Limit:
    return Limit(row.kind, row.limit, row.window_seconds)


def budget_of(row: BudgetRow) -> Budget:
    soft, hard = _nano(row.soft_limit_nanousd), _nano(row.hard_limit_nanousd)
    return Budget(row.period, soft, hard, row.reserve, row.opened_ms)


def limits_from_json(text: str) -> tuple[Limit, ...]:
    """The limits in a column that `limits_json` selected."""
    return tuple(limit_of(row) for row in _limit_rows.decode(text))


def budgets_from_json(text: str) -> tuple[Budget, ...]:
    """The budgets in a column that `budgets_json` selected."""
    return tuple(budget_of(row) for row in _budget_rows.decode(text))


def limits_json(of_holder: ColumnElement[bool]) -> ColumnElement[str]:
    """A column: the limits for which `of_holder` holds, as JSON text in the order they were written."""
    row = func.json_build_object(
        *("kind", limits.c.kind, "limit", limits.c.limit, "window_seconds", limits.c.window_seconds)
    )
    return _aggregated(row, limits.c.id, of_holder)


def budgets_json(of_holder: ColumnElement[bool]) -> ColumnElement[str]:
    """A column: the budgets for which `of_holder` holds, as JSON text in the order they were written."""
    row = func.json_build_object(
        *("period", budgets.c.period, "reserve", budgets.c.reserve),
        *("soft_limit_nanousd", budgets.c.soft_limit_nanousd),
        *("hard_limit_nanousd", budgets.c.hard_limit_nanousd),
        *("opened_ms", budgets.c.opened_ms),
    )
    return _aggregated(row, budgets.c.id, of_holder)


def limit_values(scope: Scope, holder_id: str, limit: Limit) -> dict[str, object]:
    """Values for an insert into `limits`."""
    return {
        HOLDER_COLUMN[scope]: holder_id,
        "kind": limit.kind.value,
        "limit": limit.limit,
        "window_seconds": limit.window_s,
    }


def budget_values(scope: Scope, holder_id: str, budget: Budget) -> dict[str, object]:
    """Values for an insert into `budgets`."""
    return {
        HOLDER_COLUMN[scope]: holder_id,
        "period": budget.period.value,
        "soft_limit_nanousd": budget.soft_limit_nanousd,
        "hard_limit_nanousd": budget.hard_limit_nanousd,
        "reserve": budget.reserve.value,
    }


def _aggregated(
    row: ColumnElement[object], order: ColumnElement[int], holder: ColumnElement[bool]
) -> ColumnElement[str]:
    rows = func.coalesce(func.json_agg(aggregate_order_by(row, order)), literal_column("'[]'::json"))
    return select(cast(rows, Text)).where(holder).scalar_subquery()


def _nano(amount: int | None) -> NanoUsd | None:
    return None if amount is None else NanoUsd(amount)


# ── Prices ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class RatesShape(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Unit prices in picodollars; what is absent costs what its family costs."""

    input: int
    output: int
    cached_input: int | None = None
    cache_write_5m: int | None = None
    cache_write_1h: int | None = None
    reasoning: int | None = None
    audio_input: int | None = None
    audio_output: int | None = None
    cached_audio_input: int | None = None
    image_input: int | None = None
    image_output: int | None = None


class TierShape(RatesShape, frozen=True, omit_defaults=True, kw_only=True):
    above_prompt_tokens: int


class ServiceTierShape(RatesShape, frozen=True, omit_defaults=True, kw_only=True):
    name: str
    tiers: tuple[TierShape, ...] = ()


class PriceShape(RatesShape, frozen=True, omit_defaults=True, kw_only=True):
    """`prices.rates`."""

    request: int = 0
    image: int = 0
    tiers: tuple[TierShape, ...] = ()
    service_tiers: tuple[ServiceTierShape, ...] = ()


def price_of(price_id: str, rates: object) -> Price:
    """The price in a `prices` row whose `rates` is not null. Raises: msgspec.ValidationError for another shape."""
    shape = msgspec.convert(rates, PriceShape)
    return Price(
        id=price_id,
        rates=_rates(shape),
        tiers=_tiers(shape.tiers),
        request=PicoUsd(shape.request),
        image=PicoUsd(shape.image),
        service_tiers=tuple(ServiceTier(each.name, _rates(each), _tiers(each.tiers)) for each in shape.service_tiers),
    )


def rates_value(price: Price) -> dict[str, object]:
    """The value for `prices.rates`; `price_of` reads it back."""
    shape = PriceShape(
        **_units(price.rates),
        request=price.request,
        image=price.image,
        tiers=_tier_shapes(price.tiers),
        service_tiers=tuple(
            ServiceTierShape(name=each.name, **_units(each.rates), tiers=_tier_shapes(each.tiers))
            for each in price.service_tiers
        ),
    )
    value: dict[str, object] = msgspec.to_builtins(shape)
    return value


def _tiers(shapes: tuple[TierShape, ...]) -> tuple[Tier, ...]:
    ordered = sorted(shapes, key=lambda tier: tier.above_prompt_tokens)
    return tuple(Tier(tier.above_prompt_tokens, _rates(tier)) for tier in ordered)


def _tier_shapes(tiers: tuple[Tier, ...]) -> tuple[TierShape, ...]:
    return tuple(TierShape(above_prompt_tokens=tier.above_prompt_tokens, **_units(tier.rates)) for tier in tiers)


_UNITS = RatesShape.__struct_fields__


def _rates(shape: RatesShape) -> Rates:
    return Rates(**{unit: getattr(shape, unit) for unit in _UNITS})


def _units(rates: Rates) -> dict[str, int]:
    return {unit: getattr(rates, unit) for unit in _UNITS}


# ── Small shapes in JSON columns ──────────────────────────────────────────────────────────────────────────────────────


class OverflowShape(msgspec.Struct, frozen=True):
    """`keys.overflow`."""

    mode: OverflowMode = OverflowMode.REJECT
    max_wait_seconds: float = 10.0
    fallback_model: str | None = None


class TimeoutsShape(msgspec.Struct, frozen=True):
    """`endpoints.timeouts`."""

    connect_seconds: float = 5.0
    first_token_seconds: float = 60.0
    between_tokens_seconds: float = 30.0
    total_seconds: float = 600.0
    unary_seconds: float = 600.0


class HealthCheckShape(msgspec.Struct, frozen=True):
    """`endpoints.health_check`."""

    kind: HealthCheckKind = HealthCheckKind.MODELS
    interval_seconds: float = 30.0


class BreakerShape(msgspec.Struct, frozen=True):
    """`endpoints.breaker`."""

    faults_in_row: int = 5
    fault_percent: int = 50
    minimum_calls: int = 20
    window_seconds: float = 30.0
    slow_first_token_seconds: float | None = None
    open_seconds: float = 2.0
    max_open_seconds: float = 10.0


class ShadowShape(msgspec.Struct, frozen=True):
    """`models.shadow`."""

    model: str
    percent: float


def breaker_of(value: object) -> BreakerRules:
    shape = msgspec.convert(value, BreakerShape)
    return BreakerRules(
        faults_in_row=shape.faults_in_row,
        fault_percent=shape.fault_percent,
        minimum_calls=shape.minimum_calls,
        window_s=shape.window_seconds,
        slow_first_token_s=shape.slow_first_token_seconds,
        open_s=shape.open_seconds,
        max_open_s=shape.max_open_seconds,
    )


def breaker_value(rules: BreakerRules) -> dict[str, object]:
    value: dict[str, object] = msgspec.to_builtins(
        BreakerShape(
            rules.faults_in_row,
            rules.fault_percent,
            rules.minimum_calls,
            rules.window_s,
            rules.slow_first_token_s,
            rules.open_s,
            rules.max_open_s,
        )
    )
    return value


def shadow_of(value: object) -> Shadow | None:
    if value is None:
        return None
    shape = msgspec.convert(value, ShadowShape)
    return Shadow(shape.model, shape.percent)


def shadow_value(shadow: Shadow | None) -> dict[str, object] | None:
    return None if shadow is None else {"model": shadow.model, "percent": shadow.percent}


def overflow_of(value: object) -> Overflow:
    shape = msgspec.convert(value, OverflowShape)
    return Overflow(shape.mode, shape.max_wait_seconds, shape.fallback_model)


def overflow_value(overflow: Overflow) -> dict[str, object]:
    value: dict[str, object] = msgspec.to_builtins(
        OverflowShape(overflow.mode, overflow.max_wait_s, overflow.fallback_model)
    )
    return value


def timeouts_of(value: object) -> Timeouts:
    shape = msgspec.convert(value, TimeoutsShape)
    return Timeouts(
        shape.connect_seconds,
        shape.first_token_seconds,
        shape.between_tokens_seconds,
        shape.total_seconds,
        shape.unary_seconds,
    )


def timeouts_value(timeouts: Timeouts) -> dict[str, object]:
    value: dict[str, object] = msgspec.to_builtins(
        TimeoutsShape(
            timeouts.connect_s, timeouts.first_token_s, timeouts.between_tokens_s, timeouts.total_s, timeouts.unary_s
        )
    )
    return value


def health_check_of(value: object) -> HealthCheck:
    shape = msgspec.convert(value, HealthCheckShape)
    return HealthCheck(shape.kind, shape.interval_seconds)


def health_check_value(check: HealthCheck) -> dict[str, object]:
    value: dict[str, object] = msgspec.to_builtins(HealthCheckShape(check.kind, check.interval_s))
    return value


def networks_of(texts: list[str]) -> tuple[Network, ...]:
    """`allowed_ips` and `allowed_networks`: single addresses and CIDR ranges. Raises: ValueError."""
    return tuple(ip_network(text, strict=False) for text in texts)


def is_uuid(text: str) -> bool:
    """Whether the text is a UUID in its canonical form; asked before a search by a caller's words."""
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False
