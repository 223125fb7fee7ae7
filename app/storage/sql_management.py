"""Administration in SQL: the transaction of a command, and its users, keys, apps and administrators.

Models, endpoints and prices stand in `sql_management_catalog`, the audit trail in `sql_audit`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, cast

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Date,
    DateTime,
    Row,
    Select,
    Text,
    bindparam,
    delete,
    func,
    insert,
    literal,
    literal_column,
    null,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.database import transaction
from app.domain.access import Role
from app.domain.identity import KeyStatus, LogContent, PaymentStatus
from app.domain.limits import Scope
from app.models.tables import (
    KEY_END,
    KEY_WORDS,
    USER_PAID_UNTIL,
    USER_WORDS,
    admins,
    app_secrets,
    apps,
    config_changes,
    config_revision,
    deleted_users,
    former_credentials,
    keys,
    usage_rollups,
    users,
)
from app.storage import sql_audit, sql_secret_key
from app.storage.holders import found, held_columns, holds, put_limits, within
from app.storage.keyset import NEVER, NO_DAY, Order, after, page_of, sorted_after, sorted_page_of
from app.storage.management_ports import (
    AdminRow,
    AdminSpec,
    AppRow,
    AppSpec,
    AuditEntry,
    Credential,
    Expiry,
    KeyRow,
    KeySpec,
    ListQuery,
    ManagementReader,
    ManagementTransaction,
    Page,
    Resealed,
    Sealer,
    UserRow,
    UserSpec,
)
from app.storage.ports import UsageSums
from app.storage.sql_management_catalog import SqlEndpoints, SqlModels
from app.storage.sql_rows import budgets_from_json, is_uuid, limits_from_json, overflow_of, overflow_value
from app.storage.sql_sessions import end_sessions_of


@dataclass(frozen=True, slots=True)
class SqlManagement:
    """`ManagementStore` on PostgreSQL."""

    engine: AsyncEngine

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[ManagementReader]:
        async with transaction(self.engine) as connection:
            yield SqlTransaction(connection, 0)

    @asynccontextmanager
    async def command(self) -> AsyncIterator[ManagementTransaction]:
        async with transaction(self.engine) as connection:
            yield SqlTransaction(connection, await _locked_revision(connection))


async def _locked_revision(connection: AsyncConnection) -> int:
    """Take the row lock that puts commands in order; the row is made where a migration has not."""
    statement = (
        upsert(config_revision)
        .values(id=1, revision=0)
        .on_conflict_do_update(index_elements=["id"], set_={"revision": config_revision.c.revision})
        .returning(config_revision.c.revision)
    )
    return cast(int, (await connection.execute(statement)).scalar_one())


class SqlUsers:
    connection: AsyncConnection

    async def user(self, oid: str) -> UserRow | None:
        row = (await self.connection.execute(_users().where(users.c.oid == oid))).one_or_none()
        return None if row is None else _user_row(row)

    async def users(self, query: ListQuery) -> Page[UserRow]:
        statement = sorted_after(_users(), query, _USER_ORDERS, users.c.oid)
        if query.search:
            await _plan_for_these_words(self.connection)
            statement = statement.where(within(USER_WORDS, query.search))
        for status in filter(None, (query.status, query.payment_status)):
            statement = statement.where(users.c.payment_status == status)
        if query.paid_before:
            statement = statement.where(users.c.payment_valid_until < query.paid_before)
        if query.user_oid:
            statement = statement.where(users.c.oid == query.user_oid)
        rows = [_user_row(row) for row in await self.connection.execute(statement)]
        return sorted_page_of(rows, query, _USER_ORDERS, lambda row: row.spec.oid)

    async def insert_user(self, spec: UserSpec, at: datetime) -> None:
        await self.connection.execute(insert(users).values(**_user_values(spec), created_at=at, updated_at=at))
        await put_limits(self.connection, Scope.USER, spec.oid, (spec.limits, spec.budgets), is_new=True)

    async def update_user(self, spec: UserSpec, at: datetime) -> None:
        statement = update(users).where(users.c.oid == spec.oid).values(**_user_values(spec), updated_at=at)
        await self.connection.execute(statement)
        await put_limits(self.connection, Scope.USER, spec.oid, (spec.limits, spec.budgets), is_new=False)

    async def delete_user(self, oid: str, at: datetime) -> None:
        await self.connection.execute(delete(users).where(users.c.oid == oid))
        gone = upsert(deleted_users).values(oid=oid, deleted_at=at)
        again = gone.on_conflict_do_update(index_elements=["oid"], set_={"deleted_at": at})
        await self.connection.execute(again)

    async def keys_of_user(self, oid: str) -> int:
        statement = select(func.count()).select_from(keys).where(keys.c.user_oid == oid)
        return (await self.connection.execute(statement)).scalar_one()

    async def expire_lapsed_users(self, today: date, at: datetime, *, limit: int) -> Expiry:
        lapsed = (
            select(users.c.oid, users.c.payment_status)
            .where(users.c.payment_status.in_(["active", "trial"]), users.c.payment_valid_until < today)
            .order_by(users.c.payment_valid_until)
            .limit(limit)
            .cte("lapsed")
        )
        statement = (
            update(users)
            .where(users.c.oid == lapsed.c.oid)
            .values(payment_status="expired", updated_at=at)
            .returning(users.c.oid, lapsed.c.payment_status)
        )
        rows = sorted((await self.connection.execute(statement)).all())
        return Expiry(await self.user_count(), {row.oid: PaymentStatus(row.payment_status) for row in rows})

    async def user_count(self) -> int:
        return (await self.connection.execute(select(func.count()).select_from(users))).scalar_one()


_USER_ORDERS: dict[str, Order[UserRow]] = {
    "created_at": Order(users.c.created_at, lambda row: row.created_at, datetime),
    "user_oid": Order(users.c.oid, lambda row: row.spec.oid, str),
    "payment_valid_until": Order(
        literal_column(USER_PAID_UNTIL, Date),
        lambda row: row.spec.payment_valid_until or NO_DAY,
        date,
    ),
}


async def _plan_for_these_words(connection: AsyncConnection) -> None:
    """Whether an index serves a search hangs on its words, so a plan for any words would read the whole table."""
    await connection.execute(text("SET LOCAL plan_cache_mode = force_custom_plan"))


def _users() -> Select[Any]:
    return select(users, *held_columns(Scope.USER, users.c.oid))


def _user_values(spec: UserSpec) -> dict[str, object]:
    return {
        "oid": spec.oid,
        "email": spec.email,
        "name": spec.name,
        "payment_status": spec.payment_status.value,
        "payment_valid_until": spec.payment_valid_until,
        "log_content": spec.log_content.value if spec.log_content else null(),
    }


def _user_row(row: Row[Any]) -> UserRow:
    spec = UserSpec(
        oid=row.oid,
        email=row.email,
        name=row.name,
        payment_status=PaymentStatus(row.payment_status),
        payment_valid_until=row.payment_valid_until,
        limits=limits_from_json(row.limits),
        budgets=budgets_from_json(row.budgets),
        log_content=LogContent(row.log_content) if row.log_content else None,
    )
    return UserRow(spec, row.created_at, row.updated_at)


class SqlKeys:
    connection: AsyncConnection

    async def key(self, key_id: str) -> KeyRow | None:
        if not is_uuid(key_id):
            return None
        row = (await self.connection.execute(_keys().where(keys.c.id == key_id))).one_or_none()
        return None if row is None else _key_row(row)

    async def keys(self, query: ListQuery, now: datetime) -> Page[KeyRow]:
        statement = sorted_after(_keys(), query, _KEY_ORDERS, keys.c.id)
        if query.search and is_uuid(query.search):
            statement = statement.where(keys.c.id == query.search)
        elif query.search:
            await _plan_for_these_words(self.connection)
            statement = statement.where(within(KEY_WORDS, query.search))
        if query.status:
            statement = statement.where(_has_status(query.status, now))
        if query.user_oid:
            statement = statement.where(keys.c.user_oid == query.user_oid)
        if query.model:
            statement = statement.where(holds(keys.c.allowed_models, query.model))
        if query.ends_before:
            statement = statement.where(keys.c.expires_at < query.ends_before)
        if query.payment_status:
            owners = select(users.c.oid).where(users.c.payment_status == query.payment_status)
            statement = statement.where(keys.c.user_oid.in_(owners))
        for name, value in query.labels:
            has = keys.c.labels.has_key(name) if value is None else keys.c.labels.contains({name: value})
            statement = statement.where(has)
        rows = [_key_row(row) for row in await self.connection.execute(statement)]
        return sorted_page_of(rows, query, _KEY_ORDERS, lambda row: row.id)

    async def has_key_with_digest(self, digests: Sequence[bytes]) -> bool:
        return (
            await self.connection.execute(select(keys.c.id).where(keys.c.digest.in_(digests)).limit(1))
        ).scalar() is not None

    async def insert_key(self, key_id: str, spec: KeySpec, credential: Credential, at: datetime) -> None:
        values = {**_key_values(spec), **_credential_values(credential), "id": key_id}
        await self.connection.execute(insert(keys).values(**values, created_at=at, updated_at=at))
        await put_limits(self.connection, Scope.KEY, key_id, (spec.limits or (), spec.budgets), is_new=True)

    async def update_key(self, key_id: str, spec: KeySpec, at: datetime) -> None:
        await self.connection.execute(
            update(keys).where(keys.c.id == key_id).values(**_key_values(spec), updated_at=at)
        )
        await put_limits(self.connection, Scope.KEY, key_id, (spec.limits or (), spec.budgets), is_new=False)

    async def revoke_key(self, key_id: str, at: datetime) -> None:
        values = {"status": "revoked", "revoked_at": at, "updated_at": at}
        await self.connection.execute(update(keys).where(keys.c.id == key_id).values(**values))

    async def replace_credential(
        self, key_id: str, credential: Credential, at: datetime, *, old_ends_at: datetime
    ) -> Credential:
        stored = select(keys.c.digest, keys.c.key_prefix, keys.c.last4).where(keys.c.id == key_id)
        row = (await self.connection.execute(stored)).one()
        new = {**_credential_values(credential), "updated_at": at}
        await self.connection.execute(update(keys).where(keys.c.id == key_id).values(**new))
        old = Credential(digest=row.digest, prefix=row.key_prefix, last4=row.last4)
        await self._retire(key_id, old, at, old_ends_at)
        return old

    async def _retire(self, key_id: str, old: Credential, at: datetime, ends_at: datetime) -> None:
        """Keep the old secret until then; those before it end at that time too, and what has ended is forgotten."""
        of_key = former_credentials.c.key_id == key_id
        outlives = former_credentials.c.expires_at > ends_at
        await self.connection.execute(update(former_credentials).where(of_key, outlives).values(expires_at=ends_at))
        if ends_at > at:
            values = {**_credential_values(old), "key_id": key_id, "expires_at": ends_at}
            await self.connection.execute(insert(former_credentials).values(**values))
        await self.connection.execute(delete(former_credentials).where(of_key, former_credentials.c.expires_at <= at))

    async def keys_overflowing_to(self, model: str) -> list[str]:
        names = keys.c.overflow["fallback_model"].astext == model
        statement = select(keys.c.id).where(names, keys.c.status == "active").order_by(keys.c.id).limit(_SHOWN_USES)
        return list((await self.connection.execute(statement)).scalars())

    async def delete_key(self, key_id: str) -> None:
        await self.connection.execute(delete(keys).where(keys.c.id == key_id))

    async def usage_of_key(self, key_id: str, since: datetime, until: datetime) -> UsageSums:
        hour = usage_rollups.c.hour
        sums = [func.coalesce(func.sum(usage_rollups.c[name]), 0).label(name) for name in _SUMMED]
        statement = select(*sums).where(usage_rollups.c.key_id == key_id, hour >= since, hour < until)
        row = (await self.connection.execute(statement)).one()
        return UsageSums(key_id, subgroup=None, **{name: int(row._mapping[name]) for name in _SUMMED})


_KEY_ORDERS: dict[str, Order[KeyRow]] = {
    "created_at": Order(keys.c.created_at, lambda row: row.created_at, datetime),
    "name": Order(keys.c.name, lambda row: row.spec.name, str),
    "expires_at": Order(
        literal_column(KEY_END, DateTime(timezone=True)), lambda row: row.spec.expires_at or NEVER, datetime
    ),
    "last_used_at": Order(
        func.coalesce(keys.c.last_used_at, literal(NEVER)), lambda row: row.last_used_at or NEVER, datetime
    ),
}

_SHOWN_USES = 11
"""One more than a refusal names, so that it can say that there are others."""
_SUMMED = ("requests", "errors", "prompt_tokens", "completion_tokens", "cost_nanousd")


def _keys() -> Select[Any]:
    columns = [column for column in keys.c if column.name != "digest"]
    return select(*columns, *held_columns(Scope.KEY, keys.c.id))


def _has_status(status: str, now: datetime) -> ColumnElement[bool]:
    is_past = func.coalesce(keys.c.expires_at <= now, False)
    match status:
        case "active":
            return (keys.c.status == "active") & ~is_past
        case "expired":
            return (keys.c.status == "active") & is_past
        case _:
            return keys.c.status == status


def _key_values(spec: KeySpec) -> dict[str, object]:
    return {
        "user_oid": spec.user_oid,
        "name": spec.name,
        "allowed_models": list(spec.allowed_models),
        "expires_at": spec.expires_at,
        "allowed_ips": list(spec.allowed_ips),
        "log_content": spec.log_content.value if spec.log_content else null(),
        "has_own_limits": spec.limits is not None,
        "overflow": overflow_value(spec.overflow),
        "labels": dict(spec.labels),
    }


def _credential_values(credential: Credential) -> dict[str, object]:
    return {"digest": credential.digest, "key_prefix": credential.prefix, "last4": credential.last4}


def _key_row(row: Row[Any]) -> KeyRow:
    spec = KeySpec(
        user_oid=row.user_oid,
        name=row.name,
        allowed_models=tuple(row.allowed_models),
        expires_at=row.expires_at,
        allowed_ips=tuple(row.allowed_ips),
        log_content=LogContent(row.log_content) if row.log_content else None,
        limits=limits_from_json(row.limits) if row.has_own_limits else None,
        budgets=budgets_from_json(row.budgets),
        overflow=overflow_of(row.overflow),
        labels=row.labels,
    )
    return KeyRow(
        id=row.id,
        spec=spec,
        key_prefix=row.key_prefix,
        last4=row.last4,
        status=KeyStatus(row.status),
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


_APP_ORDERS: dict[str, Order[AppRow]] = {
    "created_at": Order(apps.c.created_at, lambda row: row.created_at, datetime),
    "name": Order(apps.c.name, lambda row: row.spec.name, str),
}


class SqlApps:
    connection: AsyncConnection

    async def app(self, app_id: str) -> AppRow | None:
        row = (await self.connection.execute(_apps().where(apps.c.app_id == app_id))).one_or_none()
        return None if row is None else _app_row(row)

    async def apps(self, query: ListQuery) -> Page[AppRow]:
        statement = sorted_after(_apps(), query, _APP_ORDERS, apps.c.app_id)
        if query.search:
            statement = statement.where(found(query.search, apps.c.app_id, apps.c.name))
        if query.status:
            statement = statement.where(apps.c.is_active == (query.status == "active"))
        if query.model:
            statement = statement.where(holds(apps.c.allowed_models, query.model))
        rows = [_app_row(row) for row in await self.connection.execute(statement)]
        return sorted_page_of(rows, query, _APP_ORDERS, lambda row: row.spec.app_id)

    async def insert_app(self, spec: AppSpec, at: datetime) -> None:
        await self.connection.execute(insert(apps).values(**_app_values(spec), created_at=at, updated_at=at))
        await put_limits(self.connection, Scope.APP, spec.app_id, (spec.limits, spec.budgets), is_new=True)

    async def update_app(self, spec: AppSpec, at: datetime) -> None:
        statement = update(apps).where(apps.c.app_id == spec.app_id).values(**_app_values(spec), updated_at=at)
        await self.connection.execute(statement)
        await put_limits(self.connection, Scope.APP, spec.app_id, (spec.limits, spec.budgets), is_new=False)

    async def delete_app(self, app_id: str) -> None:
        await self.connection.execute(delete(apps).where(apps.c.app_id == app_id))

    async def add_app_secret(self, secret_id: str, app_id: str, credential: Credential, at: datetime) -> None:
        values = {"id": secret_id, "app_id": app_id, "digest": credential.digest, "last4": credential.last4}
        await self.connection.execute(insert(app_secrets).values(**values, created_at=at))

    async def retire_app_secrets(self, app_id: str, expires_at: datetime) -> None:
        lasting = or_(app_secrets.c.expires_at.is_(None), app_secrets.c.expires_at > expires_at)
        statement = update(app_secrets).where(app_secrets.c.app_id == app_id, lasting).values(expires_at=expires_at)
        await self.connection.execute(statement)


def _apps() -> Select[Any]:
    newest = (
        select(app_secrets.c.last4)
        .where(app_secrets.c.app_id == apps.c.app_id)
        .order_by(app_secrets.c.created_at.desc(), app_secrets.c.expires_at.desc().nulls_first())
        .limit(1)
        .scalar_subquery()
        .label("secret_last4")
    )
    return select(apps, newest, *held_columns(Scope.APP, apps.c.app_id))


def _app_values(spec: AppSpec) -> dict[str, object]:
    return {
        "app_id": spec.app_id,
        "name": spec.name,
        "is_active": spec.is_active,
        "allowed_models": list(spec.allowed_models),
        "allowed_networks": list(spec.allowed_networks),
        "own_secret_only": spec.own_secret_only,
        "auto_create_users": spec.auto_create_users,
        "log_content": spec.log_content.value if spec.log_content else null(),
    }


def _app_row(row: Row[Any]) -> AppRow:
    spec = AppSpec(
        app_id=row.app_id,
        name=row.name,
        is_active=row.is_active,
        allowed_models=tuple(row.allowed_models),
        allowed_networks=tuple(row.allowed_networks),
        own_secret_only=row.own_secret_only,
        auto_create_users=row.auto_create_users,
        log_content=LogContent(row.log_content) if row.log_content else None,
        limits=limits_from_json(row.limits),
        budgets=budgets_from_json(row.budgets),
    )
    return AppRow(spec, row.secret_last4, row.created_at, row.updated_at)


class SqlAdmins:
    connection: AsyncConnection

    async def admin(self, admin_id: str) -> AdminRow | None:
        return await self._one(admins.c.id == admin_id) if is_uuid(admin_id) else None

    async def admin_by_digest(self, digest: bytes) -> AdminRow | None:
        return await self._one(admins.c.token_digest == digest)

    async def token_digests(self) -> frozenset[bytes]:
        valid = select(admins.c.token_digest).where(admins.c.revoked_at.is_(None))
        return frozenset(bytes(each) for each in (await self.connection.execute(valid)).scalars())

    async def _one(self, condition: ColumnElement[bool]) -> AdminRow | None:
        row = (await self.connection.execute(_admins().where(condition))).one_or_none()
        return None if row is None else _admin_row(row)

    async def admins(self, query: ListQuery) -> Page[AdminRow]:
        statement = after(_admins(), query.cursor, admins.c.created_at, admins.c.id, query.limit)
        if query.search:
            statement = statement.where(found(query.search, admins.c.name))
        rows = [_admin_row(row) for row in await self.connection.execute(statement)]
        return page_of(rows, query.limit, lambda row: (row.created_at, row.id))

    async def owners(self) -> list[AdminRow]:
        statement = _admins().where(admins.c.role == Role.OWNER.value)
        return [_admin_row(row) for row in await self.connection.execute(statement)]

    async def insert_admin(self, admin_id: str, spec: AdminSpec, credential: Credential, at: datetime) -> None:
        values = {"id": admin_id, "token_digest": credential.digest, "last4": credential.last4, **_admin_values(spec)}
        await self.connection.execute(insert(admins).values(**values, created_at=at, updated_at=at))

    async def update_admin(self, admin_id: str, spec: AdminSpec, at: datetime) -> None:
        statement = update(admins).where(admins.c.id == admin_id).values(**_admin_values(spec), updated_at=at)
        await self.connection.execute(statement)

    async def revoke_admin(self, admin_id: str, at: datetime) -> None:
        statement = update(admins).where(admins.c.id == admin_id).values(revoked_at=at, updated_at=at)
        await self.connection.execute(statement)

    async def replace_token(self, admin_id: str, credential: Credential, at: datetime) -> None:
        new = {"token_digest": credential.digest, "last4": credential.last4, "updated_at": at}
        await self.connection.execute(update(admins).where(admins.c.id == admin_id).values(**new))

    async def end_sessions(self, admin_id: str) -> None:
        await end_sessions_of(self.connection, admin_id)

    async def delete_admin(self, admin_id: str) -> None:
        await self.connection.execute(delete(admins).where(admins.c.id == admin_id))


def _admins() -> Select[Any]:
    return select(*(column for column in admins.c if column.name != "token_digest"))


def _admin_values(spec: AdminSpec) -> dict[str, object]:
    return {"name": spec.name, "role": spec.role.value, "expires_at": spec.expires_at}


def _admin_row(row: Row[Any]) -> AdminRow:
    spec = AdminSpec(row.name, Role(row.role), row.expires_at)
    return AdminRow(row.id, spec, row.last4, row.revoked_at, row.created_at)


_raise_many = text(
    """
    WITH raised AS (UPDATE config_revision SET revision = revision + :count WHERE id = 1 RETURNING revision),
         told AS (
             INSERT INTO config_changes (revision, kind, ref)
             SELECT raised.revision - :count + changed.place, :kind, changed.ref
             FROM raised, unnest(:refs) WITH ORDINALITY AS changed (ref, place)
         )
    SELECT revision FROM raised
    """
).bindparams(bindparam("refs", type_=ARRAY(Text)), bindparam("count", type_=BigInteger), bindparam("kind", type_=Text))


class SqlTransaction(SqlUsers, SqlKeys, SqlApps, SqlAdmins, SqlModels, SqlEndpoints):
    """`ManagementTransaction` on one connection."""

    def __init__(self, connection: AsyncConnection, revision: int) -> None:
        self.connection = connection
        self._revision = revision

    async def revision(self) -> int:
        return self._revision

    async def raise_revision(self, kind: str, ref: str) -> int:
        statement = (
            update(config_revision)
            .where(config_revision.c.id == literal(1))
            .values(revision=config_revision.c.revision + 1)
            .returning(config_revision.c.revision)
        )
        new = cast(int, (await self.connection.execute(statement)).scalar_one())
        await self.connection.execute(insert(config_changes).values(revision=new, kind=kind, ref=ref))
        return new

    async def raise_revisions(self, kind: str, refs: Sequence[str]) -> int:
        """One statement, however many: their revisions follow each other in the order of the refs."""
        raised = await self.connection.execute(_raise_many, {"kind": kind, "refs": list(refs), "count": len(refs)})
        return cast(int, raised.scalar_one())

    async def append_audit(self, entry: AuditEntry) -> None:
        await sql_audit.append(self.connection, entry)

    async def append_audit_alike(self, entry: AuditEntry, object_ids: Sequence[str]) -> None:
        await sql_audit.append_alike(self.connection, entry, object_ids)

    async def belongs_to(self) -> bytes | None:
        return await sql_secret_key.belongs_to(self.connection)

    async def reseal(self, sealer: Sealer, fingerprint: bytes, at: datetime) -> Resealed:
        return await sql_secret_key.reseal(self.connection, sealer, fingerprint, at)
