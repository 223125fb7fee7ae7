"""Commands on users: the accounts that pay."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date
from typing import TypedDict

from app.domain.access import APP_PREFIX, Actor, Role
from app.domain.budget import Budget
from app.domain.identity import LogContent, PaymentStatus
from app.domain.limits import Limit
from app.exceptions import Conflict
from app.services.command import ANY_VERSION, Commands, Expected, missing, require_version
from app.services.management_rules import (
    require_budgets,
    require_email,
    require_limits,
    require_oid,
    require_text,
)
from app.storage.management_ports import Expiry, ListQuery, ManagementReader, Page, UserRow, UserSpec

EXPIRY_BATCH = 5_000
"""Users per transaction, which takes about a tenth of a second and holds other commands up for as long."""


NO_DEFAULTS = UserSpec("")
EXPIRED = PaymentStatus.EXPIRED
PAYING = (PaymentStatus.ACTIVE, PaymentStatus.TRIAL)


class UserChanges(TypedDict, total=False):
    email: str | None
    name: str | None
    payment_status: PaymentStatus
    payment_valid_until: date | None
    limits: tuple[Limit, ...]
    budgets: tuple[Budget, ...]
    log_content: LogContent | None


@dataclass(frozen=True, slots=True)
class UserCommands:
    commands: Commands
    defaults: UserSpec = NO_DEFAULTS
    """The limits and budgets of users for whom none are given."""

    async def get(self, oid: str) -> UserRow:
        async with self.commands.reading() as reader:
            return await existing_user(reader, oid)

    async def page(self, query: ListQuery) -> Page[UserRow]:
        async with self.commands.reading() as reader:
            return await reader.users(query)

    async def create(self, actor: Actor, spec: UserSpec) -> UserRow:
        _require_valid(spec)
        async with self.commands.opened(actor) as command:
            if await command.tx.user(spec.oid) is not None:
                raise Conflict(f"There is a user '{spec.oid}' already.", param="user_oid")
            await command.tx.insert_user(spec, command.now)
            await command.audit("user.create", spec.oid, after=spec)
            await command.announce("user", spec.oid)
            return UserRow(spec, command.now, command.now)

    async def create_on_sight(self, oid: str, app_id: str) -> None:
        """A user whom an app is the first to name. One who is there is left alone: of several apps at once the first creates."""
        spec = replace(self.defaults, oid=oid)
        _require_valid(spec)
        async with self.commands.opened(Actor(f"{APP_PREFIX}{app_id}", Role.BILLING)) as command:
            if await command.tx.user(oid) is None:
                await command.tx.insert_user(spec, command.now)
                await command.audit("user.create", oid, after=spec)
                await command.announce("user", oid)

    async def patch(
        self,
        actor: Actor,
        oid: str,
        changes: UserChanges,
        *,
        expected: Expected = ANY_VERSION,
        today: date | None = None,
    ) -> UserRow:
        """With `today`, a last paid day that is put off brings an expired user back, unless the status is named too."""
        async with self.commands.opened(actor) as command:
            row = await existing_user(command.tx, oid)
            require_version(row.spec, expected)
            spec = replace(row.spec, **changes)
            if today is not None and _has_paid_again(row.spec, changes, today):
                spec = replace(spec, payment_status=PaymentStatus.ACTIVE)
            _require_valid(spec)
            await command.tx.update_user(spec, command.now)
            await command.audit("user.update", oid, before=row.spec, after=spec)
            await command.announce("user", oid)
            return UserRow(spec, row.created_at, command.now)

    async def delete(self, actor: Actor, oid: str, *, expected: Expected = ANY_VERSION) -> None:
        """Delete a user with all its keys. Its usage records stay."""
        async with self.commands.opened(actor) as command:
            row = await existing_user(command.tx, oid)
            require_version(row.spec, expected)
            keys = await command.tx.keys_of_user(oid)
            await command.tx.delete_user(oid, command.now)
            await command.audit("user.delete", oid, before={"user": row.spec, "keys": keys})
            await command.announce("user", oid)

    async def sync_expiry(self, actor: Actor, oid: str, today: date) -> UserRow:
        """Store `expired` where the last paid day lies before `today`; anything else stays as it is."""
        async with self.commands.opened(actor) as command:
            row = await existing_user(command.tx, oid)
            if not _has_lapsed(row.spec, today):
                return row
            spec = replace(row.spec, payment_status=PaymentStatus.EXPIRED)
            await command.tx.update_user(spec, command.now)
            await command.audit("user.expire", oid, before=row.spec, after=spec)
            await command.announce("user", oid)
            return UserRow(spec, row.created_at, command.now)

    async def sync_all_expiries(self, actor: Actor, today: date) -> Expiry:
        """`sync_expiry` of all users, in batches, so that no transaction holds up other commands for long."""
        expired: dict[str, PaymentStatus] = {}
        while True:
            async with self.commands.opened(actor) as command:
                batch = await command.tx.expire_lapsed_users(today, command.now, limit=EXPIRY_BATCH)
                for was in PAYING:
                    before, after = {"payment_status": was}, {"payment_status": EXPIRED}
                    oids = [oid for oid, status in batch.expired.items() if status is was]
                    await command.audit_alike("user.expire", oids, before=before, after=after)
                await command.announce_all("user", list(batch.expired))
            expired |= batch.expired
            if len(batch.expired) < EXPIRY_BATCH:
                return Expiry(batch.checked, expired)


async def existing_user(reader: ManagementReader, oid: str) -> UserRow:
    row = await reader.user(oid)
    if row is None:
        raise missing("user", "user_oid")
    return row


def _has_paid_again(before: UserSpec, changes: UserChanges, today: date) -> bool:
    if before.payment_status is not EXPIRED or "payment_status" in changes or "payment_valid_until" not in changes:
        return False
    until = changes["payment_valid_until"]
    return until is None or until >= today


def _has_lapsed(spec: UserSpec, today: date) -> bool:
    return spec.payment_status in PAYING and spec.payment_valid_until is not None and spec.payment_valid_until < today


def _require_valid(spec: UserSpec) -> None:
    require_oid(spec.oid)
    require_email(spec.email)
    require_text(spec.name or "", "name")
    require_limits(spec.limits)
    require_budgets(spec.budgets)
