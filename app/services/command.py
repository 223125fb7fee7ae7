"""The frame of every admin command: one transaction, one audit row, announced after the commit."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, TypeVar, cast
from uuid import uuid4

import msgspec

from app.clock import Clock
from app.domain.access import Actor
from app.exceptions import NotFound, VersionConflict
from app.storage.management_ports import AuditEntry, ManagementReader, ManagementStore, ManagementTransaction
from app.telemetry import logger

Publish = Callable[[int, str, str], Awaitable[None]]
"""Tell the other processes: the revision, the kind of object (user, key, app, admin, catalog) and its id."""

Expected = frozenset[str]
"""The versions of an object that a change is meant for."""
ANY_VERSION: Expected = frozenset({"*"})

PUBLISH_TIMEOUT_S = 1.0
"""The change is committed already and every process polls once a second: waiting longer would gain nothing."""


@dataclass(slots=True)
class Command:
    """One command while its transaction is open."""

    tx: ManagementTransaction
    actor: Actor
    now: datetime
    announced: list[tuple[int, str, str]] = field(default_factory=list)

    async def audit(self, action: str, object_id: str, *, before: object = None, after: object = None) -> None:
        """Write the command's audit row. `action` is "kind.verb"; `before` and `after` are specs or plain values."""
        kind = action.partition(".")[0]
        await self.tx.append_audit(
            AuditEntry(self.now, self.actor, action, kind, object_id, snapshot(before), snapshot(after))
        )

    async def audit_alike(self, action: str, object_ids: Sequence[str], *, before: object, after: object) -> None:
        """An audit row for each of many objects to which one command does the same."""
        kind = action.partition(".")[0]
        entry = AuditEntry(self.now, self.actor, action, kind, "", snapshot(before), snapshot(after))
        if object_ids:
            await self.tx.append_audit_alike(entry, object_ids)

    async def announce_all(self, kind: str, refs: Sequence[str]) -> None:
        """Announce many objects by one message: whoever hears of it asks what has changed."""
        if refs:
            self.announced.append((await self.tx.raise_revisions(kind, refs), kind, refs[-1]))

    async def announce(self, kind: str, ref: str) -> None:
        self.announced.append((await self.tx.raise_revision(kind, ref), kind, ref))


@dataclass(frozen=True, slots=True)
class Commands:
    """Opens commands. One per process."""

    store: ManagementStore
    clock: Clock
    publish: Publish

    @asynccontextmanager
    async def opened(self, actor: Actor) -> AsyncIterator[Command]:
        async with self.store.command() as tx:
            command = Command(tx, actor, self.clock.now())
            yield command
        await self._publish(command)

    def reading(self) -> AbstractAsyncContextManager[ManagementReader]:
        return self.store.reading()

    async def _publish(self, command: Command) -> None:
        """A message that cannot be sent is not a command that failed: what it announces is committed."""
        try:
            async with asyncio.timeout(PUBLISH_TIMEOUT_S):
                for revision, kind, ref in command.announced:
                    await self.publish(revision, kind, ref)
        except Exception:  # noqa: BLE001 - whatever the messenger raises, the change stands and polling brings it
            logger.warning("change_not_published", revisions=[revision for revision, _, _ in command.announced])


@dataclass(frozen=True, slots=True)
class Part:
    """What a patch names of a field that is made of several, to be laid over what is there."""

    onto: Callable[[Any], object]


Spec = TypeVar("Spec")


def patched(spec: Spec, changes: Mapping[str, object]) -> Spec:
    """The spec with what was named."""
    new = {
        name: change.onto(getattr(spec, name)) if isinstance(change, Part) else change
        for name, change in changes.items()
    }
    return cast(Spec, replace(cast(Any, spec), **new))


def snapshot(value: object) -> object:
    """A spec as plain JSON values, for the audit trail. Money stays an integer, in the unit that its name says."""
    return None if value is None else _as_set(msgspec.to_builtins(value, str_keys=True))


def _as_set(value: object) -> object:
    """Without what is kept of a budget that nobody sets."""
    match value:
        case dict():
            return {name: _as_set(each) for name, each in value.items() if name != "opened_ms"}
        case list() | tuple():
            return [_as_set(each) for each in value]
        case _:
            return value


def version_of(spec: object) -> str:
    """What an administrator has set, in 128 bits: the same as long as nobody has set anything else.

    A price's row in the history is not for him to set: a new spec has none yet.
    """
    price = getattr(spec, "price", None)
    if price is not None:
        spec = replace(cast(Any, spec), price=replace(price, id=""))
    return hashlib.sha256(msgspec.json.encode(snapshot(spec), order="deterministic")).hexdigest()[:32]


def require_version(spec: object, expected: Expected) -> None:
    """Raises: VersionConflict when the object is no more what the caller has read."""
    if expected != ANY_VERSION and version_of(spec) not in expected:
        raise VersionConflict("It was changed since you have read it: read it again, then change it.")


def missing(what: str, param: str) -> NotFound:
    """The refusal for an object that is not there; `param` is the field or path segment that named it."""
    error = NotFound(f"There is no such {what}.")
    error.param = param
    return error


def new_id() -> str:
    """An id of a row: random, so that it says nothing about how many there are."""
    return str(uuid4())
