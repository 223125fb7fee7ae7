"""Administration of models, endpoints and prices in SQL."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import ARRAY, Row, Select, Text, any_, delete, func, insert, literal, null, or_, select, true, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.catalog import ProviderKind, Sticky, Strategy
from app.domain.limits import Scope
from app.domain.pricing import Price
from app.models.tables import endpoints, models, prices
from app.storage.holders import found, held_columns, holds, put_limits
from app.storage.keyset import Order, after, page_of, sorted_after, sorted_page_of
from app.storage.management_ports import (
    EndpointRow,
    EndpointSpec,
    ListQuery,
    ModelRow,
    ModelSpec,
    Page,
    SealedCredential,
)
from app.storage.sql_rows import (
    breaker_of,
    breaker_value,
    budgets_from_json,
    health_check_of,
    health_check_value,
    is_uuid,
    limits_from_json,
    price_of,
    rates_value,
    shadow_of,
    shadow_value,
    timeouts_of,
    timeouts_value,
)

_MODEL_ORDERS: dict[str, Order[ModelRow]] = {
    "created_at": Order(models.c.created_at, lambda row: row.created_at, datetime),
    "name": Order(models.c.name, lambda row: row.spec.name, str),
}


_UNSTORABLE = frozenset(("\x00", *map(chr, range(0xD800, 0xE000))))
"""What no text in the database holds (NUL and lone surrogates), so that to ask for it would be an error."""


class SqlModels:
    connection: AsyncConnection

    async def model(self, name: str) -> ModelRow | None:
        row = (await self.connection.execute(_models().where(models.c.name == name))).one_or_none()
        return None if row is None else _model_row(row)

    async def models(self, query: ListQuery) -> Page[ModelRow]:
        statement = sorted_after(_models(), query, _MODEL_ORDERS, models.c.name)
        if query.search:
            aliases = func.array_to_string(models.c.aliases, "\n")
            statement = statement.where(found(query.search, models.c.name, aliases))
        if query.model:
            statement = statement.where(or_(models.c.name == query.model, holds(models.c.aliases, query.model)))
        rows = [_model_row(row) for row in await self.connection.execute(statement)]
        return sorted_page_of(rows, query, _MODEL_ORDERS, lambda row: row.spec.name)

    async def models_behind(self, names: Iterable[str]) -> dict[str, str]:
        wanted = {name for name in names if _UNSTORABLE.isdisjoint(name)}
        array = literal(list(wanted), ARRAY(Text))
        is_one = or_(models.c.name == any_(array), models.c.aliases.op("&&")(array))
        rows = (await self.connection.execute(select(models.c.name, models.c.aliases).where(is_one))).all()
        aliases = {alias: row.name for row in rows for alias in row.aliases if alias in wanted}
        return aliases | {row.name: row.name for row in rows if row.name in wanted}

    async def models_falling_back_to(self, name: str) -> list[str]:
        statement = select(models.c.name).where(holds(models.c.fallbacks, name)).order_by(models.c.name)
        return list((await self.connection.execute(statement)).scalars())

    async def models_shadowed_by(self, name: str) -> list[str]:
        statement = select(models.c.name).where(models.c.shadow["model"].astext == name).order_by(models.c.name)
        return list((await self.connection.execute(statement)).scalars())

    async def fallbacks_of_models(self) -> dict[str, tuple[str, ...]]:
        statement = select(models.c.name, models.c.fallbacks).where(func.cardinality(models.c.fallbacks) > 0)
        return {row.name: tuple(row.fallbacks) for row in await self.connection.execute(statement)}

    async def insert_model(self, spec: ModelSpec, at: datetime) -> None:
        await self.connection.execute(insert(models).values(**_model_values(spec), created_at=at, updated_at=at))
        await put_limits(self.connection, Scope.MODEL, spec.name, (spec.limits, spec.budgets), is_new=True)

    async def update_model(self, spec: ModelSpec, at: datetime) -> None:
        statement = update(models).where(models.c.name == spec.name).values(**_model_values(spec), updated_at=at)
        await self.connection.execute(statement)
        await put_limits(self.connection, Scope.MODEL, spec.name, (spec.limits, spec.budgets), is_new=False)

    async def delete_model(self, name: str) -> None:
        without = func.array_remove(models.c.fallbacks, name)
        await self.connection.execute(update(models).where(holds(models.c.fallbacks, name)).values(fallbacks=without))
        await self.connection.execute(
            update(models).where(models.c.shadow["model"].astext == name).values(shadow=null())
        )
        await self.connection.execute(delete(models).where(models.c.name == name))

    async def add_price(
        self, price_id: str, model: str, endpoint_id: str | None, price: Price | None, at: datetime
    ) -> None:
        rates = null() if price is None else rates_value(price)
        values = {"id": price_id, "model": model, "endpoint_id": endpoint_id, "rates": rates, "valid_from": at}
        await self.connection.execute(insert(prices).values(**values))


def _models() -> Select[Any]:
    newest = (
        select(prices.c.id.label("price_id"), prices.c.rates)
        .where(prices.c.model == models.c.name, prices.c.endpoint_id.is_(None))
        .order_by(prices.c.valid_from.desc(), prices.c.id.desc())
        .limit(1)
        .lateral("newest")
    )
    served = select(func.count()).where(endpoints.c.model == models.c.name).scalar_subquery().label("endpoint_count")
    held = held_columns(Scope.MODEL, models.c.name)
    joined = models.outerjoin(newest, true())
    return select(*models.c, newest.c.price_id, newest.c.rates, served, *held).select_from(joined)


def _model_values(spec: ModelSpec) -> dict[str, object]:
    return {
        "name": spec.name,
        "aliases": list(spec.aliases),
        "strategy": spec.strategy.value,
        "fallbacks": list(spec.fallbacks),
        "sticky": None if spec.sticky is None else spec.sticky.value,
        "max_retries": spec.max_retries,
        "shadow": null() if spec.shadow is None else shadow_value(spec.shadow),
        "context_window": spec.context_window,
        "max_output_tokens": spec.max_output_tokens,
    }


def _model_row(row: Row[Any]) -> ModelRow:
    spec = ModelSpec(
        name=row.name,
        aliases=tuple(row.aliases),
        strategy=Strategy(row.strategy),
        fallbacks=tuple(row.fallbacks),
        sticky=None if row.sticky is None else Sticky(row.sticky),
        max_retries=row.max_retries,
        shadow=shadow_of(row.shadow),
        context_window=row.context_window,
        max_output_tokens=row.max_output_tokens,
        price=_price(row),
        limits=limits_from_json(row.limits),
        budgets=budgets_from_json(row.budgets),
    )
    return ModelRow(spec, row.endpoint_count, row.created_at, row.updated_at)


def _price(row: Row[Any]) -> Price | None:
    return None if row.rates is None else price_of(str(row.price_id), row.rates)


class SqlEndpoints:
    connection: AsyncConnection

    async def endpoint(self, endpoint_id: str) -> EndpointRow | None:
        if not is_uuid(endpoint_id):
            return None
        row = (await self.connection.execute(_endpoints().where(endpoints.c.id == endpoint_id))).one_or_none()
        return None if row is None else _endpoint_row(row)

    async def endpoints(self, query: ListQuery) -> Page[EndpointRow]:
        statement = after(_endpoints(), query.cursor, endpoints.c.created_at, endpoints.c.id, query.limit)
        if query.search:
            names = (endpoints.c.model, endpoints.c.upstream_model, endpoints.c.api_base, endpoints.c.provider)
            statement = statement.where(found(query.search, *names))
        if query.model:
            statement = statement.where(endpoints.c.model == query.model)
        rows = [_endpoint_row(row) for row in await self.connection.execute(statement)]
        return page_of(rows, query.limit, lambda row: (row.created_at, row.id))

    async def endpoints_of(self, model: str) -> list[EndpointRow]:
        statement = _endpoints().where(endpoints.c.model == model).order_by(endpoints.c.created_at, endpoints.c.id)
        return [_endpoint_row(row) for row in await self.connection.execute(statement)]

    async def insert_endpoint(
        self, endpoint_id: str, spec: EndpointSpec, credential: SealedCredential | None, at: datetime
    ) -> None:
        values = {"id": endpoint_id, **_endpoint_values(spec), **_sealed_values(credential)}
        await self.connection.execute(insert(endpoints).values(**values, created_at=at, updated_at=at))

    async def update_endpoint(self, endpoint_id: str, spec: EndpointSpec, at: datetime) -> None:
        values = {**_endpoint_values(spec), "updated_at": at}
        await self.connection.execute(update(endpoints).where(endpoints.c.id == endpoint_id).values(**values))

    async def set_endpoint_credential(self, endpoint_id: str, credential: SealedCredential | None) -> None:
        values = _sealed_values(credential)
        await self.connection.execute(update(endpoints).where(endpoints.c.id == endpoint_id).values(**values))

    async def delete_endpoint(self, endpoint_id: str) -> None:
        await self.connection.execute(delete(endpoints).where(endpoints.c.id == endpoint_id))


def _endpoints() -> Select[Any]:
    newest = (
        select(prices.c.id.label("price_id"), prices.c.rates)
        .where(prices.c.endpoint_id == endpoints.c.id)
        .order_by(prices.c.valid_from.desc(), prices.c.id.desc())
        .limit(1)
        .lateral("newest")
    )
    columns = [column for column in endpoints.c if column.name != "credential_sealed"]
    joined = endpoints.outerjoin(newest, true())
    return select(*columns, newest.c.price_id, newest.c.rates).select_from(joined)


def _endpoint_values(spec: EndpointSpec) -> dict[str, object]:
    return {
        "model": spec.model,
        "provider": spec.provider.value,
        "upstream_model": spec.upstream_model,
        "api_base": spec.api_base,
        "weight": spec.weight,
        "priority": spec.priority,
        "max_concurrency": spec.max_concurrency,
        "requests_per_minute": spec.requests_per_minute,
        "tokens_per_minute": spec.tokens_per_minute,
        "timeouts": timeouts_value(spec.timeouts),
        "health_check": health_check_value(spec.health_check),
        "breaker": breaker_value(spec.breaker),
        "is_draining": spec.is_draining,
    }


def _sealed_values(credential: SealedCredential | None) -> dict[str, object]:
    if credential is None:
        return {"credential_sealed": None, "credential_last4": None}
    return {"credential_sealed": credential.sealed, "credential_last4": credential.last4}


def _endpoint_row(row: Row[Any]) -> EndpointRow:
    spec = EndpointSpec(
        model=row.model,
        provider=ProviderKind(row.provider),
        upstream_model=row.upstream_model,
        api_base=row.api_base,
        weight=row.weight,
        priority=row.priority,
        max_concurrency=row.max_concurrency,
        requests_per_minute=row.requests_per_minute,
        tokens_per_minute=row.tokens_per_minute,
        timeouts=timeouts_of(row.timeouts),
        health_check=health_check_of(row.health_check),
        breaker=breaker_of(row.breaker),
        is_draining=row.is_draining,
        price=_price(row),
    )
    return EndpointRow(row.id, spec, row.credential_last4, row.created_at, row.updated_at)
