"""Limits in this process's memory: what one replica enforces of them while the shared counters are away.

Each limit is divided by the number of replicas, but is at least 1. Windows slide in the same slots as the shared ones. Budgets are not
kept here: what is a promise over all replicas cannot be kept by one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from msgspec.structs import replace

from app.domain.budget import BudgetState
from app.domain.limits import SLOTS, Claim, ClaimState, LimitKind, full_windows
from app.domain.money import NanoUsd
from app.storage.ports import Admitted, LimitRefused, Reservation

MAX_COUNTERS = 100_000
"""Beyond this the counter that was unused for longest is forgotten."""


@dataclass(slots=True)
class _Window:
    slots: OrderedDict[int, int] = field(default_factory=OrderedDict)
    total: int = 0

    def forget_before(self, first_live: int) -> None:
        while self.slots and (slot := next(iter(self.slots))) < first_live:
            self.total -= self.slots.pop(slot)

    def add(self, slot: int, amount: int) -> None:
        self.slots[slot] = self.slots.get(slot, 0) + amount
        self.total += amount

    def free_in_ms(self, excess: int, width_ms: int, window_ms: int, now_ms: int) -> int:
        for slot, amount in self.slots.items():
            excess -= amount
            if excess <= 0:
                return (slot + 1) * width_ms + window_ms - now_ms
        return window_ms


class LocalCounters:
    """Takes what `Counters.admit` and `settle` take. `now_ms` is any clock that never runs backwards."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._windows: OrderedDict[str, _Window] = OrderedDict()
        self._busy: dict[str, int] = {}
        self._calls: dict[str, tuple[int, tuple[Claim, ...]]] = {}

    def admit(self, reservation: Reservation, *, replicas: int) -> Admitted | LimitRefused:
        """All or nothing."""
        now_ms = self._now_ms()
        taken: list[Claim] = []
        for claim in reservation.claims:
            share = _share(claim, replicas)
            least = claim.amount if claim.least is None else claim.least
            total = self._total(claim, now_ms)
            if total + least > share:
                retry_ms = self._retry_ms(claim, total + least - share, now_ms)
                return LimitRefused(ClaimState(claim, max(0, share - total), retry_ms), retry_ms)
            taken.append(replace(claim, amount=min(claim.amount, share - total)))
        for claim in taken:
            self._take(claim, now_ms)
        self._calls[reservation.call_id] = (now_ms, tuple(taken))
        budgets = tuple(BudgetState(claim, NanoUsd(0), NanoUsd(0)) for claim in reservation.budgets)
        limits = tuple(ClaimState(claim, 0, claim.limit.window_s * 1000) for claim in taken)
        return Admitted(limits, budgets, reservation.need.max_output_tokens)

    def settle(self, call_id: str, *, tokens: int | None) -> bool:
        """Correct what was claimed; None: the call never reached an upstream. Returns whether it was admitted here."""
        admitted = self._calls.pop(call_id, None)
        if admitted is None:
            return False
        admitted_ms, claims = admitted
        for claim in claims:
            if claim.limit.kind is LimitKind.CONCURRENCY:
                self._busy[claim.counter] = max(0, self._busy.get(claim.counter, 0) - claim.amount)
                if not self._busy[claim.counter]:
                    del self._busy[claim.counter]
                continue
            used = tokens if claim.limit.kind is LimitKind.TOKENS else claim.amount
            window, slot = self._windows.get(claim.counter), admitted_ms // _width_ms(claim)
            if window is not None and slot in window.slots:
                window.add(slot, (0 if tokens is None else used or 0) - claim.amount)
        return True

    def room_in_ms(self, claim: Claim, amount: int, *, replicas: int) -> int:
        share, now_ms = _share(claim, replicas), self._now_ms()
        windows, rest = full_windows(amount, share)
        excess = self._total(claim, now_ms) + rest - share
        return windows * claim.limit.window_s * 1000 + (self._retry_ms(claim, excess, now_ms) if excess > 0 else 0)

    def _total(self, claim: Claim, now_ms: int) -> int:
        if claim.limit.kind is LimitKind.CONCURRENCY:
            return self._busy.get(claim.counter, 0)
        window = self._windows.get(claim.counter)
        if window is None:
            return 0
        window.forget_before((now_ms - claim.limit.window_s * 1000) // _width_ms(claim))
        return window.total

    def _retry_ms(self, claim: Claim, excess: int, now_ms: int) -> int:
        if claim.limit.kind is LimitKind.CONCURRENCY:
            return 1000
        window = self._windows.get(claim.counter, _Window())
        return window.free_in_ms(excess, _width_ms(claim), claim.limit.window_s * 1000, now_ms)

    def _take(self, claim: Claim, now_ms: int) -> None:
        if claim.limit.kind is LimitKind.CONCURRENCY:
            self._busy[claim.counter] = self._busy.get(claim.counter, 0) + claim.amount
            return
        window = self._windows.setdefault(claim.counter, _Window())
        self._windows.move_to_end(claim.counter)
        window.add(now_ms // _width_ms(claim), claim.amount)
        if len(self._windows) > MAX_COUNTERS:
            self._windows.popitem(last=False)


def _share(claim: Claim, replicas: int) -> int:
    return max(1, claim.limit.limit // max(1, replicas)) if claim.limit.limit else 0


def _width_ms(claim: Claim) -> int:
    return max(1, -(-claim.limit.window_s * 1000 // SLOTS))
