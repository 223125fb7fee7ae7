"""What the judge looks at: the values of one run, all of them plain, so that a test can plant any lie among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from app.torture.invoice import InvoiceLine, Price
from app.torture.notes import CallNote
from app.torture.stage import BudgetRule, LimitRule


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One row of the ledger, as SQL has it. Times are Unix seconds."""

    request_id: str
    marker: str | None
    created_at: float
    user_oid: str
    key_id: str | None
    app_id: str | None
    served_model: str
    endpoint_id: str | None
    outcome: str
    usage_quality: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    cost_nanousd: int
    sent_after_ms: int | None
    """When its first attempt at an upstream began, counted from `created_at`; None: there was none, or nobody knows."""
    failed_nanousd: int = 0
    """The part of its cost that is of failed attempts."""


@dataclass(frozen=True, slots=True)
class Rollup:
    """One row of the hourly sums. `holder` is hour, user, key, app, model, endpoint; `sums` requests, errors, then prompt, completion,
    cached and reasoning tokens, then cost."""

    holder: tuple[str, ...]
    sums: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BudgetCounter:
    """A budget as the counter store knows it."""

    scope: str
    holder: str
    spent_nanousd: int | None
    """None: not seeded yet, so nobody relies on it."""
    reserved_nanousd: int


@dataclass(frozen=True, slots=True)
class Counters:
    """What the counter store holds after quiet."""

    open_reservations: tuple[str, ...] = ()
    """Call ids."""
    leases: tuple[str, ...] = ()
    slots: tuple[tuple[str, str], ...] = ()
    """Concurrency slots still taken: the counter's name and the call id."""
    undrained_records: int = 0
    budgets: tuple[BudgetCounter, ...] = ()


@dataclass(slots=True)
class Evidence:
    lease_s: float
    prices: Mapping[str, Price]
    limits: list[LimitRule] = field(default_factory=list)
    budgets: list[BudgetRule] = field(default_factory=list)
    notes: list[CallNote] = field(default_factory=list)
    lines: list[InvoiceLine] = field(default_factory=list)
    rows: list[LedgerRow] = field(default_factory=list)
    refused: list[tuple[str, str | None]] = field(default_factory=list)
    """Request id and marker of every refusal on record."""
    rollups: list[Rollup] = field(default_factory=list)
    counters: Counters = field(default_factory=Counters)
    redis_spans: list[tuple[float, float]] = field(default_factory=list)
    gateway_spans: Mapping[int, list[tuple[float, float]]] = field(default_factory=dict)
    """By gateway: from when to when it was dead or stopped."""
    gateways_missing: Mapping[int, str] = field(default_factory=dict)
    """Those that could not serve when all was whole again, and why."""
    gateways_undrained: list[int] = field(default_factory=list)
    """Those that did not end after SIGTERM."""
    gateway_errors: list[str] = field(default_factory=list)
    """What the gateways' logs call errors."""
    ledger_check: str | None = None
    """What `verify-ledger` complained about; None when it found nothing."""
