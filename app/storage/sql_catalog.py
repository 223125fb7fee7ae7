"""The catalog from SQL: models, endpoints, prices, limits, all as of one revision."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence, Set
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import msgspec
from sqlalchemy import ARRAY, ColumnElement, Float, Select, Text, Uuid, any_, bindparam, delete, func, select
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
    is_uuid,
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

_names = any_(bindparam("names", type_=ARRAY(Text)))
_models_named = _models.where(models.c.name == _names)
_endpoints_of = _endpoints.where(endpoints.c.model == _names)
_order = select(models.c.name).order_by(models.c.created_at, models.c.name)

_newer = (
    select(
        config_revision.c.revision.label("now"),
        config_changes.c.revision,
        config_changes.c.kind,
        config_changes.c.ref,
        func.extract("epoch", func.clock_timestamp() - config_changes.c.changed_at).cast(Float).label("age_s"),
    )
    .outerjoin_from(config_revision, config_changes, config_changes.c.revision > bindparam("since"))
    .order_by(config_changes.c.revision)
)
"""At least one row, which says what the revision is now."""

_changed = (
    select(config_changes.c.ref)
    .where(config_changes.c.revision > bindparam("since"), config_changes.c.kind == "catalog")
    .distinct()
)
_models_of_endpoints = (
    select(endpoints.c.model)
    .where(endpoints.c.id == any_(bindparam("ids", type_=ARRAY(Uuid(as_uuid=False)))))
    .distinct()
)

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


_prices_of = newest_prices(prices.c.model == _names)

BUILT_AT_ONCE = 20
"""Models made of their rows between two turns of the event loop: about 3 ms, so that a first load of thousands stalls no call."""


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
            rows = await _rows(connection)
        self.left_out = ()
        return Catalog.of(revision, await self._built(rows))

    async def renewed(self, catalog: Catalog, since: int) -> Catalog:
        """As `load`. A change names a model or an endpoint.

        Where a model went, those that named it are read anew as well: a process of a version before does not say so of its own accord.
        """
        async with transaction(self._engine, read_only_snapshot=True) as connection:
            revision = (await connection.execute(_revision)).scalar_one()
            refs = set((await connection.execute(_changed, {"since": since})).scalars())
            named = refs | await _served(connection, refs) | _served_before(catalog, refs, self.left_out)
            rows = await _rows(connection, named)
            gone = (named - rows.names) & catalog.models.keys()
            bereft = _naming(catalog, gone) - named
            if bereft:
                named |= bereft
                rows = await _rows(connection, named)
            has_same_names = not gone and rows.names <= catalog.models.keys()
            order = None if has_same_names else list((await connection.execute(_order)).scalars())
            unsaid = set(order or ()) - rows.names - catalog.models.keys()
            if unsaid:  # written by somebody's own SQL, which notes no change
                named |= unsaid
                rows = await _rows(connection, named)
        self.left_out = tuple(each for each in self.left_out if each.model not in named)
        return catalog.renewed(revision, await self._built(rows), order)

    async def revision(self) -> int:
        async with transaction(self._engine, within_s=QUICK_S) as connection:
            return int((await connection.execute(_revision)).scalar_one())

    async def changes_since(self, revision: int) -> list[ConfigChange]:
        async with transaction(self._engine, within_s=QUICK_S) as connection:
            rows = (await connection.execute(_newer, {"since": revision})).all()
        if rows and rows[0].now < revision:
            return [ConfigChange(rows[0].now, "database", "")]
        return [ConfigChange(row.revision, row.kind, row.ref, row.age_s) for row in rows if row.revision is not None]

    async def forget_old_changes(self) -> None:
        async with transaction(self._engine) as connection:
            await connection.execute(_forget_old_changes)

    async def _built(self, rows: _Rows) -> list[Model]:
        served_by, left_out, built = defaultdict[str, list[AnyRow]](list), list[EndpointLeftOut](), list[Model]()
        for row in rows.endpoints:
            served_by[row.model].append(row)
        for number, row in enumerate(rows.models, 1):
            of_model = self._endpoints(served_by[row.name], rows.price_of_endpoint, left_out)
            built.append(self._model(row, rows.price_of_model.get(row.name), of_model))
            if number % BUILT_AT_ONCE == 0:
                await asyncio.sleep(0)
        self._report(left_out)
        return built

    def _endpoints(
        self, rows: Sequence[AnyRow], price_of: dict[str, Price], left_out: list[EndpointLeftOut]
    ) -> list[Endpoint]:
        usable = []
        for row in rows:
            try:
                usable.append(self._endpoint(row, price_of.get(row.id)))
            except (CannotUnseal, msgspec.ValidationError) as error:
                left_out.append(EndpointLeftOut(row.id, row.model, _reason(error)))
        return usable

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
        self.left_out += tuple(left_out)


def _unless_equal(endpoint: Endpoint, price: Price | None, of_model: Price | None) -> Endpoint:
    return endpoint if price == of_model else replace(endpoint, price=price)


@dataclass(frozen=True, slots=True)
class _Rows:
    """What a catalog, or a part of it, is made of; all read in one snapshot."""

    models: Sequence[AnyRow]
    endpoints: Sequence[AnyRow]
    price_of_model: dict[str, Price]
    price_of_endpoint: dict[str, Price]

    @property
    def names(self) -> set[str]:
        return {row.name for row in self.models}


async def _rows(connection: AsyncConnection, names: Collection[str] | None = None) -> _Rows:
    """Of all models, or of those of these names."""
    wanted = None if names is None else {"names": list(names)}
    of_models, of_endpoints, of_prices = (
        (_models, _endpoints, newest_prices()) if wanted is None else (_models_named, _endpoints_of, _prices_of)
    )
    priced = (await connection.execute(of_prices, wanted)).all()
    return _Rows(
        (await connection.execute(of_models, wanted)).all(),
        (await connection.execute(of_endpoints, wanted)).all(),
        _by_name((row.model, row) for row in priced if row.endpoint_id is None),
        _by_name((row.endpoint_id, row) for row in priced if row.endpoint_id is not None),
    )


async def _served(connection: AsyncConnection, refs: Iterable[str]) -> set[str]:
    """The models of those refs that are endpoints now."""
    ids = [ref for ref in refs if is_uuid(ref)]
    return set((await connection.execute(_models_of_endpoints, {"ids": ids})).scalars()) if ids else set()


def _served_before(catalog: Catalog, refs: Collection[str], left_out: Iterable[EndpointLeftOut]) -> set[str]:
    """The models of those refs that were endpoints: of one that was deleted nothing else knows whose it was."""
    served = {
        model.name for model in catalog.models.values() if any(endpoint.id in refs for endpoint in model.endpoints)
    }
    return served | {each.model for each in left_out if each.endpoint_id in refs}


def _naming(catalog: Catalog, gone: Set[str]) -> set[str]:
    """Models that fell back to one of these, or were shadowed by one: with it, its name was taken out of theirs."""
    if not gone:
        return set()
    return {
        model.name
        for model in catalog.models.values()
        if not gone.isdisjoint(model.fallbacks) or (model.shadow is not None and model.shadow.model in gone)
    }


def _by_name(rows: Iterable[tuple[str, AnyRow]]) -> dict[str, Price]:
    """Without those that say: back to the price map."""
    return {name: price_of(row.id, row.rates) for name, row in rows if row.rates is not None}


def _reason(error: CannotUnseal | msgspec.ValidationError) -> str:
    return f"its credential cannot be opened: {error}" if isinstance(error, CannotUnseal) else f"its row says: {error}"
