"""What the proof of the ledger asks of the stores: see `app.services.verify_ledger`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from app.domain.budget import BudgetClaim
from app.domain.pricing import Price, Usage
from app.domain.record import AttemptDetail, CallRecord, CostLineDetail

# ── SQL ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class RollupKey:
    """Under which a call is summed; empty where it had no key, app or endpoint."""

    hour: datetime
    user_oid: str
    key_id: str
    app_id: str
    model: str
    endpoint_id: str

    def __str__(self) -> str:
        held = (("user", self.user_oid), ("key", self.key_id), ("app", self.app_id), ("model", self.model))
        named = [f"{name} {value}" for name, value in (*held, ("endpoint", self.endpoint_id)) if value]
        return ", ".join((f"{self.hour:%Y-%m-%dT%H:00Z}", *named))


@dataclass(frozen=True, slots=True)
class RollupGap:
    """One key of one hour where the rollup is not the sum of the ledger. Sums by column; a row that is absent is all zeros."""

    key: RollupKey
    in_ledger: Mapping[str, int]
    in_rollups: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class RefusalGap:
    """One hour and reason for which another number of refused calls is counted than there are."""

    hour: datetime
    error_code: str
    http_status: int
    in_log: int
    in_rollups: int

    def __str__(self) -> str:
        return f"{self.hour:%Y-%m-%dT%H:00Z}, {self.http_status} {self.error_code}".rstrip()


@dataclass(frozen=True, slots=True)
class RollupSlice:
    """What comparing one stretch of time found."""

    until: datetime
    gaps: list[RollupGap]
    endpoint_gaps: list[RollupGap] = field(default_factory=list)
    """The same of the sums by model and endpoint, which no budget is read from."""
    day_gaps: list[RollupGap] = field(default_factory=list)
    """Where a day's sums are not those of its hours; told with the day's last stretch."""
    refusal_gaps: list[RefusalGap] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Bill:
    """One row of the ledger, as far as it is about money. `usage` and `lines` are None where the row's explanation is unreadable."""

    request_id: str
    outcome: str
    price_id: str | None
    cost_nanousd: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    usage: Usage | None
    lines: tuple[CostLineDetail, ...] | None
    attempts: tuple[AttemptDetail, ...] = ()


@dataclass(frozen=True, slots=True)
class Booked:
    """A call as the ledger has it."""

    cost_nanousd: int
    is_lost: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """What the ledger says at one moment: spent by claim, in their order, and those of the asked calls that it holds."""

    spent_nanousd: list[int]
    booked: Mapping[str, Booked]


class LedgerProof(Protocol):
    async def months(self) -> list[tuple[int, int]]:
        """The months whose records are kept, as (year, month)."""
        ...

    async def months_dropped(self) -> list[tuple[int, int]]:
        """Months that have rollups, and whose records are gone: nothing can be proved about them."""
        ...

    async def rows(self) -> int:
        """About how many records there are."""
        ...

    def rollup_gaps(self, month: tuple[int, int]) -> AsyncIterator[RollupSlice]:
        """Where rollups and ledger differ, in stretches that a transaction each can take."""
        ...

    def bills(self, month: tuple[int, int]) -> AsyncIterator[Sequence[Bill]]:
        """Every record of the month, in pages."""
        ...

    async def price(self, price_id: str) -> Price | None:
        """A row of the price history."""
        ...

    async def budgets_opened(self) -> Mapping[str, int]:
        """The budgets in force, as `scope:id:kind`, and when they were opened."""
        ...

    async def standing(self, claims: Sequence[BudgetClaim], call_ids: Collection[str]) -> Standing:
        """All as of one moment."""
        ...


# ── Redis ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Counter:
    """A budget's counter. What is no number is given as the text that stands there."""

    spent_nanousd: int | str | None
    """None before it has been counted from the ledger."""
    reserved_nanousd: int | str
    opened_ms: int | None = None
    """When the budget was opened that it was counted for, where it says so."""


@dataclass(frozen=True, slots=True)
class OpenCall:
    """A reservation that has not ended: what it holds, by the counter's name, and until when (None: nobody will end it)."""

    call_id: str
    held: Mapping[str, int]
    lease_ends_ms: int | None


@dataclass(frozen=True, slots=True)
class Waiting:
    """Records on their way to the ledger, and the positions of those that cannot be read."""

    records: list[CallRecord]
    unreadable: list[str]


@dataclass(frozen=True, slots=True)
class Slot:
    """A place that a call takes of a limit on calls at once."""

    counter: str
    call_id: str


class CounterProof(Protocol):
    async def names(self) -> list[str]:
        """All budget counters: `scope:id:period`."""
        ...

    async def counters(self, names: Sequence[str]) -> list[Counter | None]: ...

    async def open_calls(self) -> list[OpenCall]: ...

    async def slots(self) -> list[Slot]:
        """Those taken and not yet run out."""
        ...

    async def waiting(self) -> Waiting: ...

    async def now_ms(self) -> int: ...
