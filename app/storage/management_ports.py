"""What administration asks of the database, and the values it speaks in.

Each kind of object has a *spec* (what an administrator sets; a change is a new spec) and a *row* (the spec as stored, with
what the gateway adds to it). A `ManagementTransaction` is one open transaction: all of its changes and their audit row are
committed together or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Generic, Protocol, TypeVar

from app.domain.access import Actor, Role
from app.domain.breaker import BreakerRules
from app.domain.budget import Budget
from app.domain.catalog import HealthCheck, ProviderKind, Shadow, Sticky, Strategy, Timeouts
from app.domain.identity import KeyStatus, LogContent, Overflow, PaymentStatus
from app.domain.limits import Limit
from app.domain.pricing import Price
from app.storage.ports import UsageSums

Row = TypeVar("Row")

# ── Specs and rows ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class UserSpec:
    oid: str
    email: str | None = None
    name: str | None = None
    payment_status: PaymentStatus = PaymentStatus.ACTIVE
    payment_valid_until: date | None = None
    limits: tuple[Limit, ...] = ()
    budgets: tuple[Budget, ...] = ()
    log_content: LogContent | None = None


@dataclass(frozen=True, slots=True)
class UserRow:
    spec: UserSpec
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class KeySpec:
    user_oid: str
    name: str = ""
    allowed_models: tuple[str, ...] = ("*",)
    expires_at: datetime | None = None
    allowed_ips: tuple[str, ...] = ()
    log_content: LogContent | None = None
    limits: tuple[Limit, ...] | None = None
    """None: the defaults of the settings hold; empty: no limit."""
    budgets: tuple[Budget, ...] = ()
    overflow: Overflow = Overflow()
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class KeyRow:
    id: str
    spec: KeySpec
    key_prefix: str
    last4: str
    status: KeyStatus
    revoked_at: datetime | None
    last_used_at: datetime | None
    created_at: datetime
    updated_at: datetime

    def status_at(self, now: datetime) -> str:
        """active, expired or revoked: what a list shows."""
        if self.status is KeyStatus.ACTIVE and self.spec.expires_at is not None and self.spec.expires_at <= now:
            return "expired"
        return self.status.value


@dataclass(frozen=True, slots=True)
class Credential:
    """What is stored of an issued credential."""

    digest: bytes = field(repr=False)
    prefix: str
    last4: str


@dataclass(frozen=True, slots=True)
class AppSpec:
    app_id: str
    name: str = ""
    is_active: bool = True
    allowed_models: tuple[str, ...] = ("*",)
    allowed_networks: tuple[str, ...] = ()
    own_secret_only: bool = False
    auto_create_users: bool = False
    log_content: LogContent | None = None
    limits: tuple[Limit, ...] = ()
    budgets: tuple[Budget, ...] = ()


@dataclass(frozen=True, slots=True)
class AppRow:
    spec: AppSpec
    secret_last4: str | None
    """Of the newest secret."""
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class ModelSpec:
    name: str
    aliases: tuple[str, ...] = ()
    strategy: Strategy = Strategy.ROUND_ROBIN
    fallbacks: tuple[str, ...] = ()
    sticky: Sticky | None = None
    max_retries: int | None = None
    shadow: Shadow | None = None
    context_window: int | None = None
    max_output_tokens: int | None = None
    price: Price | None = None
    """None: from the price map."""
    limits: tuple[Limit, ...] = ()
    budgets: tuple[Budget, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelRow:
    spec: ModelSpec
    endpoints: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    model: str
    provider: ProviderKind
    upstream_model: str
    api_base: str = ""
    weight: int = 1
    priority: int = 0
    max_concurrency: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    timeouts: Timeouts = Timeouts()
    health_check: HealthCheck = HealthCheck()
    breaker: BreakerRules = BreakerRules()
    is_draining: bool = False
    price: Price | None = None
    """None: the model's."""


@dataclass(frozen=True, slots=True)
class SealedCredential:
    sealed: bytes = field(repr=False)
    last4: str


@dataclass(frozen=True, slots=True)
class EndpointRow:
    id: str
    spec: EndpointSpec
    credential_last4: str | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class AdminSpec:
    name: str
    role: Role
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class AdminRow:
    id: str
    spec: AdminSpec
    last4: str
    revoked_at: datetime | None
    created_at: datetime

    def is_active_at(self, now: datetime) -> bool:
        return self.revoked_at is None and (self.spec.expires_at is None or self.spec.expires_at > now)


# ── Lists ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class ListQuery:
    """One page of a list, newest first. `search` is looked for anywhere in the object's names; None filters match all."""

    limit: int = 50
    cursor: str | None = None
    search: str | None = None
    status: str | None = None
    user_oid: str | None = None
    model: str | None = None
    payment_status: str | None = None
    """Of users, and of the owners of keys."""
    ends_before: datetime | None = None
    """Of keys: which expire before this moment."""
    paid_before: date | None = None
    """Of users: whose last paid day lies before this one."""
    labels: tuple[tuple[str, str | None], ...] = ()
    """Of keys: all of these, with any value where there is None."""
    sort: str | None = None
    """What to put in order by, with a minus in front from the greatest on; None: the newest first."""


@dataclass(frozen=True, slots=True)
class Page(Generic[Row]):
    items: list[Row]
    next_cursor: str | None


# ── The trail ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """What is written about one command. `before` and `after` hold no secrets: specs have none."""

    at: datetime
    actor: Actor
    action: str
    object_kind: str
    object_id: str
    before: object = None
    after: object = None


@dataclass(frozen=True, slots=True)
class AuditRow:
    id: int
    at: datetime
    actor: str
    role: str
    address: str | None
    action: str
    object_kind: str
    object_id: str
    before: object
    after: object
    hash: bytes


@dataclass(frozen=True, slots=True)
class AuditQuery:
    limit: int = 50
    cursor: str | None = None
    actor: str | None = None
    action: str | None = None
    object_kind: str | None = None
    object_id: str | None = None
    search: str | None = None
    """Looked for anywhere in actor, action and object."""
    since: datetime | None = None
    until: datetime | None = None
    leaves_out_sessions: bool = False
    """Without signing in and out, which changes nothing and happens most."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """The trail's newest row at some moment. Kept elsewhere, it proves that nothing up to it was rewritten since."""

    id: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class AuditVerdict:
    """What recomputing the chain found; `verified` rows are in order, from the first on."""

    verified: int
    first_invalid_id: int | None

    @property
    def is_valid(self) -> bool:
        return self.first_invalid_id is None


class AuditStore(Protocol):
    async def append(self, entry: AuditEntry) -> None:
        """Write a row that belongs to no change: a refused attempt."""
        ...

    async def page(self, query: AuditQuery) -> Page[AuditRow]: ...

    async def append_unless_flooded(self, entry: AuditEntry, *, at_most: int, within: timedelta) -> None:
        """Write a row, unless its actor has so many of its action already within that time."""
        ...

    async def head(self) -> Anchor | None:
        """The newest row; None while there is none."""
        ...

    async def verify(self, anchors: Sequence[Anchor] = ()) -> AuditVerdict:
        """Recompute every hash from the first row on, streaming, and compare with what was anchored."""
        ...


# ── Commands ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Expiry:
    """What the daily comparison of paid dates with today found. `expired` says of each user what its status was."""

    checked: int
    expired: Mapping[str, PaymentStatus]


class UserTable(Protocol):
    async def user(self, oid: str) -> UserRow | None: ...
    async def users(self, query: ListQuery) -> Page[UserRow]: ...
    async def insert_user(self, spec: UserSpec, at: datetime) -> None: ...
    async def update_user(self, spec: UserSpec, at: datetime) -> None: ...
    async def delete_user(self, oid: str, at: datetime) -> None: ...
    async def keys_of_user(self, oid: str) -> int: ...
    async def expire_lapsed_users(self, today: date, at: datetime, *, limit: int) -> Expiry:
        """Set up to `limit` active and trial users whose last paid day lies before `today` to expired."""
        ...

    async def user_count(self) -> int: ...


class KeyTable(Protocol):
    async def key(self, key_id: str) -> KeyRow | None: ...
    async def keys(self, query: ListQuery, now: datetime) -> Page[KeyRow]: ...
    async def has_key_with_digest(self, digests: Sequence[bytes]) -> bool: ...
    async def insert_key(self, key_id: str, spec: KeySpec, credential: Credential, at: datetime) -> None: ...
    async def update_key(self, key_id: str, spec: KeySpec, at: datetime) -> None: ...
    async def revoke_key(self, key_id: str, at: datetime) -> None: ...
    async def replace_credential(
        self, key_id: str, credential: Credential, at: datetime, *, old_ends_at: datetime
    ) -> Credential:
        """Give the key a new secret; returns what was stored of the old one, which means this key until `old_ends_at`."""
        ...

    async def delete_key(self, key_id: str) -> None: ...
    async def keys_overflowing_to(self, model: str) -> list[str]:
        """Ids of active keys whose calls go to this model when a limit refuses them; the first few."""
        ...

    async def usage_of_key(self, key_id: str, since: datetime, until: datetime) -> UsageSums:
        """Its sums from the rollups: whole hours that begin within these times."""
        ...


class AppTable(Protocol):
    async def app(self, app_id: str) -> AppRow | None: ...
    async def apps(self, query: ListQuery) -> Page[AppRow]: ...
    async def insert_app(self, spec: AppSpec, at: datetime) -> None: ...
    async def update_app(self, spec: AppSpec, at: datetime) -> None: ...
    async def delete_app(self, app_id: str) -> None: ...
    async def add_app_secret(self, secret_id: str, app_id: str, credential: Credential, at: datetime) -> None: ...
    async def retire_app_secrets(self, app_id: str, expires_at: datetime) -> None:
        """Let all present secrets of the app end at `expires_at`, or earlier where that was decided before."""
        ...


class ModelTable(Protocol):
    async def model(self, name: str) -> ModelRow | None: ...
    async def models(self, query: ListQuery) -> Page[ModelRow]: ...
    async def models_behind(self, names: Iterable[str]) -> dict[str, str]:
        """Of these names and aliases, those that lead to a model → its own name."""
        ...

    async def models_falling_back_to(self, name: str) -> list[str]: ...
    async def models_shadowed_by(self, name: str) -> list[str]: ...
    async def fallbacks_of_models(self) -> dict[str, tuple[str, ...]]:
        """Of every model that has any."""
        ...

    async def insert_model(self, spec: ModelSpec, at: datetime) -> None: ...
    async def update_model(self, spec: ModelSpec, at: datetime) -> None: ...
    async def delete_model(self, name: str) -> None:
        """Delete the model with its endpoints, and take its name out of other models' fallbacks."""
        ...

    async def add_price(
        self, price_id: str, model: str, endpoint_id: str | None, price: Price | None, at: datetime
    ) -> None: ...


class EndpointTable(Protocol):
    async def endpoint(self, endpoint_id: str) -> EndpointRow | None: ...
    async def endpoints(self, query: ListQuery) -> Page[EndpointRow]: ...
    async def endpoints_of(self, model: str) -> list[EndpointRow]: ...
    async def insert_endpoint(
        self, endpoint_id: str, spec: EndpointSpec, credential: SealedCredential | None, at: datetime
    ) -> None: ...
    async def update_endpoint(self, endpoint_id: str, spec: EndpointSpec, at: datetime) -> None: ...
    async def set_endpoint_credential(self, endpoint_id: str, credential: SealedCredential | None) -> None: ...
    async def delete_endpoint(self, endpoint_id: str) -> None: ...


class AdminTable(Protocol):
    async def admin(self, admin_id: str) -> AdminRow | None: ...
    async def admin_by_digest(self, digest: bytes) -> AdminRow | None: ...
    async def token_digests(self) -> frozenset[bytes]:
        """Of every administrator who was not revoked, so that a flood of invented tokens need not be looked up one by one."""
        ...

    async def admins(self, query: ListQuery) -> Page[AdminRow]: ...
    async def owners(self) -> list[AdminRow]: ...
    async def insert_admin(self, admin_id: str, spec: AdminSpec, credential: Credential, at: datetime) -> None: ...
    async def update_admin(self, admin_id: str, spec: AdminSpec, at: datetime) -> None: ...
    async def revoke_admin(self, admin_id: str, at: datetime) -> None: ...
    async def replace_token(self, admin_id: str, credential: Credential, at: datetime) -> None: ...
    async def end_sessions(self, admin_id: str) -> None:
        """Sign the administrator out of every browser."""
        ...

    async def delete_admin(self, admin_id: str) -> None: ...


class ManagementReader(UserTable, KeyTable, AppTable, ModelTable, EndpointTable, AdminTable, Protocol):
    """One open transaction on the configuration."""


class ManagementTransaction(ManagementReader, Protocol):
    """One command. Commands run one after the other: each holds the revision's row until it ends."""

    async def revision(self) -> int:
        """The revision this command began at."""
        ...

    async def raise_revision(self, kind: str, ref: str) -> int:
        """Announce one changed object to every process; returns the new revision."""
        ...

    async def raise_revisions(self, kind: str, refs: Sequence[str]) -> int:
        """Announce many at once; returns the newest revision."""
        ...

    async def append_audit(self, entry: AuditEntry) -> None: ...
    async def append_audit_alike(self, entry: AuditEntry, object_ids: Sequence[str]) -> None:
        """A row for each of these objects (at least one), to all of which the same was done."""
        ...

    async def belongs_to(self) -> bytes | None:
        """The fingerprint of the SECRET_KEY that the database belongs to."""
        ...

    async def reseal(self, sealer: Sealer, fingerprint: bytes, at: datetime) -> Resealed:
        """Seal every credential under the sealer's first key, and let the database belong to that key."""
        ...


class ManagementStore(Protocol):
    def reading(self) -> AbstractAsyncContextManager[ManagementReader]:
        """A transaction that changes nothing."""
        ...

    def command(self) -> AbstractAsyncContextManager[ManagementTransaction]:
        """A transaction that holds the revision's row; committed on the way out, rolled back on an exception."""
        ...


class Sealer(Protocol):
    """Encrypts upstream credentials. What is sealed for one endpoint and host opens for no other."""

    def seal(self, secret: str, /, *, endpoint_id: str, host: str) -> bytes: ...

    def open(self, sealed: bytes, /, *, endpoint_id: str, host: str) -> str:
        """Raises: CannotUnseal."""
        ...


@dataclass(frozen=True, slots=True)
class Repeatable:
    """A request that was sent before. `status` is None while it is worked on."""

    request_digest: bytes
    status: int | None
    answer_sealed: bytes | None = field(repr=False)


class RepeatStore(Protocol):
    async def begin(
        self, actor: str, key: str, request_digest: bytes, at: datetime, *, forgotten_before: datetime
    ) -> Repeatable | None:
        """Claim the key for this request; None when it was free, or its request is older than what is forgotten."""
        ...

    async def finish(self, actor: str, key: str, status: int, answer_sealed: bytes) -> None: ...
    async def forget(self, actor: str, key: str) -> None: ...
    async def forget_before(self, at: datetime) -> None: ...


@dataclass(frozen=True, slots=True)
class Resealed:
    endpoints: int
    left_out: tuple[str, ...]
    """Endpoints whose credential none of the keys opens."""
    unused_keys: int
    """Active keys not used since the database belongs to this key: their digests still stand under the one before."""
