"""What the alerts ask of the database, and of whoever carries them out of the house."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from app.domain.alerts import BudgetAlert, Sent
from app.domain.budget import Budget, Period
from app.domain.limits import Scope
from app.domain.money import NanoUsd
from app.storage.management_ports import Page

Holder = tuple[Scope, str]


class DeliveryState(StrEnum):
    NONE = "none"
    """No webhook was configured when the alert was made."""
    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"
    """Given up after a day."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """An alert on its way out; `attempts` counts the one about to be made."""

    alert: BudgetAlert
    attempts: int
    since: datetime


@dataclass(frozen=True, slots=True)
class AlertRow:
    """An alert with what became of its delivery."""

    alert: BudgetAlert
    state: DeliveryState
    attempts: int = 0
    next_attempt_at: datetime | None = None
    delivered_at: datetime | None = None
    last_status: int | None = None
    last_error: str | None = None


class WebhookSender(Protocol):
    async def send(self, event_id: str, body: bytes) -> Sent:
        """Send one signed event. Never raises for what the receiver or the network does: `Sent` says it."""
        ...


class AlertsUnreadable(Exception):
    """The database answered, and will not answer otherwise to the same question: a value or a table that it does not know."""


class AlertStore(Protocol):
    """Every method may raise DependencyUnavailable; the first three AlertsUnreadable."""

    async def budgets_of(self, holders: Sequence[Holder]) -> Mapping[Holder, tuple[Budget, ...]]:
        """The budgets of these holders; those without any are absent."""
        ...

    async def spent(self, scope: Scope, period: Period, scope_ids: Sequence[str]) -> Mapping[str, NanoUsd]:
        """What the ledger says each of these has spent in the period; absent means nothing."""
        ...

    async def keep(self, alerts: Sequence[BudgetAlert], *, for_delivery: bool) -> list[BudgetAlert]:
        """Store alerts, and with `for_delivery` put them into the outbox in the same transaction. Returns those that are new."""
        ...

    async def claim_due(self, *, now: datetime, until: datetime, limit: int) -> list[Delivery]:
        """Take deliveries that are due; nobody else gets them before `until`."""
        ...

    async def delivered(self, alert_id: str, sent: Sent, at: datetime) -> None: ...

    async def not_delivered(self, alert_id: str, sent: Sent, *, again_at: datetime | None, at: datetime) -> None:
        """Try again then; None: never again."""
        ...

    async def page(self, *, limit: int, cursor: str | None) -> Page[AlertRow]:
        """Newest first."""
        ...
