"""Configuration put into the database by hand, so that reading it does not depend on the code that writes it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Protocol
from uuid import uuid4

from sqlalchemy import Table, insert, text, update
from sqlalchemy.ext.asyncio import AsyncEngine

from app.database import transaction
from app.domain.budget import Budget
from app.domain.catalog import Endpoint, Model
from app.domain.identity import Key, User
from app.domain.limits import Limit, Scope
from app.domain.pricing import Price
from app.models import tables
from app.storage.ports import RegisteredApp
from app.storage.sealing import Sealer, host_of
from app.storage.sql_rows import (
    budget_values,
    health_check_value,
    limit_values,
    overflow_value,
    rates_value,
    timeouts_value,
)

SECRET_KEY = "a secret key for tests, long enough"


class Planter(Protocol):
    """What the conformance suites need from whoever runs them."""

    async def user(self, user: User) -> None: ...

    async def key(self, key: Key, *, owner: str, digest: bytes) -> None: ...

    async def app(self, app: RegisteredApp) -> None:
        """With its secrets; not its user."""
        ...

    async def model(self, model: Model) -> None:
        """With its limits and budgets; prices and endpoints apart."""
        ...

    async def endpoint(self, endpoint: Endpoint) -> None: ...

    async def age_changes(self, *, days: int) -> None:
        """As if all of them had been made so long ago."""
        ...

    async def price(self, price: Price | None, *, price_id: str, model: str, endpoint_id: str | None = None) -> None:
        """One row of the price history; None means: back to the price map."""
        ...

    async def change(self, kind: str, ref: str) -> int:
        """A change of configuration; returns its revision."""
        ...

    async def user_status(self, oid: str) -> str: ...

    async def key_used_at(self, key_id: str) -> datetime | None: ...


class SqlPlanter:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self.sealer = Sealer(SECRET_KEY)

    async def user(self, user: User) -> None:
        await self._insert(
            tables.users,
            oid=user.oid,
            payment_status=user.payment_status,
            payment_valid_until=user.payment_valid_until,
        )
        await self._holdings(Scope.USER, user.oid, user.limits, user.budgets)

    async def key(self, key: Key, *, owner: str, digest: bytes) -> None:
        await self._insert(
            tables.keys,
            id=key.id,
            user_oid=owner,
            digest=digest,
            key_prefix="sk-ag-abcd",
            last4="wxyz",
            status=key.status,
            allowed_models=sorted(key.allowed_models),
            allowed_ips=[str(network) for network in key.allowed_networks],
            log_content=key.log_content,
            has_own_limits=key.limits is not None,
            overflow=overflow_value(key.overflow),
            expires_at=key.expires_at,
        )
        await self._holdings(Scope.KEY, key.id, key.limits or (), key.budgets)

    async def app(self, app: RegisteredApp) -> None:
        await self._insert(
            tables.apps,
            app_id=app.app.id,
            is_active=app.app.is_active,
            allowed_models=sorted(app.app.allowed_models),
            allowed_networks=[str(network) for network in app.app.allowed_networks],
            own_secret_only=app.own_secret_only,
            auto_create_users=app.may_create_users,
            log_content=app.app.log_content,
        )
        for secret in app.secrets:
            await self._insert(
                tables.app_secrets,
                id=str(uuid4()),
                app_id=app.app.id,
                digest=secret.digest,
                last4="wxyz",
                expires_at=secret.ends_at,
            )
        await self._holdings(Scope.APP, app.app.id, app.app.limits, app.app.budgets)

    async def model(self, model: Model) -> None:
        await self._insert(
            tables.models,
            name=model.name,
            aliases=list(model.aliases),
            strategy=model.strategy,
            fallbacks=list(model.fallbacks),
            context_window=model.context_window_tokens,
            max_output_tokens=model.max_output_tokens,
        )
        await self._holdings(Scope.MODEL, model.name, model.limits, model.budgets)

    async def endpoint(self, endpoint: Endpoint) -> None:
        sealed = endpoint.credential and self.sealer.seal(
            endpoint.credential, endpoint_id=endpoint.id, host=host_of(endpoint.api_base)
        )
        await self._insert(
            tables.endpoints,
            id=endpoint.id,
            model=endpoint.model,
            provider=endpoint.provider,
            upstream_model=endpoint.upstream_model,
            api_base=endpoint.api_base,
            credential_sealed=sealed,
            weight=endpoint.weight,
            priority=endpoint.priority,
            max_concurrency=endpoint.max_concurrency,
            requests_per_minute=endpoint.requests_per_minute,
            tokens_per_minute=endpoint.tokens_per_minute,
            timeouts=timeouts_value(endpoint.timeouts),
            health_check=health_check_value(endpoint.health_check),
            is_draining=endpoint.is_draining,
        )

    async def price(self, price: Price | None, *, price_id: str, model: str, endpoint_id: str | None = None) -> None:
        rates = {} if price is None else {"rates": rates_value(price)}
        await self._insert(tables.prices, id=price_id, model=model, endpoint_id=endpoint_id, **rates)

    async def change(self, kind: str, ref: str) -> int:
        async with transaction(self._engine) as connection:
            raised = await connection.execute(
                text("UPDATE config_revision SET revision = revision + 1 RETURNING revision")
            )
            revision = int(raised.scalar_one())
            await connection.execute(insert(tables.config_changes).values(revision=revision, kind=kind, ref=ref))
        return revision

    async def age_changes(self, *, days: int) -> None:
        older = tables.config_changes.c.changed_at - timedelta(days=days)
        async with transaction(self._engine) as connection:
            await connection.execute(update(tables.config_changes).values(changed_at=older))

    async def user_status(self, oid: str) -> str:
        return str(await self._one("SELECT payment_status FROM users WHERE oid = :id", oid))

    async def key_used_at(self, key_id: str) -> datetime | None:
        found = await self._one("SELECT last_used_at FROM keys WHERE id = CAST(:id AS uuid)", key_id)
        assert found is None or isinstance(found, datetime)
        return found

    async def _holdings(
        self, scope: Scope, holder: str, limits: tuple[Limit, ...], budgets: tuple[Budget, ...]
    ) -> None:
        for limit in limits:
            await self._insert(tables.limits, **limit_values(scope, holder, limit))
        for budget in budgets:
            await self._insert(tables.budgets, **budget_values(scope, holder, budget))

    async def _insert(self, table: Table, **values: object) -> None:
        async with transaction(self._engine) as connection:
            await connection.execute(insert(table).values(**values))

    async def _one(self, query: str, ident: str) -> object:
        async with transaction(self._engine) as connection:
            return (await connection.execute(text(query), {"id": ident})).scalar_one()
