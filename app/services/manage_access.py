"""Commands on credentials: keys of users, registered apps, administrators. A secret is returned once, to its maker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypedDict

from app.domain.access import Actor, Role, is_reserved_name
from app.domain.budget import Budget
from app.domain.identity import KeyStatus, LogContent, Overflow
from app.domain.limits import Limit
from app.exceptions import Conflict, Forbidden, InvalidRequest
from app.services.api_key import ADMIN_TOKEN_PREFIX, APP_SECRET_PREFIX, NewKey, new_key
from app.services.command import ANY_VERSION, Commands, Expected, Part, missing, new_id, patched, require_version
from app.services.manage_users import existing_user
from app.services.management_rules import (
    checked_networks,
    require_app_id,
    require_budgets,
    require_labels,
    require_limits,
    require_overflow,
    require_text,
    require_texts,
)
from app.storage.management_ports import (
    AdminRow,
    AdminSpec,
    AppRow,
    AppSpec,
    Credential,
    KeyRow,
    KeySpec,
    ListQuery,
    ManagementReader,
    Page,
)
from app.storage.ports import UsageSums


def _stored(made: NewKey) -> Credential:
    return Credential(made.digest, made.prefix, made.last4)


# ── Keys ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


class KeyChanges(TypedDict, total=False):
    name: str
    allowed_models: tuple[str, ...]
    expires_at: datetime | None
    allowed_ips: tuple[str, ...]
    log_content: LogContent | None
    limits: tuple[Limit, ...] | None
    budgets: tuple[Budget, ...]
    overflow: Overflow | Part
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class KeyCommands:
    commands: Commands
    pepper: bytes

    async def get(self, key_id: str) -> KeyRow:
        async with self.commands.reading() as reader:
            return await _existing_key(reader, key_id)

    async def page(self, query: ListQuery) -> Page[KeyRow]:
        async with self.commands.reading() as reader:
            return await reader.keys(query, self.commands.clock.now())

    async def usage(self, key_id: str, *, since: datetime, until: datetime) -> tuple[KeyRow, UsageSums]:
        """The key and what it has used between two times, in whole hours."""
        async with self.commands.reading() as reader:
            row = await _existing_key(reader, key_id)
            return row, await reader.usage_of_key(key_id, since, until)

    async def create(self, actor: Actor, spec: KeySpec) -> tuple[KeyRow, str]:
        """Returns the key and, this once, its secret."""
        made = new_key(self.pepper)
        async with self.commands.opened(actor) as command:
            await existing_user(command.tx, spec.user_oid)
            spec = await checked_key(command.tx, spec)
            row = _key_row(new_id(), spec, made, command.now)
            await command.tx.insert_key(row.id, spec, _stored(made), command.now)
            await command.audit("key.create", row.id, after=spec)
            await command.announce("key", row.id)
            return row, made.secret

    async def patch(
        self, actor: Actor, key_id: str, changes: KeyChanges, *, expected: Expected = ANY_VERSION
    ) -> KeyRow:
        async with self.commands.opened(actor) as command:
            row = await _existing_key(command.tx, key_id)
            require_version(row.spec, expected)
            spec = await checked_key(command.tx, patched(row.spec, changes))
            await command.tx.update_key(key_id, spec, command.now)
            await command.audit("key.update", key_id, before=row.spec, after=spec)
            await command.announce("key", key_id)
            return replace(row, spec=spec, updated_at=command.now)

    async def revoke(self, actor: Actor, key_id: str) -> KeyRow:
        """Refuse the key from now on, for good; to revoke it again changes nothing."""
        async with self.commands.opened(actor) as command:
            row = await _existing_key(command.tx, key_id)
            if row.status is KeyStatus.REVOKED:
                return row
            await command.tx.revoke_key(key_id, command.now)
            await command.audit("key.revoke", key_id, before={"status": row.status}, after={"status": "revoked"})
            await command.announce("key", key_id)
            return replace(row, status=KeyStatus.REVOKED, revoked_at=command.now, updated_at=command.now)

    async def rotate(self, actor: Actor, key_id: str, *, grace_s: int) -> tuple[KeyRow, str]:
        """Give the key a new secret and return it, this once. The key stays the same: its id, limits and spend.

        The old secret means this key for `grace_s` seconds more; with 0 it ends now. No secret of before outlives it.
        """
        made = new_key(self.pepper)
        async with self.commands.opened(actor) as command:
            row = await _existing_key(command.tx, key_id)
            if row.status_at(command.now) != "active":
                raise Conflict("Only an active key can be rotated; make a new one instead.")
            old = await command.tx.replace_credential(
                key_id, _stored(made), command.now, old_ends_at=command.now + timedelta(seconds=grace_s)
            )
            shown = {"key_prefix": made.prefix, "last4": made.last4, "grace_seconds": grace_s}
            await command.audit(
                "key.rotate", key_id, before={"key_prefix": old.prefix, "last4": old.last4}, after=shown
            )
            await command.announce("key", key_id)
            return replace(row, key_prefix=made.prefix, last4=made.last4, updated_at=command.now), made.secret

    async def delete(self, actor: Actor, key_id: str, *, expected: Expected = ANY_VERSION) -> None:
        """Delete the key; its usage records stay."""
        async with self.commands.opened(actor) as command:
            row = await _existing_key(command.tx, key_id)
            require_version(row.spec, expected)
            await command.tx.delete_key(key_id)
            await command.audit("key.delete", key_id, before=row.spec)
            await command.announce("key", key_id)


async def _existing_key(reader: ManagementReader, key_id: str) -> KeyRow:
    row = await reader.key(key_id)
    if row is None:
        raise missing("key", "id")
    return row


async def checked_key(reader: ManagementReader, spec: KeySpec) -> KeySpec:
    require_text(spec.name, "name")
    require_texts(spec.allowed_models, "allowed_models")
    require_limits(spec.limits or ())
    require_budgets(spec.budgets)
    require_labels(spec.labels)
    fallback = spec.overflow.fallback_model
    require_overflow(spec.overflow, await reader.models_behind([fallback]) if fallback is not None else ())
    return replace(spec, allowed_ips=checked_networks(spec.allowed_ips, "allowed_ips"))


def _key_row(key_id: str, spec: KeySpec, made: NewKey, now: datetime) -> KeyRow:
    return KeyRow(
        id=key_id,
        spec=spec,
        key_prefix=made.prefix,
        last4=made.last4,
        status=KeyStatus.ACTIVE,
        revoked_at=None,
        last_used_at=None,
        created_at=now,
        updated_at=now,
    )


# ── Apps ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


class AppChanges(TypedDict, total=False):
    name: str
    is_active: bool
    allowed_models: tuple[str, ...]
    allowed_networks: tuple[str, ...]
    own_secret_only: bool
    auto_create_users: bool
    log_content: LogContent | None
    limits: tuple[Limit, ...]
    budgets: tuple[Budget, ...]


@dataclass(frozen=True, slots=True)
class AppCommands:
    commands: Commands
    pepper: bytes

    async def get(self, app_id: str) -> AppRow:
        async with self.commands.reading() as reader:
            return await _existing_app(reader, app_id)

    async def page(self, query: ListQuery) -> Page[AppRow]:
        async with self.commands.reading() as reader:
            return await reader.apps(query)

    async def create(self, actor: Actor, spec: AppSpec) -> tuple[AppRow, str]:
        """Returns the app and, this once, its own secret."""
        spec = _checked_app(spec)
        made = new_key(self.pepper, APP_SECRET_PREFIX)
        async with self.commands.opened(actor) as command:
            if await command.tx.app(spec.app_id) is not None:
                raise Conflict(f"There is an app '{spec.app_id}' already.", param="app_id")
            await command.tx.insert_app(spec, command.now)
            await command.tx.add_app_secret(new_id(), spec.app_id, _stored(made), command.now)
            await command.audit("app.create", spec.app_id, after=spec)
            await command.announce("app", spec.app_id)
            return AppRow(spec, made.last4, command.now, command.now), made.secret

    async def patch(
        self, actor: Actor, app_id: str, changes: AppChanges, *, expected: Expected = ANY_VERSION
    ) -> AppRow:
        async with self.commands.opened(actor) as command:
            row = await _existing_app(command.tx, app_id)
            require_version(row.spec, expected)
            spec = _checked_app(replace(row.spec, **changes))
            await command.tx.update_app(spec, command.now)
            await command.audit("app.update", app_id, before=row.spec, after=spec)
            await command.announce("app", app_id)
            return replace(row, spec=spec, updated_at=command.now)

    async def rotate_secret(self, actor: Actor, app_id: str, *, grace_s: int) -> tuple[AppRow, str]:
        """Give the app a new secret and return it, this once; the old one stays valid for `grace_s` seconds."""
        made = new_key(self.pepper, APP_SECRET_PREFIX)
        async with self.commands.opened(actor) as command:
            row = await _existing_app(command.tx, app_id)
            await command.tx.retire_app_secrets(app_id, command.now + timedelta(seconds=grace_s))
            await command.tx.add_app_secret(new_id(), app_id, _stored(made), command.now)
            shown = {"last4": made.last4, "grace_seconds": grace_s}
            await command.audit("app.rotate_secret", app_id, before={"last4": row.secret_last4}, after=shown)
            await command.announce("app", app_id)
            return replace(row, secret_last4=made.last4), made.secret

    async def delete(self, actor: Actor, app_id: str, *, expected: Expected = ANY_VERSION) -> None:
        async with self.commands.opened(actor) as command:
            row = await _existing_app(command.tx, app_id)
            require_version(row.spec, expected)
            await command.tx.delete_app(app_id)
            await command.audit("app.delete", app_id, before=row.spec)
            await command.announce("app", app_id)


async def _existing_app(reader: ManagementReader, app_id: str) -> AppRow:
    row = await reader.app(app_id)
    if row is None:
        raise missing("app", "app_id")
    return row


def _checked_app(spec: AppSpec) -> AppSpec:
    require_app_id(spec.app_id)
    require_text(spec.name, "name")
    require_texts(spec.allowed_models, "allowed_models")
    require_limits(spec.limits)
    require_budgets(spec.budgets)
    return replace(spec, allowed_networks=checked_networks(spec.allowed_networks, "allowed_networks"))


# ── Administrators ────────────────────────────────────────────────────────────────────────────────────────────────────


class AdminChanges(TypedDict, total=False):
    name: str
    role: Role
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class AdminCommands:
    commands: Commands
    pepper: bytes
    has_bootstrap_token: bool
    """Whether `ADMIN_TOKEN` is set: it is an owner too, so the last owner among the rows may then go."""

    async def get(self, admin_id: str) -> AdminRow:
        async with self.commands.reading() as reader:
            return await _existing_admin(reader, admin_id)

    async def page(self, query: ListQuery) -> Page[AdminRow]:
        async with self.commands.reading() as reader:
            return await reader.admins(query)

    async def create(self, actor: Actor, spec: AdminSpec) -> tuple[AdminRow, str]:
        """Returns the administrator and, this once, the token."""
        _require_name(spec.name)
        _require_rank(actor, spec.role)
        _require_no_longer_than_himself(actor, spec)
        made = new_key(self.pepper, ADMIN_TOKEN_PREFIX)
        async with self.commands.opened(actor) as command:
            row = AdminRow(new_id(), spec, made.last4, None, command.now)
            await command.tx.insert_admin(row.id, spec, _stored(made), command.now)
            await command.audit("admin.create", row.id, after=spec)
            await command.announce("admin", row.id)
            return row, made.secret

    async def patch(
        self, actor: Actor, admin_id: str, changes: AdminChanges, *, expected: Expected = ANY_VERSION
    ) -> AdminRow:
        async with self.commands.opened(actor) as command:
            row = await _existing_admin(command.tx, admin_id)
            require_version(row.spec, expected)
            spec = replace(row.spec, **changes)
            _require_rank(actor, row.spec.role, spec.role)
            if spec.name != row.spec.name:
                _require_name(spec.name)
            if spec.expires_at != row.spec.expires_at:
                _require_no_longer_than_himself(actor, spec)
            if spec.role is not Role.OWNER or spec.expires_at is not None:
                await self._require_not_last_owner(command.tx, row, command.now)
            await command.tx.update_admin(admin_id, spec, command.now)
            if spec.role is not row.spec.role:
                await command.tx.end_sessions(admin_id)
            await command.audit("admin.update", admin_id, before=row.spec, after=spec)
            await command.announce("admin", admin_id)
            return replace(row, spec=spec)

    async def revoke(self, actor: Actor, admin_id: str) -> AdminRow:
        async with self.commands.opened(actor) as command:
            row = await _existing_admin(command.tx, admin_id)
            _require_rank(actor, row.spec.role)
            if row.revoked_at is not None:
                return row
            await self._require_not_last_owner(command.tx, row, command.now)
            await command.tx.revoke_admin(admin_id, command.now)
            await command.tx.end_sessions(admin_id)
            await command.audit("admin.revoke", admin_id, before=row.spec)
            await command.announce("admin", admin_id)
            return replace(row, revoked_at=command.now)

    async def rotate(self, actor: Actor, admin_id: str) -> tuple[AdminRow, str]:
        """Give the administrator a new token and return it, this once. The old one and its sessions end now."""
        made = new_key(self.pepper, ADMIN_TOKEN_PREFIX)
        async with self.commands.opened(actor) as command:
            row = await _existing_admin(command.tx, admin_id)
            _require_rank(actor, row.spec.role)
            if not row.is_active_at(command.now):
                raise Conflict("Only an active administrator's token can be rotated; make a new one instead.")
            await command.tx.replace_token(admin_id, _stored(made), command.now)
            await command.tx.end_sessions(admin_id)
            await command.audit("admin.rotate", admin_id, before={"last4": row.last4}, after={"last4": made.last4})
            await command.announce("admin", admin_id)
            return replace(row, last4=made.last4), made.secret

    async def delete(self, actor: Actor, admin_id: str, *, expected: Expected = ANY_VERSION) -> None:
        async with self.commands.opened(actor) as command:
            row = await _existing_admin(command.tx, admin_id)
            require_version(row.spec, expected)
            _require_rank(actor, row.spec.role)
            await self._require_not_last_owner(command.tx, row, command.now)
            await command.tx.delete_admin(admin_id)
            await command.audit("admin.delete", admin_id, before=row.spec)
            await command.announce("admin", admin_id)

    async def _require_not_last_owner(self, reader: ManagementReader, row: AdminRow, now: datetime) -> None:
        if self.has_bootstrap_token or row.spec.role is not Role.OWNER or not row.is_active_at(now):
            return
        lasting = [each for each in await reader.owners() if each.is_active_at(now) and each.spec.expires_at is None]
        if not any(each.id != row.id for each in lasting):
            raise Conflict("This is the last owner: make another one first.", param="id")


async def _existing_admin(reader: ManagementReader, admin_id: str) -> AdminRow:
    row = await reader.admin(admin_id)
    if row is None:
        raise missing("administrator", "id")
    return row


def _require_rank(actor: Actor, *roles: Role) -> None:
    """Owners are made, changed and removed by owners only: nobody hands out more than he has."""
    if Role.OWNER in roles and actor.role is not Role.OWNER:
        raise Forbidden("Only an owner may do that to an owner.")


def _require_no_longer_than_himself(actor: Actor, spec: AdminSpec) -> None:
    ends_at = actor.expires_at
    if ends_at is not None and (spec.expires_at is None or spec.expires_at > ends_at):
        raise Forbidden("Your own token expires: it can make none that lasts longer.")


def _require_name(name: str) -> None:
    require_text(name, "name", may_be_empty=False)
    if is_reserved_name(name):
        raise InvalidRequest("'name' would pass for somebody else in the audit trail.", param="name")
