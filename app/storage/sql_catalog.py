"""The catalog from SQL: models, endpoints, prices, limits, all as of one revision."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Float, Select, delete, func, select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.database import QUICK_S, transaction
from app.domain.catalog import Catalog, Endpoint, Model, ProviderKind, Sticky, Strategy
from app.domain.pricing import Price
from app.models.tables import budgets, config_changes, config_revision, endpoints, limits, models, prices
from app.storage.ports import ConfigChange
from app.storage.sealing import CannotUnseal, Sealer, host_of
from app.storage.sql_rows import (
    AnyRow,
    breaker_of,
    budgets_from_json,
    budgets_json,
    health_check_of,
    limits_from_json,
    limits_json,
    price_of,
    shadow_of,
    timeouts_of,
)

log = logging.getLogger("gateway.catalog")

FallbackPrice = Callable[[str, str, str], Price | None]
"""The price map's price of an upstream model at a kind of provider and an address, where it knows one."""

_models = select(
    models,
    limits_json(limits.c.model == models.c.name).label("limits"),
    budgets_json(budgets.c.model == models.c.name).label("budgets"),
).order_by(models.c.created_at, models.c.name)

_endpoints = select(endpoints).order_by(endpoints.c.created_at, endpoints.c.id)

_revision = select(config_revision.c.revision)
_forget_old_changes = delete(config_changes).where(
    config_changes.c.changed_at < func.now() - timedelta(days=1),
    config_changes.c.revision < select(func.max(config_changes.c.revision)).scalar_subquery(),
)


def newest_prices(*where: ColumnElement[bool]) -> Select[Any]:
    """The price that holds, per model and per endpoint; of two of the same moment the later id."""
    return (
        select(prices)
        .ext(distinct_on(prices.c.model, prices.c.endpoint_id))
        .where(*where)
        .order_by(prices.c.model, prices.c.endpoint_id, prices.c.valid_from.desc(), prices.c.id.desc())
    )


@dataclass(frozen=True, slots=True)
class EndpointLeftOut:
    """An endpoint that stands in the database and not in the catalog, and why."""

    endpoint_id: str
    model: str
    reason: str


class SqlCatalogStore:
    """CatalogStore on PostgreSQL."""

    def __init__(self, engine: AsyncEngine, *, sealer: Sealer, fallback_price: FallbackPrice) -> None:
        self._engine = engine
        self._sealer = sealer
        self._fallback_price = fallback_price
        self.left_out: tuple[EndpointLeftOut, ...] = ()
        """What the last load had to leave out."""

    async def load(self) -> Catalog:
        """An endpoint whose row cannot be used is left out and named in the log and in `left_out`; the rest stands."""
        async with transaction(self._engine, read_only_snapshot=True) as connection:
            revision = (await connection.execute(_revision)).scalar_one()
            model_rows = (await connection.execute(_models)).all()
            endpoint_rows = (await connection.execute(_endpoints)).all()
            price_of_model, price_of_endpoint = await _prices(connection)
        left_out: list[EndpointLeftOut] = []
        by_model: defaultdict[str, list[Endpoint]] = defaultdict(list)
        for row in endpoint_rows:
            try:
                by_model[row.model].append(self._endpoint(row, price_of_endpoint.get(row.id)))
            except (CannotUnseal, msgspec.ValidationError) as error:
                left_out.append(EndpointLeftOut(row.id, row.model, _reason(error)))
        self._report(left_out)
        return Catalog.of(
            revision,
            (self._model(row, price_of_model.get(row.name), by_model[row.name]) for row in model_rows),
        )

    async def revision(self) -> int:
        async with transaction(self._engine, within_s=QUICK_S) as connection:
            return int((await connection.execute(_revision)).scalar_one())

    async def changes_since(self, revision: int) -> list[ConfigChange]:
        newer = (
            select(
                config_changes.c.revision,
                config_changes.c.kind,
                config_changes.c.ref,
                func.extract("epoch", func.clock_timestamp() - config_changes.c.changed_at).cast(Float),
            )
            .where(config_changes.c.revision > revision)
            .order_by(config_changes.c.revision)
        )
        async with transaction(self._engine, within_s=QUICK_S) as connection:
            return [ConfigChange(*row) for row in await connection.execute(newer)]

    async def forget_old_changes(self) -> None:
        async with transaction(self._engine) as connection:
            await connection.execute(_forget_old_changes)

    def _endpoint(self, row: AnyRow, price: Price | None) -> Endpoint:
        credential = None
        if row.credential_sealed is not None:
            credential = self._sealer.open(row.credential_sealed, endpoint_id=row.id, host=host_of(row.api_base))
        return Endpoint(
            id=row.id,
            model=row.model,
            provider=ProviderKind(row.provider),
            upstream_model=row.upstream_model,
            api_base=row.api_base,
            credential=credential,
            weight=row.weight,
            priority=row.priority,
            max_concurrency=row.max_concurrency,
            requests_per_minute=row.requests_per_minute,
            tokens_per_minute=row.tokens_per_minute,
            timeouts=timeouts_of(row.timeouts),
            health_check=health_check_of(row.health_check),
            breaker=breaker_of(row.breaker),
            price=price,
            is_draining=row.is_draining,
        )

    def _model(self, row: AnyRow, price: Price | None, served_by: list[Endpoint]) -> Model:
        if price is None:
            price, served_by = self._from_price_map(served_by)
        return Model(
            name=row.name,
            aliases=tuple(row.aliases),
            strategy=Strategy(row.strategy),
            fallbacks=tuple(row.fallbacks),
            sticky=None if row.sticky is None else Sticky(row.sticky),
            max_retries=row.max_retries,
            shadow=shadow_of(row.shadow),
            context_window_tokens=row.context_window,
            max_output_tokens=row.max_output_tokens,
            price=price,
            limits=limits_from_json(row.limits),
            budgets=budgets_from_json(row.budgets),
            endpoints=tuple(served_by),
            created_at_s=int(row.created_at.timestamp()),
        )

    def _from_price_map(self, served_by: list[Endpoint]) -> tuple[Price | None, list[Endpoint]]:
        """A model without a price of its own costs what its first endpoint's upstream model does; an endpoint with
        another upstream model costs what that one does."""
        if not served_by:
            return None, []
        price = self._mapped(served_by[0])
        return price, [
            endpoint if endpoint.price is not None else _unless_equal(endpoint, self._mapped(endpoint), price)
            for endpoint in served_by
        ]

    def _mapped(self, endpoint: Endpoint) -> Price | None:
        return self._fallback_price(endpoint.provider.value, endpoint.upstream_model, endpoint.api_base)

    def _report(self, left_out: list[EndpointLeftOut]) -> None:
        for endpoint in left_out:
            log.error(
                "endpoint %s of model %s is left out of the catalog: %s",
                *(endpoint.endpoint_id, endpoint.model, endpoint.reason),
            )
        self.left_out = tuple(left_out)


def _unless_equal(endpoint: Endpoint, price: Price | None, of_model: Price | None) -> Endpoint:
    return endpoint if price == of_model else replace(endpoint, price=price)


async def _prices(connection: AsyncConnection) -> tuple[dict[str, Price], dict[str, Price]]:
    rows = (await connection.execute(newest_prices())).all()
    return (
        _by_name((row.model, row) for row in rows if row.endpoint_id is None),
        _by_name((row.endpoint_id, row) for row in rows if row.endpoint_id is not None),
    )


def _by_name(rows: Iterable[tuple[str, AnyRow]]) -> dict[str, Price]:
    """Without those that say: back to the price map."""
    return {name: price_of(row.id, row.rates) for name, row in rows if row.rates is not None}


def _reason(error: CannotUnseal | msgspec.ValidationError) -> str:
    return f"its credential cannot be opened: {error}" if isinstance(error, CannotUnseal) else f"its row says: {error}"
