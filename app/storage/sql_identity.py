"""Who a credential belongs to, from SQL. Read once per key, or app and user, and kept in memory by the services."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, tzinfo

import msgspec
from sqlalchemy import (
    ARRAY,
    DateTime,
    LargeBinary,
    Text,
    Uuid,
    any_,
    bindparam,
    cast,
    func,
    literal_column,
    null,
    select,
    text,
    union_all,
    update,
)
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import Clock
from app.database import QUICK_S, transaction
from app.domain.budget import Budget
from app.domain.identity import App, Identity, Key, KeyStatus, LogContent, PaymentStatus, User
from app.domain.limits import Scope
from app.models.tables import app_secrets, apps, budgets, former_credentials, keys, limits, users
from app.storage.ports import RegisteredApp, StoredSecret
from app.storage.sql_rows import (
    HOLDER_COLUMN,
    AnyRow,
    budgets_from_json,
    budgets_json,
    is_uuid,
    limits_from_json,
    limits_json,
    networks_of,
    overflow_of,
)

IDENTITIES = (
    select(
        *(keys.c.id, keys.c.status, keys.c.expires_at, keys.c.allowed_models, keys.c.allowed_ips),
        *(keys.c.log_content, keys.c.has_own_limits, keys.c.overflow),
        *(
            users.c.oid,
            users.c.payment_status,
            users.c.payment_valid_until,
            users.c.log_content.label("user_log_content"),
        ),
        limits_json(limits.c.key_id == keys.c.id).label("key_limits"),
        budgets_json(budgets.c.key_id == keys.c.id).label("key_budgets"),
        limits_json(limits.c.user_oid == users.c.oid).label("user_limits"),
        budgets_json(budgets.c.user_oid == users.c.oid).label("user_budgets"),
    )
    .select_from(keys)
    .join(users, users.c.oid == keys.c.user_oid)
)
"""All keys with their owners, as `identity_of` reads them."""

_secret = func.json_build_object(
    *("digest", func.encode(app_secrets.c.digest, "hex"), "ends_at", app_secrets.c.expires_at)
)
_secrets = (
    select(cast(func.coalesce(func.json_agg(_secret), literal_column("'[]'::json")), Text))
    .where(app_secrets.c.app_id == apps.c.app_id)
    .scalar_subquery()
)
_registered = (
    select(
        *(apps.c.app_id, apps.c.is_active, apps.c.allowed_models, apps.c.allowed_networks, apps.c.log_content),
        *(apps.c.own_secret_only, apps.c.auto_create_users),
        *(
            users.c.oid,
            users.c.payment_status,
            users.c.payment_valid_until,
            users.c.log_content.label("user_log_content"),
        ),
        _secrets.label("secrets"),
        limits_json(limits.c.app_id == apps.c.app_id).label("app_limits"),
        budgets_json(budgets.c.app_id == apps.c.app_id).label("app_budgets"),
        limits_json(limits.c.user_oid == users.c.oid).label("user_limits"),
        budgets_json(budgets.c.user_oid == users.c.oid).label("user_budgets"),
    )
    .select_from(apps.outerjoin(users, users.c.oid == bindparam("user_oid")))
    .where(apps.c.app_id == bindparam("wanted_app"))
)

_digests = bindparam("digests", type_=ARRAY(LargeBinary))
_credentials = union_all(
    select(keys.c.id, keys.c.digest, null().cast(DateTime(True)).label("ends_at")).where(
        keys.c.digest == any_(_digests)
    ),
    select(former_credentials.c.key_id, former_credentials.c.digest, former_credentials.c.expires_at).where(
        former_credentials.c.digest == any_(_digests)
    ),
).subquery("credentials")

_by_digest = IDENTITIES.add_columns(_credentials.c.ends_at, _credentials.c.digest).join(
    _credentials, _credentials.c.id == keys.c.id
)
_by_id = IDENTITIES.where(keys.c.id == bindparam("key_id"))

_expire = (
    update(users)
    .where(users.c.oid == bindparam("user_oid"))
    .where(users.c.payment_status.in_(("active", "trial")))
    .where(users.c.payment_valid_until < bindparam("today"))
    .values(payment_status="expired", updated_at=func.now())
)

# Rows are locked in one order, so that two replicas that mark the same keys wait for each other instead of deadlocking.
_mark_used = text(
    """
    WITH used AS (SELECT id, max(at) AS at FROM unnest(:ids, :times) AS used (id, at) GROUP BY id),
         locked AS (SELECT id FROM keys WHERE id IN (SELECT id FROM used) ORDER BY id FOR NO KEY UPDATE)
    UPDATE keys SET last_used_at = used.at
    FROM used JOIN locked USING (id)
    WHERE keys.id = used.id AND (keys.last_used_at IS NULL OR keys.last_used_at < used.at)
    """
).bindparams(bindparam("ids", type_=ARRAY(Uuid(as_uuid=False))), bindparam("times", type_=ARRAY(DateTime(True))))


class SqlKeyStore:
    """KeyStore on PostgreSQL. `zone` is the one that payment dates are meant in."""

    def __init__(self, engine: AsyncEngine, *, clock: Clock, zone: tzinfo) -> None:
        self._engine = engine
        self._clock = clock
        self._zone = zone

    async def identity_of_key(self, digest: bytes) -> Identity | None:
        """Whatever its status: whether it may call is the domain's to say."""
        return (await self.identities_of_keys([digest])).get(digest)

    async def identities_of_keys(self, digests: Sequence[bytes]) -> dict[bytes, Identity]:
        """With a secret of before its rotation a key is the same key, and ends when that secret's grace does."""
        async with transaction(self._engine, within_s=QUICK_S) as connection:
            rows = (await connection.execute(_by_digest, {"digests": list(digests)})).all()
        return {bytes(row.digest): _ending_at(row.ends_at, identity_of(row)) for row in rows}

    async def registered_app(self, app_id: str, user_oid: str) -> RegisteredApp | None:
        async with transaction(self._engine, within_s=QUICK_S) as connection:
            found = await connection.execute(_registered, {"wanted_app": app_id, "user_oid": user_oid})
            row = found.one_or_none()
        return None if row is None else _registered_app_of(row)

    async def identity_of_key_id(self, key_id: str) -> Identity | None:
        if not is_uuid(key_id):
            return None
        async with transaction(self._engine, within_s=QUICK_S) as connection:
            row = (await connection.execute(_by_id, {"key_id": key_id})).one_or_none()
        return None if row is None else identity_of(row)

    async def budgets_of(self, scope: Scope, holder: str) -> tuple[Budget, ...]:
        if scope is Scope.KEY and not is_uuid(holder):
            return ()
        held = budgets.c[HOLDER_COLUMN[scope]] == holder
        async with transaction(self._engine, within_s=QUICK_S) as connection:
            return budgets_from_json((await connection.execute(select(budgets_json(held)))).scalar_one())

    async def mark_expired(self, user_oid: str) -> None:
        """Only while the row still says so: a renewal that came in between must not be undone."""
        today = self._clock.now().astimezone(self._zone).date()
        async with transaction(self._engine, within_s=QUICK_S) as connection:
            await connection.execute(_expire, {"user_oid": user_oid, "today": today})

    async def mark_used(self, used: Sequence[tuple[str, datetime]]) -> None:
        known = [(key_id, at) for key_id, at in used if is_uuid(key_id)]
        if not known:
            return
        async with transaction(self._engine) as connection:
            await connection.execute(
                _mark_used, {"ids": [key_id for key_id, _ in known], "times": [at for _, at in known]}
            )


def identity_of(row: AnyRow) -> Identity:
    """A row of `IDENTITIES`."""
    return Identity(
        user=_user_of(row),
        key=Key(
            id=row.id,
            status=KeyStatus(row.status),
            expires_at=row.expires_at,
            allowed_models=frozenset(row.allowed_models),
            allowed_networks=networks_of(row.allowed_ips),
            log_content=None if row.log_content is None else LogContent(row.log_content),
            limits=limits_from_json(row.key_limits) if row.has_own_limits else None,
            budgets=budgets_from_json(row.key_budgets),
            overflow=overflow_of(row.overflow),
        ),
    )


def _ending_at(ends_at: datetime | None, identity: Identity) -> Identity:
    if ends_at is None or identity.key is None:
        return identity
    return replace(identity, key=replace(identity.key, expires_at=min(ends_at, identity.key.expires_at or ends_at)))


class _SecretRow(msgspec.Struct, frozen=True):
    digest: str
    ends_at: datetime | None


_secret_rows = msgspec.json.Decoder(list[_SecretRow])


def _registered_app_of(row: AnyRow) -> RegisteredApp:
    return RegisteredApp(
        app=App(
            id=row.app_id,
            is_active=row.is_active,
            allowed_models=frozenset(row.allowed_models),
            allowed_networks=networks_of(row.allowed_networks),
            log_content=None if row.log_content is None else LogContent(row.log_content),
            limits=limits_from_json(row.app_limits),
            budgets=budgets_from_json(row.app_budgets),
        ),
        secrets=tuple(
            StoredSecret(bytes.fromhex(each.digest), each.ends_at) for each in _secret_rows.decode(row.secrets)
        ),
        own_secret_only=row.own_secret_only,
        may_create_users=row.auto_create_users,
        user=None if row.oid is None else _user_of(row),
    )


def _user_of(row: AnyRow) -> User:
    return User(
        oid=row.oid,
        payment_status=PaymentStatus(row.payment_status),
        payment_valid_until=row.payment_valid_until,
        limits=limits_from_json(row.user_limits),
        budgets=budgets_from_json(row.user_budgets),
        log_content=None if row.user_log_content is None else LogContent(row.user_log_content),
    )
