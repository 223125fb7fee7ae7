"""What an import is going to create, as bodies of the admin API, and what it leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import ROUND_DOWN, Decimal, InvalidOperation
from typing import Any

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Note:
    """Something that was not carried over, or not exactly; `what` and `name` say of which object."""

    what: str
    name: str
    why: str


@dataclass(frozen=True, slots=True)
class PlannedKey:
    body: Body
    sha256: bytes = field(repr=False)
    """All that LiteLLM stores of a key. With it the key goes on working where `ACCEPT_LITELLM_KEYS` is on."""
    last4: str
    is_revoked: bool = False


@dataclass(slots=True)
class Plan:
    models: list[Body] = field(default_factory=list)
    endpoints: list[Body] = field(default_factory=list)
    users: list[Body] = field(default_factory=list)
    keys: list[PlannedKey] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

    def note(self, what: str, name: object, why: str) -> None:
        self.notes.append(Note(what, str(name)[:200], why))

    @property
    def model_names(self) -> set[str]:
        names = {str(body["name"]) for body in self.models}
        return names | {alias for body in self.models for alias in body.get("aliases", ())}


@dataclass(frozen=True, slots=True)
class Allowance:
    """Limits and budgets in LiteLLM's words: of a key, a user, a team or a row that several share."""

    max_budget: Any = None
    soft_budget: Any = None
    budget_duration: Any = None
    rpm_limit: Any = None
    tpm_limit: Any = None
    max_parallel_requests: Any = None

    @classmethod
    def of(cls, row: Body, shared: Body) -> Allowance:
        """What the row says itself comes before what the row that it shares with others says."""
        given = {name: row.get(name) for name in cls.__slots__}
        return cls(**{name: shared.get(name) if value in (None, "") else value for name, value in given.items()})


PERIODS = {
    "1d": "daily",
    "24h": "daily",
    "7d": "weekly",
    "1w": "weekly",
    "30d": "monthly",
    "1mo": "monthly",
    "28d": "monthly",
}
"""LiteLLM counts so many days from a reset on; here days, weeks and months are the calendar's."""


def limits_of(allowance: Allowance) -> list[Body] | None:
    """None when it names none, so that the defaults hold. Raises: ValueError."""
    limits: list[Body] = []
    for kind, value, window_s in (
        ("requests", allowance.rpm_limit, 60),
        ("tokens", allowance.tpm_limit, 60),
        ("concurrency", allowance.max_parallel_requests, 0),
    ):
        if value not in (None, ""):
            limits.append({"kind": kind, "limit": whole(value), "window_seconds": window_s})
    return limits or None


def budgets_of(allowance: Allowance) -> list[Body]:
    """Over a duration that is none of our periods a budget holds in total: stricter, until the operator chooses. Raises: ValueError."""
    if allowance.max_budget in (None, "") and allowance.soft_budget in (None, ""):
        return []
    body: Body = {"period": PERIODS.get(str(allowance.budget_duration or ""), "total")}
    for ours, value in (("hard_limit_usd", allowance.max_budget), ("soft_limit_usd", allowance.soft_budget)):
        if value not in (None, ""):
            body[ours] = dollars(value)
    return [body]


def whole(value: object) -> int:
    number = float(str(value))
    if not number.is_integer() or number < 0:
        raise ValueError(f"'{str(value)[:20]}' is no whole number")
    return int(number)


def dollars(value: object) -> str:
    """As a decimal text of at most nine places, without the noise of binary fractions."""
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        raise ValueError(f"'{str(value)[:20]}' is no amount") from None
    if not amount.is_finite() or amount < 0:
        raise ValueError(f"'{str(value)[:20]}' is no amount")
    return format(amount.quantize(Decimal("0.000000001"), ROUND_DOWN).normalize(), "f")


def moment(value: object) -> datetime | None:
    """A time of the export; without a zone it is UTC. Raises: ValueError."""
    if value in (None, ""):
        return None
    read = value if isinstance(value, datetime) else datetime.fromisoformat(str(value).replace("Z", "+00:00"))
    return read.replace(tzinfo=UTC) if read.tzinfo is None else read
