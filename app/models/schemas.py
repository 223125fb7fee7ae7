"""What crosses the wire of the admin API: bodies to create and to patch, and views to answer with.

Write models refuse unknown fields, so a mistyped or forbidden field is an error and never silence. A patch holds only what
was named (`model_fields_set`). Secrets appear in the views named `…Created` and nowhere else.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Annotated, Any, Generic, Self, TypeVar, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StrictBool,
    StrictInt,
    StrictStr,
)

from app.domain.access import Role
from app.domain.breaker import BreakerRules
from app.domain.budget import Budget, PeriodKind, ReserveMode
from app.domain.catalog import HealthCheck, HealthCheckKind, ProviderKind, Shadow, Sticky, Strategy, Timeouts
from app.domain.identity import LogContent, Overflow, OverflowMode, PaymentStatus
from app.domain.limits import Limit, LimitKind
from app.domain.money import PicoUsd, pico_to_usd_per_mtok
from app.domain.pricing import Price, Rates, ServiceTier, Tier
from app.models.money_fields import Usd, UsdEach, UsdPerMtok, amount_text, each_text
from app.services.command import Part
from app.services.manage_access import AdminChanges, AppChanges, KeyChanges
from app.services.manage_catalog import EndpointChanges, ModelChanges, NewCredential
from app.services.manage_users import UserChanges
from app.storage.management_ports import (
    AdminRow,
    AdminSpec,
    AppRow,
    AppSpec,
    AuditRow,
    EndpointRow,
    EndpointSpec,
    KeyRow,
    KeySpec,
    ModelRow,
    ModelSpec,
    Resealed,
    UserRow,
    UserSpec,
)

Item = TypeVar("Item")


def _in_utc(value: datetime) -> datetime:
    """A time without a zone is taken as UTC."""
    try:
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except OverflowError:
        raise ValueError("this time lies beyond the calendar") from None


def _rfc3339(value: datetime) -> str:
    return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _without_nul(value: str) -> str:
    """PostgreSQL stores none, so that it could not even be asked whether something has such a name."""
    if "\0" in value:
        raise ValueError("this holds a NUL character")
    return value


_STARTS_AS_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?![0-9])")
_LOST_PLUS = re.compile(r" (?=[0-9]{2}:?[0-9]{2}\Z)")
"""What a query makes of the `+` before a time zone, where nobody has escaped it."""


def _written_out(value: object) -> object:
    """As people write dates and times. A number would be read as seconds since 1970: `20260101` gave a key that ended in August 1970."""
    if isinstance(value, date):
        return value
    if not isinstance(value, str) or not _STARTS_AS_DAY.match(value):
        raise ValueError("this is neither a day, as 2026-12-31, nor a time in RFC 3339, as 2026-12-31T12:00:00Z")
    return _LOST_PLUS.sub("+", value) if len(value) > len("2026-12-31 12:00") else value


Moment = Annotated[
    datetime, BeforeValidator(_written_out), AfterValidator(_in_utc), PlainSerializer(_rfc3339, return_type=str)
]
"""RFC 3339, answered in UTC."""
Day = Annotated[date, BeforeValidator(_written_out)]
Text = Annotated[StrictStr, Field(max_length=200), AfterValidator(_without_nul)]
LongText = Annotated[StrictStr, Field(max_length=2048), AfterValidator(_without_nul)]
Secret = Annotated[StrictStr, Field(max_length=20_000), AfterValidator(_without_nul)]
Count = Annotated[StrictInt, Field(ge=1, le=2**31 - 1)]
Seconds = Annotated[float, Field(gt=0, le=86_400, strict=True, allow_inf_nan=False)]
Names = Annotated[list[Text], Field(max_length=1000)]
Labels = Annotated[dict[StrictStr, StrictStr], Field(max_length=20, description="Small texts to find it by.")]
GraceSeconds = Annotated[StrictInt, Field(ge=0, le=30 * 86_400)]


class _Body(BaseModel):
    """What a caller sends. `fields` is its content in the domain's terms."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    def fields(self, *, only_named: bool = False) -> dict[str, Any]:
        """Field by field: shapes as what they stand for, lists as tuples; of a patch only what the caller named."""
        names = self.model_fields_set if only_named else type(self).model_fields
        return {name: _domain(getattr(self, name)) for name in names}

    def parts(self) -> dict[str, Part]:
        """Of a patch, the fields that are made of several: only what the caller named of them is to change."""
        values = {name: getattr(self, name) for name in self.model_fields_set}
        return {name: Part(value.onto) for name, value in values.items() if isinstance(value, _Merging)}


class _Shape(_Body, ABC):
    """A part of a body that stands for one value of the domain."""

    @abstractmethod
    def domain(self) -> object: ...


class _Merging(_Shape, ABC):
    """A shape of which a patch may name a part; the rest stays as it is."""

    @classmethod
    @abstractmethod
    def of(cls, value: Any, /) -> Self: ...

    def onto(self, value: Any) -> object:
        return type(self).of(value).model_copy(update=self.named()).domain()

    def named(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.model_fields_set}


def _domain(value: Any) -> Any:
    match value:
        case _Shape():
            return value.domain()
        case list():
            return tuple(_domain(each) for each in value)
        case _:
            return value


class _View(BaseModel):
    """What is answered; built by `of` from a row."""


# ── Limits, budgets, prices ───────────────────────────────────────────────────────────────────────────────────────────


class LimitShape(_Shape):
    kind: LimitKind = Field(examples=["requests"])
    limit: Annotated[StrictInt, Field(ge=0, le=10**15)] = Field(examples=[60])
    window_seconds: Annotated[StrictInt, Field(ge=0)] | None = Field(
        0,
        description="Length of the sliding window. Concurrency is counted at once, not over time: it has none, whatever is said.",
        examples=[60],
    )

    def domain(self) -> Limit:
        has_window = self.kind is not LimitKind.CONCURRENCY
        return Limit(self.kind, self.limit, (self.window_seconds or 0) if has_window else 0)

    @classmethod
    def of(cls, limit: Limit) -> LimitShape:
        return cls(kind=limit.kind, limit=limit.limit, window_seconds=limit.window_s)


class BudgetShape(_Shape):
    period: PeriodKind = Field(examples=["monthly"])
    soft_limit_usd: Usd | None = Field(None, examples=["8"])
    hard_limit_usd: Usd | None = Field(None, examples=["10"])
    reserve: ReserveMode = Field(ReserveMode.WORST_CASE)

    def domain(self) -> Budget:
        return Budget(self.period, self.soft_limit_usd, self.hard_limit_usd, self.reserve)


class BudgetView(_View):
    period: PeriodKind
    soft_limit_usd: str | None
    hard_limit_usd: str | None
    reserve: ReserveMode

    @classmethod
    def of(cls, budget: Budget) -> BudgetView:
        soft, hard = budget.soft_limit_nanousd, budget.hard_limit_nanousd
        return cls(
            period=budget.period,
            soft_limit_usd=None if soft is None else amount_text(soft),
            hard_limit_usd=None if hard is None else amount_text(hard),
            reserve=budget.reserve,
        )


Limits = Annotated[list[LimitShape], Field(max_length=20)]
Budgets = Annotated[list[BudgetShape], Field(max_length=20)]


def _limit_views(limits: tuple[Limit, ...]) -> list[LimitShape]:
    return [LimitShape.of(limit) for limit in limits]


def _budget_views(budgets: tuple[Budget, ...]) -> list[BudgetView]:
    return [BudgetView.of(budget) for budget in budgets]


class RatesShape(_Body):
    """Unit prices; a kind of token that is absent costs what its family (input or output) costs."""

    input_usd_per_mtok: UsdPerMtok
    output_usd_per_mtok: UsdPerMtok
    cached_input_usd_per_mtok: UsdPerMtok | None = None
    cache_write_5m_usd_per_mtok: UsdPerMtok | None = None
    cache_write_1h_usd_per_mtok: UsdPerMtok | None = None
    reasoning_usd_per_mtok: UsdPerMtok | None = None
    audio_input_usd_per_mtok: UsdPerMtok | None = None
    audio_output_usd_per_mtok: UsdPerMtok | None = None
    cached_audio_input_usd_per_mtok: UsdPerMtok | None = None
    image_input_usd_per_mtok: UsdPerMtok | None = None
    image_output_usd_per_mtok: UsdPerMtok | None = None

    def rates(self) -> Rates:
        return Rates(**{name: getattr(self, f"{name}_usd_per_mtok") for name in _RATES})


_RATES = tuple(name.removesuffix("_usd_per_mtok") for name in RatesShape.model_fields)


class TierShape(RatesShape, _Shape):
    """Rates of the whole call once its prompt is longer than this."""

    above_prompt_tokens: Count

    def domain(self) -> Tier:
        return Tier(self.above_prompt_tokens, self.rates())


class ServiceTierShape(RatesShape, _Shape):
    """Rates of the whole call where the provider says that it served it so."""

    name: Annotated[str, Field(min_length=1, max_length=40, examples=["priority"])]
    tiers: Annotated[list[TierShape], Field(max_length=20)] = []

    def domain(self) -> ServiceTier:
        return ServiceTier(self.name, self.rates(), _domain(self.tiers))


class PriceShape(RatesShape, _Shape):
    request_usd: UsdEach = PicoUsd(0)
    image_usd: UsdEach = PicoUsd(0)
    tiers: Annotated[list[TierShape], Field(max_length=20)] = []
    service_tiers: Annotated[list[ServiceTierShape], Field(max_length=10)] = []

    def domain(self) -> Price:
        """The id is given when it is stored."""
        tiers, service_tiers = _domain(self.tiers), _domain(self.service_tiers)
        return Price("", self.rates(), tiers, self.request_usd, self.image_usd, service_tiers=service_tiers)


class RatesView(_View):
    input_usd_per_mtok: str
    output_usd_per_mtok: str
    cached_input_usd_per_mtok: str | None
    cache_write_5m_usd_per_mtok: str | None
    cache_write_1h_usd_per_mtok: str | None
    reasoning_usd_per_mtok: str | None
    audio_input_usd_per_mtok: str | None
    audio_output_usd_per_mtok: str | None
    cached_audio_input_usd_per_mtok: str | None
    image_input_usd_per_mtok: str | None
    image_output_usd_per_mtok: str | None


class TierView(RatesView):
    above_prompt_tokens: int


class ServiceTierView(RatesView):
    name: str
    tiers: list[TierView]


class PriceView(RatesView):
    request_usd: str
    image_usd: str
    tiers: list[TierView]
    service_tiers: list[ServiceTierView]

    @classmethod
    def of(cls, price: Price | None) -> PriceView | None:
        if price is None:
            return None
        service_tiers = [
            ServiceTierView(name=served.name, tiers=_tier_views(served.tiers), **_rate_texts(served.rates))
            for served in price.service_tiers
        ]
        each = {"request_usd": each_text(price.request), "image_usd": each_text(price.image)}
        tiers = _tier_views(price.tiers)
        return cls(tiers=tiers, service_tiers=service_tiers, **_rate_texts(price.rates), **each)


def _tier_views(tiers: tuple[Tier, ...]) -> list[TierView]:
    return [TierView(above_prompt_tokens=tier.above_prompt_tokens, **_rate_texts(tier.rates)) for tier in tiers]


def _rate_texts(rates: Rates) -> dict[str, Any]:
    units = {name: getattr(rates, name) for name in _RATES}
    return {
        f"{name}_usd_per_mtok": unit if unit is None else pico_to_usd_per_mtok(unit) for name, unit in units.items()
    }


# ── Users ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class UserCreate(_Body):
    user_oid: Text = Field(description="The account's id in the company directory.", examples=["user-123"])
    email: Text | None = Field(None, examples=["user@example.com"])
    name: Text | None = Field(None, examples=["Ada Lovelace"])
    payment_status: PaymentStatus = PaymentStatus.ACTIVE
    payment_valid_until: Day | None = Field(
        None, description="The last paid day, in BUDGET_TIMEZONE; null: no end.", examples=["2026-12-31"]
    )
    limits: Limits = Field([], description="Absent: the settings' defaults; empty: no limit.")
    budgets: Budgets = Field([], description="Absent: the settings' defaults; empty: no budget.")
    log_content: LogContent | None = Field(
        None,
        description="metadata: what this user's calls say is never kept, whatever key or app says. null: as they say.",
    )

    def spec(self, defaults: UserSpec) -> UserSpec:
        """`defaults` holds what was not named."""
        fields = self.fields(only_named=True)
        return replace(defaults, oid=fields.pop("user_oid"), **fields)


class UserPatch(_Body):
    email: Text | None = None
    name: Text | None = None
    payment_status: PaymentStatus = PaymentStatus.ACTIVE
    payment_valid_until: Day | None = None
    limits: Limits = []
    budgets: Budgets = []
    log_content: LogContent | None = None

    def changes(self) -> UserChanges:
        return cast(UserChanges, self.fields(only_named=True))


class UserView(_View):
    user_oid: str
    email: str | None
    name: str | None
    payment_status: PaymentStatus
    payment_valid_until: Day | None
    limits: list[LimitShape]
    budgets: list[BudgetView]
    log_content: LogContent | None
    created_at: Moment
    updated_at: Moment

    @classmethod
    def of(cls, row: UserRow) -> UserView:
        spec = row.spec
        return cls(
            user_oid=spec.oid,
            email=spec.email,
            name=spec.name,
            payment_status=spec.payment_status,
            payment_valid_until=spec.payment_valid_until,
            limits=_limit_views(spec.limits),
            budgets=_budget_views(spec.budgets),
            log_content=spec.log_content,
            created_at=row.created_at,
            updated_at=row.updated_at,
        )


class ExpiryView(_View):
    user_oid: str
    email: str | None
    payment_valid_until: Day | None
    payment_status: PaymentStatus
    synced: bool


class BulkExpiryView(_View):
    checked: int = Field(examples=[150])
    expired: int = Field(examples=[3])
    timestamp: str = Field(examples=["2025-02-15T10:30:45.123456"])


# ── Keys ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


class OverflowShape(_Merging):
    mode: OverflowMode = OverflowMode.REJECT
    max_wait_seconds: Annotated[float, Field(ge=0, le=600, strict=True, allow_inf_nan=False)] = 10.0
    fallback_model: Text | None = None

    def domain(self) -> Overflow:
        return Overflow(self.mode, self.max_wait_seconds, self.fallback_model)

    @classmethod
    def of(cls, overflow: Overflow) -> Self:
        return cls(mode=overflow.mode, max_wait_seconds=overflow.max_wait_s, fallback_model=overflow.fallback_model)


class KeyCreate(_Body):
    user_oid: Text = Field(examples=["user-123"])
    name: Text = Field("", examples=["ci"])
    allowed_models: Names = Field(["*"], description="Names of models, or * for all.", examples=[["*"]])
    expires_at: Moment | None = Field(None, examples=["2027-01-01T00:00:00Z"])
    allowed_ips: Names = Field([], description="Addresses and networks; empty: any.", examples=[["10.0.0.0/8"]])
    log_content: LogContent | None = Field(None, description="null: as LOG_CONTENT says.")
    limits: Limits | None = Field(None, description="Absent or null: the settings' defaults; empty: no limit.")
    budgets: Budgets = []
    overflow: OverflowShape = OverflowShape()
    labels: Labels = Field({}, examples=[{"team": "search", "env": "prod"}])

    def spec(self) -> KeySpec:
        return KeySpec(**self.fields())


class KeyPatch(_Body):
    name: Text = ""
    allowed_models: Names = []
    expires_at: Moment | None = None
    allowed_ips: Names = []
    log_content: LogContent | None = None
    limits: Limits | None = None
    budgets: Budgets = []
    overflow: OverflowShape = OverflowShape()
    labels: Labels = {}

    def changes(self, *, merges: bool = False) -> KeyChanges:
        """With `merges`, what is made of several keeps what was not named of it."""
        return cast(KeyChanges, self.fields(only_named=True) | (self.parts() if merges else {}))


class KeyView(_View):
    id: str
    user_oid: str
    name: str
    key_prefix: str = Field(examples=["sk-ag-AbCd"])
    last4: str = Field(examples=["x9Zk"])
    status: str = Field(description="active, expired or revoked", examples=["active"])
    allowed_models: list[str]
    expires_at: Moment | None
    allowed_ips: list[str]
    log_content: LogContent | None
    limits: list[LimitShape] | None = Field(description="null: the settings' defaults hold.")
    has_own_limits: bool
    budgets: list[BudgetView]
    overflow: OverflowShape
    labels: dict[str, str]
    revoked_at: Moment | None
    last_used_at: Moment | None
    created_at: Moment
    updated_at: Moment

    @classmethod
    def of(cls, row: KeyRow, now: datetime) -> KeyView:
        return cls(**_key_fields(row, now))


class KeyCreated(KeyView):
    key: str = Field(description="The secret. It is shown here and never again.", examples=["sk-ag-…"])

    @classmethod
    def with_secret(cls, row: KeyRow, secret: str, now: datetime) -> KeyCreated:
        return cls(**_key_fields(row, now), key=secret)


def _key_fields(row: KeyRow, now: datetime) -> dict[str, Any]:
    spec = row.spec
    return {
        "id": row.id,
        "user_oid": spec.user_oid,
        "name": spec.name,
        "key_prefix": row.key_prefix,
        "last4": row.last4,
        "status": row.status_at(now),
        "allowed_models": list(spec.allowed_models),
        "expires_at": spec.expires_at,
        "allowed_ips": list(spec.allowed_ips),
        "log_content": spec.log_content,
        "limits": None if spec.limits is None else _limit_views(spec.limits),
        "has_own_limits": spec.limits is not None,
        "budgets": _budget_views(spec.budgets),
        "overflow": OverflowShape.of(spec.overflow),
        "labels": dict(spec.labels),
        "revoked_at": row.revoked_at,
        "last_used_at": row.last_used_at,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
    }


class Rotate(_Body):
    grace_seconds: GraceSeconds = Field(0, description="How long the old secret stays valid.", examples=[3600])


# ── Apps ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


class AppCreate(_Body):
    app_id: Text = Field(examples=["crm"])
    name: Text = Field("", examples=["CRM"])
    is_active: StrictBool = True
    allowed_models: Names = ["*"]
    allowed_networks: Names = []
    own_secret_only: StrictBool = Field(False, description="Refuse the global GATEWAY_SHARED_SECRET for this app.")
    auto_create_users: StrictBool = Field(False, description="Create users this app names for the first time.")
    log_content: LogContent | None = None
    limits: Limits = []
    budgets: Budgets = []

    def spec(self) -> AppSpec:
        return AppSpec(**self.fields())


class AppPatch(_Body):
    name: Text = ""
    is_active: StrictBool = True
    allowed_models: Names = []
    allowed_networks: Names = []
    own_secret_only: StrictBool = False
    auto_create_users: StrictBool = False
    log_content: LogContent | None = None
    limits: Limits = []
    budgets: Budgets = []

    def changes(self) -> AppChanges:
        return cast(AppChanges, self.fields(only_named=True))


class AppView(_View):
    app_id: str
    name: str
    is_active: bool
    allowed_models: list[str]
    allowed_networks: list[str]
    own_secret_only: bool
    auto_create_users: bool
    log_content: LogContent | None
    limits: list[LimitShape]
    budgets: list[BudgetView]
    secret_last4: str | None
    created_at: Moment
    updated_at: Moment

    @classmethod
    def of(cls, row: AppRow) -> AppView:
        return cls(**_app_fields(row))


class AppCreated(AppView):
    secret: str = Field(description="The app's own secret. It is shown here and never again.", examples=["ag-app-…"])

    @classmethod
    def with_secret(cls, row: AppRow, secret: str) -> AppCreated:
        return cls(**_app_fields(row), secret=secret)


def _app_fields(row: AppRow) -> dict[str, Any]:
    spec = row.spec
    return {
        "app_id": spec.app_id,
        "name": spec.name,
        "is_active": spec.is_active,
        "allowed_models": list(spec.allowed_models),
        "allowed_networks": list(spec.allowed_networks),
        "own_secret_only": spec.own_secret_only,
        "auto_create_users": spec.auto_create_users,
        "log_content": spec.log_content,
        "limits": _limit_views(spec.limits),
        "budgets": _budget_views(spec.budgets),
        "secret_last4": row.secret_last4,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
    }


# ── Models and endpoints ──────────────────────────────────────────────────────────────────────────────────────────────


class ShadowShape(_Shape):
    """Another model that is sent a share of the calls beside this one. Its answers are thrown away, its cost is no user's."""

    model: Text = Field(examples=["gpt-5-candidate"])
    percent: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] = Field(examples=[5])

    def domain(self) -> Shadow:
        return Shadow(self.model, self.percent)

    @classmethod
    def of(cls, shadow: Shadow | None) -> ShadowShape | None:
        return None if shadow is None else cls(model=shadow.model, percent=shadow.percent)


MaxRetries = Annotated[StrictInt, Field(ge=0, le=10)]


class ModelCreate(_Body):
    name: Text = Field(description="What clients ask for.", examples=["gpt-4"])
    aliases: Names = Field([], examples=[["gpt-4-latest"]])
    strategy: Strategy = Strategy.ROUND_ROBIN
    fallbacks: Names = Field(
        [],
        description="Models that are tried, in order, when no endpoint of this one answers, or when it refuses a prompt as too long "
        "or against its rules.",
    )
    sticky: Sticky | None = Field(
        None, description="Keep a user's calls, or calls that begin alike, with one endpoint."
    )
    max_retries: MaxRetries | None = Field(
        None, description="How many endpoints more may be asked when the first one fails. null: 2.", examples=[2]
    )
    shadow: ShadowShape | None = None
    context_window: Count | None = Field(None, examples=[128000])
    max_output_tokens: Count | None = Field(None, examples=[4096])
    price: PriceShape | None = Field(None, description="null: from the price map.")
    limits: Limits = []
    budgets: Budgets = []

    def spec(self) -> ModelSpec:
        return ModelSpec(**self.fields())


class ModelPatch(_Body):
    aliases: Names = []
    strategy: Strategy = Strategy.ROUND_ROBIN
    fallbacks: Names = []
    sticky: Sticky | None = None
    max_retries: MaxRetries | None = None
    shadow: ShadowShape | None = None
    context_window: Count | None = None
    max_output_tokens: Count | None = None
    price: PriceShape | None = None
    limits: Limits = []
    budgets: Budgets = []

    def changes(self) -> ModelChanges:
        return cast(ModelChanges, self.fields(only_named=True))


class ModelView(_View):
    name: str
    aliases: list[str]
    strategy: Strategy
    fallbacks: list[str]
    sticky: Sticky | None
    max_retries: int | None
    shadow: ShadowShape | None
    context_window: int | None
    max_output_tokens: int | None
    price: PriceView | None
    limits: list[LimitShape]
    budgets: list[BudgetView]
    endpoints: int = Field(description="How many endpoints serve it.")
    created_at: Moment
    updated_at: Moment

    @classmethod
    def of(cls, row: ModelRow) -> ModelView:
        spec = row.spec
        return cls(
            name=spec.name,
            aliases=list(spec.aliases),
            strategy=spec.strategy,
            fallbacks=list(spec.fallbacks),
            sticky=spec.sticky,
            max_retries=spec.max_retries,
            shadow=ShadowShape.of(spec.shadow),
            context_window=spec.context_window,
            max_output_tokens=spec.max_output_tokens,
            price=PriceView.of(spec.price),
            limits=_limit_views(spec.limits),
            budgets=_budget_views(spec.budgets),
            endpoints=row.endpoints,
            created_at=row.created_at,
            updated_at=row.updated_at,
        )


class TimeoutsShape(_Merging):
    connect_seconds: Seconds = 5
    first_token_seconds: Seconds = 60
    between_tokens_seconds: Seconds = 30
    total_seconds: Seconds = 600
    unary_seconds: Seconds | None = Field(
        None,
        description="For a whole unary answer. null: as first_token_seconds where that was set, otherwise total_seconds.",
    )

    def domain(self) -> Timeouts:
        unary = self.unary_seconds
        if unary is None:
            unary = self.first_token_seconds if "first_token_seconds" in self.model_fields_set else self.total_seconds
        return Timeouts(
            self.connect_seconds, self.first_token_seconds, self.between_tokens_seconds, self.total_seconds, unary
        )

    def named(self) -> dict[str, Any]:
        """As in `domain`: who names the one and not the other means both."""
        named = super().named()
        if "first_token_seconds" in named:
            named.setdefault("unary_seconds", named["first_token_seconds"])
        return named

    @classmethod
    def of(cls, timeouts: Timeouts) -> Self:
        return cls(
            connect_seconds=timeouts.connect_s,
            first_token_seconds=timeouts.first_token_s,
            between_tokens_seconds=timeouts.between_tokens_s,
            total_seconds=timeouts.total_s,
            unary_seconds=timeouts.unary_s,
        )


class HealthCheckShape(_Merging):
    kind: HealthCheckKind = HealthCheckKind.MODELS
    interval_seconds: Seconds = 30

    def domain(self) -> HealthCheck:
        return HealthCheck(self.kind, self.interval_seconds)

    @classmethod
    def of(cls, check: HealthCheck) -> Self:
        return cls(kind=check.kind, interval_seconds=check.interval_s)


class BreakerShape(_Merging):
    """When the endpoint is left alone, and for how long. See docs/routing.md."""

    faults_in_row: Annotated[StrictInt, Field(ge=1, le=1000)] = Field(5, description="So many, and it opens.")
    fault_percent: Annotated[StrictInt, Field(ge=0, le=100)] = Field(
        50, description="Of the attempts in the window; 0: the share does not matter."
    )
    minimum_calls: Annotated[StrictInt, Field(ge=1, le=100_000)] = Field(
        20, description="Fewer attempts in the window say nothing about a share."
    )
    window_seconds: Annotated[float, Field(ge=1, le=3600, strict=True, allow_inf_nan=False)] = 30
    slow_first_token_seconds: Seconds | None = Field(
        None,
        description="A stream whose first token comes later counts as a fault. null: none does that comes in time.",
    )
    open_seconds: Annotated[float, Field(ge=0.1, le=3600, strict=True, allow_inf_nan=False)] = Field(
        2, description="Twice as long each time it opens again."
    )
    max_open_seconds: Annotated[float, Field(ge=0.1, le=3600, strict=True, allow_inf_nan=False)] = 10

    def domain(self) -> BreakerRules:
        return BreakerRules(
            self.faults_in_row,
            self.fault_percent,
            self.minimum_calls,
            self.window_seconds,
            self.slow_first_token_seconds,
            self.open_seconds,
            max(self.open_seconds, self.max_open_seconds),
        )

    @classmethod
    def of(cls, rules: BreakerRules) -> Self:
        return cls(
            faults_in_row=rules.faults_in_row,
            fault_percent=rules.fault_percent,
            minimum_calls=rules.minimum_calls,
            window_seconds=rules.window_s,
            slow_first_token_seconds=rules.slow_first_token_s,
            open_seconds=rules.open_s,
            max_open_seconds=rules.max_open_s,
        )


Weight = Annotated[StrictInt, Field(ge=0, le=1_000_000)]
Priority = Annotated[StrictInt, Field(ge=-1_000_000, le=1_000_000)]


class EndpointCreate(_Body):
    model: Text = Field(description="The model that it serves.", examples=["gpt-4"])
    provider: ProviderKind = Field(examples=["openai"])
    upstream_model: Text | None = Field(
        None, description="The model's name at the provider; absent: the same as here.", examples=["gpt-4o"]
    )
    api_base: LongText | None = Field(
        None, description="Absent: the provider's public address.", examples=["https://api.openai.com/v1"]
    )
    api_key: Secret | None = Field(None, description="Write-only; stored encrypted.", examples=["sk-…"])
    weight: Weight = 1
    priority: Priority = Field(0, description="Higher first.")
    max_concurrency: Count | None = None
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    timeouts: TimeoutsShape = TimeoutsShape()
    health_check: HealthCheckShape = HealthCheckShape()
    breaker: BreakerShape = BreakerShape()
    price: PriceShape | None = Field(None, description="null: the model's.")

    def spec(self) -> EndpointSpec:
        fields = self.fields()
        fields.pop("api_key")
        fields["api_base"] = self.api_base or ""
        fields["upstream_model"] = self.model if self.upstream_model is None else self.upstream_model
        return EndpointSpec(**fields)

    def credential(self) -> NewCredential:
        return NewCredential(self.api_key)


class EndpointPatch(_Body):
    provider: ProviderKind = ProviderKind.OPENAI
    upstream_model: Text = ""
    api_base: LongText | None = None
    api_key: Secret | None = Field(None, description="Write-only; null takes the stored one away.")
    weight: Weight = 1
    priority: Priority = 0
    max_concurrency: Count | None = None
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    timeouts: TimeoutsShape = TimeoutsShape()
    health_check: HealthCheckShape = HealthCheckShape()
    breaker: BreakerShape = BreakerShape()
    price: PriceShape | None = None

    def changes(self, *, merges: bool = False) -> EndpointChanges:
        """With `merges`, what is made of several keeps what was not named of it."""
        fields = self.fields(only_named=True) | (self.parts() if merges else {})
        fields.pop("api_key", None)
        if "api_base" in fields:
            fields["api_base"] = self.api_base or ""
        return cast(EndpointChanges, fields)

    def credential(self) -> NewCredential | None:
        return NewCredential(self.api_key) if "api_key" in self.model_fields_set else None


class Drain(_Body):
    draining: StrictBool = True


class EndpointView(_View):
    id: str
    model: str
    provider: ProviderKind
    upstream_model: str
    api_base: str
    credential: str | None = Field(description="What may be shown of the credential.", examples=["…x9Zk"])
    state: str = Field(description="closed, open, half_open or draining", examples=["closed"])
    weight: int
    priority: int
    max_concurrency: int | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    timeouts: TimeoutsShape
    health_check: HealthCheckShape
    breaker: BreakerShape
    price: PriceView | None
    created_at: Moment
    updated_at: Moment

    @classmethod
    def of(cls, row: EndpointRow, state: str) -> EndpointView:
        spec = row.spec
        return cls(
            id=row.id,
            model=spec.model,
            provider=spec.provider,
            upstream_model=spec.upstream_model,
            api_base=spec.api_base,
            credential=None if row.credential_last4 is None else f"…{row.credential_last4}",
            state="draining" if spec.is_draining else state,
            weight=spec.weight,
            priority=spec.priority,
            max_concurrency=spec.max_concurrency,
            requests_per_minute=spec.requests_per_minute,
            tokens_per_minute=spec.tokens_per_minute,
            timeouts=TimeoutsShape.of(spec.timeouts),
            health_check=HealthCheckShape.of(spec.health_check),
            breaker=BreakerShape.of(spec.breaker),
            price=PriceView.of(spec.price),
            created_at=row.created_at,
            updated_at=row.updated_at,
        )


# ── Administrators and the trail ──────────────────────────────────────────────────────────────────────────────────────


class AdminCreate(_Body):
    name: Text = Field(examples=["Ada Lovelace"])
    role: Role = Field(examples=["viewer"])
    expires_at: Moment | None = None

    def spec(self) -> AdminSpec:
        return AdminSpec(**self.fields())


class AdminPatch(_Body):
    name: Text = ""
    role: Role = Role.VIEWER
    expires_at: Moment | None = None

    def changes(self) -> AdminChanges:
        return cast(AdminChanges, self.fields(only_named=True))


class AdminView(_View):
    id: str
    name: str
    role: Role
    last4: str
    status: str = Field(description="active, expired or revoked", examples=["active"])
    expires_at: Moment | None
    revoked_at: Moment | None
    created_at: Moment

    @classmethod
    def of(cls, row: AdminRow, now: datetime) -> AdminView:
        return cls(**_admin_fields(row, now))


class AdminCreated(AdminView):
    token: str = Field(description="The bearer token. It is shown here and never again.", examples=["ag-admin-…"])

    @classmethod
    def with_secret(cls, row: AdminRow, secret: str, now: datetime) -> AdminCreated:
        return cls(**_admin_fields(row, now), token=secret)


def _admin_fields(row: AdminRow, now: datetime) -> dict[str, Any]:
    ended = "revoked" if row.revoked_at else "expired"
    return {
        "id": row.id,
        "name": row.spec.name,
        "role": row.spec.role,
        "last4": row.last4,
        "status": "active" if row.is_active_at(now) else ended,
        "expires_at": row.spec.expires_at,
        "revoked_at": row.revoked_at,
        "created_at": row.created_at,
    }


class AuditView(_View):
    id: str
    at: Moment
    actor: str
    role: str
    address: str | None
    action: str = Field(examples=["key.create"])
    object_kind: str
    object_id: str
    before: Any = Field(description="As it was; money in nanodollars, prices in picodollars, as the names say.")
    after: Any
    hash: str = Field(description="SHA-256 over this row and the hash before it, in hexadecimal.")

    @classmethod
    def of(cls, row: AuditRow) -> AuditView:
        return cls(
            id=str(row.id),
            at=row.at,
            actor=row.actor,
            role=row.role,
            address=row.address,
            action=row.action,
            object_kind=row.object_kind,
            object_id=row.object_id,
            before=row.before,
            after=row.after,
            hash=row.hash.hex(),
        )


class AuditVerdictView(_View):
    verified: int = Field(examples=[1234])
    valid: bool
    first_invalid_id: str | None


class ResealedView(_View):
    endpoints: int
    left_out: list[str]
    unused_keys: int

    @classmethod
    def of(cls, done: Resealed) -> ResealedView:
        return cls(endpoints=done.endpoints, left_out=list(done.left_out), unused_keys=done.unused_keys)


class PageView(_View, Generic[Item]):
    items: list[Item]
    next_cursor: str | None = Field(description="Send it as ?cursor= for the next page; null: this is the last.")
