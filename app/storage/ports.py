"""What services ask of the stores, in the domain's verbs. Redis and PostgreSQL stand behind these; one conformance suite per
port runs against every adapter, on the real servers.

Every method may raise `DependencyUnavailable` when its store cannot be reached in time, and nothing else of the store's own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Protocol

import msgspec

from app.domain.budget import NO_NEED, Budget, BudgetClaim, BudgetState, Need
from app.domain.catalog import Catalog
from app.domain.identity import App, Identity, User
from app.domain.limits import Claim, ClaimState, Scope
from app.domain.money import NanoUsd
from app.domain.record import CallContent, CallRecord

# ── Counters: limits and budgets, exact across all processes ─────────────────────────────────────────────────────────


class Reservation(msgspec.Struct, frozen=True):
    """What one call claims, all or nothing. `record` is the record to write should the process be lost before it settles."""

    call_id: str
    claims: tuple[Claim, ...]
    budgets: tuple[BudgetClaim, ...]
    lease_s: int
    record: bytes
    need: Need = NO_NEED
    """What the budgets are to pay for."""


class Admitted(msgspec.Struct, frozen=True):
    """The states say what was claimed, and what there was before the claim (budgets) or is left after it (limits)."""

    limits: tuple[ClaimState, ...]
    budgets: tuple[BudgetState, ...]
    output_tokens: int
    """How many output tokens were reserved for; fewer than needed at most means that the budgets pay for no more."""


@dataclass(frozen=True, slots=True)
class LimitRefused:
    """One limit is used up; nothing was taken from any other. `retry_after_ms` is when the claim will fit again."""

    state: ClaimState
    retry_after_ms: int


@dataclass(frozen=True, slots=True)
class BudgetRefused:
    """One hard budget cannot pay: `state.spent_nanousd` says whether the money is spent or only reserved by running calls."""

    state: BudgetState


@dataclass(frozen=True, slots=True)
class BudgetsUnseeded:
    """These budget counters are absent: seed them from the ledger, then admit again."""

    claims: tuple[BudgetClaim, ...]


@dataclass(frozen=True, slots=True)
class EpochLost:
    """The store has lost its memory: what is running must be told to it again, then admit again."""


Admission = Admitted | LimitRefused | BudgetRefused | BudgetsUnseeded | EpochLost


class Settlement(msgspec.Struct, frozen=True):
    """The truth about an admitted call: what it cost, the tokens it used, and its record."""

    call_id: str
    cost_nanousd: NanoUsd
    tokens: int
    record: bytes


class Checkpoint(msgspec.Struct, frozen=True):
    """What to charge and to record of a running call should its process die from now on."""

    call_id: str
    cost_nanousd: NanoUsd
    record: bytes


class Counters(Protocol):
    async def admit(self, reservation: Reservation) -> Admission:
        """Claim everything in one atomic step, or nothing."""
        ...

    async def settle(self, settlement: Settlement) -> None:
        """Correct the counters to the truth, release the rest and append the record; a repeat changes nothing."""
        ...

    async def grow(self, call_id: str, output_tokens: int) -> int:
        """Reserve for so many output tokens in all. Returns how many are reserved for now: fewer, where there is no more money."""
        ...

    async def join(self, call_id: str, claims: Sequence[BudgetClaim]) -> None:
        """Let a running call hold these budgets too, whatever they can pay for; those it holds already are left alone."""
        ...

    async def checkpoint(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Replace what the reaper would write of these calls; one that has ended is left alone."""
        ...

    async def release(self, call_id: str, *, is_over: bool = True) -> None:
        """Give back a reservation whose call never reached an upstream: nothing was used, nothing is recorded.

        An admission of it that is still on its way then reserves nothing any more; with `is_over=False` the call may ask again.
        """
        ...

    async def seed(self, claim: BudgetClaim, spent: NanoUsd) -> None:
        """Create an absent budget counter with what the ledger says; one that exists is left alone."""
        ...

    async def renew(self, call_ids: Sequence[str], lease_s: int) -> list[str]:
        """Extend the leases of calls that are still running. Returns those that hold none any more: others may have their money."""
        ...

    async def expire_leases(self, limit: int) -> int:
        """Give back the claims of calls whose process is gone, and append the records they left. Returns how many."""
        ...

    async def budget_states(self, claims: Sequence[BudgetClaim]) -> list[BudgetState | None]:
        """Current states, None where the counter is absent."""
        ...

    async def limit_states(self, claims: Sequence[Claim]) -> list[ClaimState]: ...

    async def room_in_ms(self, claim: Claim, amount: int) -> int:
        """When so much more will fit into the claim's window, if nobody else takes anything of it; 0 is now."""
        ...


# ── What outlives a loss of memory ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Epoch:
    """How long the store has forgotten nothing. `drained` is the position up to which records are in the ledger ("" = unknown)."""

    token: str
    born_ms: int
    now_ms: int
    drained: str
    processes: int


@dataclass(frozen=True, slots=True)
class SeedTicket:
    """Leave to count one budget from the ledger; void once another record for that budget has come in."""

    position: str


@dataclass(frozen=True, slots=True)
class SeedingTooEarly:
    """Records that belong to the budget are still on their way to the ledger, or processes have not told yet what they know."""

    retry_after_ms: int


class Settled(msgspec.Struct, frozen=True):
    """`position` is the record's in the stream. `unknown_in` names the epoch in which no reservation was found, if none was."""

    position: str
    unknown_in: str | None = None


class SharedCounters(Counters, Protocol):
    """Counters that all processes share, in a store that may forget."""

    async def epoch(self) -> Epoch:
        """The present epoch; begins one where there is none. The asking process is counted as living."""
        ...

    async def reassert(self, reservation: Reservation, admitted: Admitted) -> None:
        """Tell again of a call that runs; one that is known is left alone."""
        ...

    async def book(
        self, settlement: Settlement, budgets: Sequence[str] | None, *, unless_known: bool = False
    ) -> Settled:
        """Settle; where no reservation is found, book the cost in the budgets whose counters are named (None: not at all), once.

        `unless_known`: do nothing where the call has a reservation, or has had one.
        """
        ...

    async def may_seed(self, claim: BudgetClaim) -> SeedTicket | SeedingTooEarly | EpochLost | None:
        """Ask before the ledger is read. None: it is seeded already."""
        ...

    async def seed_with(self, ticket: SeedTicket, claim: BudgetClaim, spent: NanoUsd) -> bool:
        """False when the ticket is void: ask again, read again."""
        ...


# ── The record's way to SQL ──────────────────────────────────────────────────────────────────────────────────────────


class PendingRecord(msgspec.Struct, frozen=True):
    position: str
    packed: bytes
    cost_nanousd: int | None = None
    """What was charged, where that was decided after the record was packed: it stands in place of the record's own figure."""


class UsageSink(Protocol):
    """Durable, ordered, between the calls and the ledger."""

    async def append(self, call_id: str, packed: bytes) -> str:
        """Append the record of a call that was refused, and give back what it may hold all the same, in one step.

        Returns its position; "" where it waits somewhere else for now.
        """
        ...

    async def pending(self, *, limit: int, wait_s: float) -> list[PendingRecord]:
        """The oldest records not yet confirmed; waits up to `wait_s` for the first."""
        ...

    async def confirm(self, records: Sequence[PendingRecord]) -> None:
        """Forget these (a leading run of what `pending` gave): they are in the ledger."""
        ...

    async def depth(self) -> int: ...


class UsageStore(Protocol):
    """The ledger."""

    async def write(self, records: Sequence[CallRecord]) -> int:
        """Insert records and add them to the rollups in one transaction; those already there are ignored.

        Returns how many were new. Raises: RecordsRejected when some can never be stored; the others then were.
        """
        ...

    async def write_content(self, contents: Sequence[CallContent]) -> None: ...

    async def spent(self, claim: BudgetClaim) -> NanoUsd:
        """What the ledger says this holder has spent in the claim's period."""
        ...

    async def recorded(self, call_ids: Sequence[str]) -> Mapping[str, bool]:
        """Those of the calls that are in the ledger, and whether it has them only as lost."""
        ...


# ── Calls that may be sent again ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class KnownCall:
    """A call whose `Idempotency-Key` was seen before; without an answer it is under way."""

    digest: bytes
    sealed: bytes | None = field(repr=False)


class CallRepeatStore(Protocol):
    async def begin(self, name: str, digest: bytes, *, held_ms: int) -> KnownCall | None:
        """Take the name. What is known of it where somebody has it already."""
        ...

    async def finish(self, name: str, digest: bytes, sealed: bytes, *, kept_ms: int) -> None: ...

    async def forget(self, name: str) -> None: ...


# ── Identities and the catalog ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class ConfigChange:
    revision: int
    kind: str
    """user, key, app, admin or catalog"""
    ref: str
    age_s: float = field(default=0.0, compare=False)
    """How long ago it was committed, by the database's clock."""


@dataclass(frozen=True, slots=True)
class StoredSecret:
    """What is stored of one of an app's secrets."""

    digest: bytes = field(repr=False)
    ends_at: datetime | None


@dataclass(frozen=True, slots=True)
class RegisteredApp:
    """An app with all that decides who may call in its name, and the user that was asked for, if there is one."""

    app: App
    secrets: tuple[StoredSecret, ...]
    own_secret_only: bool
    may_create_users: bool
    user: User | None


class KeyStore(Protocol):
    async def registered_app(self, app_id: str, user_oid: str) -> RegisteredApp | None:
        """One SQL statement: the app with its secrets, the user, their limits and budgets."""
        ...

    async def identity_of_key(self, digest: bytes) -> Identity | None:
        """One SQL statement: the key with its owner, their limits and budgets."""
        ...

    async def identities_of_keys(self, digests: Sequence[bytes]) -> dict[bytes, Identity]:
        """The same for many, by one statement; what is unknown is left out."""
        ...

    async def mark_expired(self, user_oid: str) -> None:
        """Store the status `expired` of a user whose paid time has run out."""
        ...

    async def mark_used(self, used: Sequence[tuple[str, datetime]]) -> None:
        """Store when keys were last used."""
        ...


class KeysById(Protocol):
    async def identity_of_key_id(self, key_id: str) -> Identity | None:
        """As `KeyStore.identity_of_key`, for an administrator who acts as the key without its secret."""
        ...


class BudgetStore(Protocol):
    async def budgets_of(self, scope: Scope, holder: str) -> tuple[Budget, ...]:
        """The budgets of a user, key or app."""
        ...


class CatalogStore(Protocol):
    async def load(self) -> Catalog:
        """The whole catalog at one revision (one repeatable-read snapshot), credentials decrypted."""
        ...

    async def renewed(self, catalog: Catalog, since: int) -> Catalog:
        """The catalog at one revision, of which this is the one of `since` or later: only what was changed in between is read.

        Models that did not change are the same objects.
        """
        ...

    async def revision(self) -> int: ...

    async def changes_since(self, revision: int) -> list[ConfigChange]:
        """In order. Empty when nothing changed. Where the first is not the next revision, those before it are no longer known:
        it may be an earlier one, of a database that was restored to what it was before.
        """
        ...

    async def forget_old_changes(self) -> None:
        """Those of more than a day ago, but for the newest, by which everybody sees how far behind he is."""
        ...


# ── Looking back ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class LogFilter:
    """What to search the log for; None means any."""

    request_id: str | None = None
    user_oid: str | None = None
    key_id: str | None = None
    app_id: str | None = None
    model: str | None = None
    outcome: str | None = None
    http_status: int | None = None
    since: datetime | None = None
    until: datetime | None = None
    client_request_id: str | None = None
    served_model: str | None = None
    endpoint_id: str | None = None
    provider: str | None = None
    dialect: str | None = None
    error_code: str | None = None
    is_stream: bool | None = None
    min_cost_nanousd: int | None = None
    max_cost_nanousd: int | None = None
    min_duration_ms: int | None = None
    max_duration_ms: int | None = None
    is_error: bool = False
    """Only calls that the sums count as errors, whatever went wrong; refused ones are none of them."""


ANY_CALL = LogFilter()


@dataclass(frozen=True, slots=True)
class LogPage:
    items: list[CallRecord]
    next_cursor: str | None
    looked_to: datetime | None = None
    """The log was looked through as far back as this, and the page is not full: the next one goes on from there."""


@dataclass(frozen=True, slots=True)
class UsageSums:
    """Sums over one group; `group` is its value (a model's name, a key's id, an hour …), `subgroup` that of a second grouping."""

    group: str
    requests: int
    errors: int
    prompt_tokens: int
    completion_tokens: int
    cost_nanousd: int
    subgroup: str | None = None


class ReportStore(Protocol):
    async def log_page(self, log_filter: LogFilter, *, limit: int, cursor: str | None) -> LogPage:
        """Newest first, paged by keyset over (created_at, request_id); refused calls included.

        A search that finds little in a long log answers with what it has after a while, and with where it goes on.
        """
        ...

    async def record(self, request_id: str) -> CallRecord | None: ...

    async def content(self, request_id: str) -> CallContent | None: ...

    async def summary(
        self, *, group_by: str, since: date | datetime, until: date | datetime, of: LogFilter = ANY_CALL
    ) -> list[UsageSums]:
        """From the rollups. `group_by`: key, user, app, model, endpoint, hour or day (UTC), or two of them with a comma between.

        `of` narrows by user, key, app, endpoint and the model that served; the rest of it does not count.
        """
        ...

    async def deletions(self, user_oids: Collection[str] | None) -> dict[str, datetime]:
        """When these users (None: all) were last deleted; those who never were are left out."""
        ...

    def export(self, log_filter: LogFilter) -> AsyncIterator[CallRecord]:
        """Every record that matches, streamed by a server-side cursor."""
        ...


class ContentEraser(Protocol):
    async def erase_content(self, user_oid: str) -> int:
        """Delete all kept bodies of a user's calls; returns how many there were."""
        ...
