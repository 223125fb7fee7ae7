"""What can be called: models, the endpoints that serve them, their prices and limits, as one immutable value.

A call takes one catalog and keeps it; an edit builds a new one with a higher revision and swaps the reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from app.domain.breaker import BreakerRules
from app.domain.budget import Budget
from app.domain.identity import Identity
from app.domain.limits import Limit
from app.domain.pricing import Price
from app.exceptions import ModelNotAllowed, ModelNotFound


class ProviderKind(StrEnum):
    """The kind of adapter that speaks to an endpoint."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    LITELLM = "litellm"
    DEMO = "demo"


class Strategy(StrEnum):
    ROUND_ROBIN = "round_robin"
    LEAST_BUSY = "least_busy"
    LATENCY = "latency"
    COST = "cost"


class Sticky(StrEnum):
    """What keeps calls with the same endpoint, for the sake of its prompt cache."""

    USER = "user"
    PROMPT = "prompt"


@dataclass(frozen=True, slots=True)
class Shadow:
    """A model that is sent a share of another one's calls beside it; its answers are thrown away."""

    model: str
    percent: float


class HealthCheckKind(StrEnum):
    MODELS = "models"
    COMPLETION = "completion"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Timeouts:
    connect_s: float = 5.0
    first_token_s: float = 60.0
    between_tokens_s: float = 30.0
    total_s: float = 600.0
    unary_s: float = 600.0
    """How long a unary answer may let itself be waited for. It shows nothing until it is whole, so the deadline of a first token
    would cut every long one; where an operator sets that deadline and not this, it holds for both."""

    def first_byte_s(self, *, is_stream: bool) -> float:
        return self.first_token_s if is_stream else self.unary_s


@dataclass(frozen=True, slots=True)
class HealthCheck:
    kind: HealthCheckKind = HealthCheckKind.MODELS
    interval_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One upstream that serves a model."""

    id: str
    model: str
    provider: ProviderKind
    upstream_model: str
    api_base: str
    credential: str | None = field(default=None, repr=False)
    """The upstream's key, decrypted; never in a repr, a log or an answer."""
    weight: int = 1
    priority: int = 0
    max_concurrency: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    timeouts: Timeouts = Timeouts()
    health_check: HealthCheck = HealthCheck()
    breaker: BreakerRules = BreakerRules()
    price: Price | None = None
    """Overrides the model's price for calls that this endpoint answers."""
    is_draining: bool = False

    @property
    def is_limited(self) -> bool:
        """It has limits of its own, which hold over all processes."""
        return (
            self.max_concurrency is not None
            or self.requests_per_minute is not None
            or self.tokens_per_minute is not None
        )


@dataclass(frozen=True, slots=True)
class Model:
    """The name that clients ask for."""

    name: str
    aliases: tuple[str, ...] = ()
    strategy: Strategy = Strategy.ROUND_ROBIN
    fallbacks: tuple[str, ...] = ()
    sticky: Sticky | None = None
    max_retries: int | None = None
    """How many endpoints more may be asked when the first one fails; None: two."""
    shadow: Shadow | None = None
    context_window_tokens: int | None = None
    max_output_tokens: int | None = None
    price: Price | None = None
    limits: tuple[Limit, ...] = ()
    budgets: tuple[Budget, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    created_at_s: int = 0
    """Unix time of its registration, as `GET /v1/models` shows it."""

    def price_at(self, endpoint: Endpoint) -> Price | None:
        return endpoint.price or self.price


@dataclass(frozen=True, slots=True)
class Catalog:
    revision: int
    models: Mapping[str, Model]
    """By name, in order of registration."""
    names: Mapping[str, str]
    """Every name and alias → the model's own name."""

    @classmethod
    def of(cls, revision: int, models: Iterable[Model]) -> Catalog:
        by_name = {model.name: model for model in models}
        names = {alias: model.name for model in by_name.values() for alias in model.aliases}
        names.update({name: name for name in by_name})
        return cls(revision, MappingProxyType(by_name), MappingProxyType(names))

    def renewed(self, revision: int, models: Iterable[Model], order: Sequence[str] | None = None) -> Catalog:
        """The same with these models in place of those of their names; whatever did not change stays the very same object.

        `order` names all that are left, where some came or went; without it all stay where they are.
        """
        now = dict(self.models)
        for model in models:
            now[model.name] = model if model != now.get(model.name) else now[model.name]
        return Catalog.of(revision, now.values() if order is None else (now[name] for name in order))

    def model_for(self, identity: Identity, requested: str) -> Model:
        """The model behind a name or alias. Raises: ModelNotFound, ModelNotAllowed (by the model's own name or the alias)."""
        name = self.names.get(requested)
        if name is None:
            raise ModelNotFound(requested)
        if not (identity.may_use(name) or identity.may_use(requested)):
            raise ModelNotAllowed(requested)
        return self.models[name]

    def visible_to(self, identity: Identity) -> list[tuple[str, Model]]:
        """The models that may be asked for, each by its own name, or by those aliases that are allowed where that is not."""
        return [
            (name, model)
            for model in self.models.values()
            for name in ((model.name,) if identity.may_use(model.name) else self._allowed_aliases(model, identity))
        ]

    def _allowed_aliases(self, model: Model, identity: Identity) -> list[str]:
        return [alias for alias in model.aliases if self.names[alias] == model.name and identity.may_use(alias)]


EMPTY = Catalog.of(0, ())
