"""Counters that survive a store which loses its memory: what this process knows, it can tell again.

1. Of every call that runs, the reservation is kept as it was granted; of every settlement, the record and its budgets, and of every
   refusal the record, until the drainer has passed the position that the record had in the stream. Then SQL has it, and nothing can
   lose it any more.
2. A store that has lost its memory has no epoch. Whoever finds that first begins a new one; every process sees it in the answer to an
   admission, when it connects, or when it looks, twice a second.
3. It then tells again: first the reservations, then the records. Settlements that come in meanwhile wait for it, for a reservation that
   is told after its settlement would never end. Everything told is known by its call, so telling twice changes nothing.
4. A budget is counted from the ledger only when the epoch is old enough for all processes to have told, and when no record that
   belongs to it is still in the stream. Until then the calls that need it wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import msgspec

from app.clock import Clock
from app.domain.budget import BudgetClaim, BudgetState
from app.domain.limits import Claim, ClaimState
from app.domain.money import NanoUsd
from app.exceptions import DependencyUnavailable
from app.storage.ports import (
    Admission,
    Admitted,
    BudgetsUnseeded,
    Checkpoint,
    Epoch,
    EpochLost,
    Reservation,
    SeedingTooEarly,
    SeedTicket,
    Settlement,
    SharedCounters,
    UsageSink,
    UsageStore,
)
from app.telemetry import logger

SEED_PATIENCE_S = 5.0
"""How long a call waits for its budgets to be counted again, before it is told to come back."""
SEED_PAUSE_S = 0.25
TOLD_AT_ONCE = 200
"""Commands under way while telling again; more would only wait in line, each with its deadline running."""
KEPT_BYTES = 32 * 1024 * 1024
"""Records kept for telling again, at most. Beyond that (PostgreSQL is away for long) the oldest are held by the store's own log alone."""
RESEND_AFTER_S = 2.0
"""A settlement whose caller was cancelled while it was under way is sent again after this long, to learn its position."""

Item = TypeVar("Item")


class Kept(msgspec.Struct):
    """A settlement that SQL may not have yet, or the record of a refusal."""

    settlement: Settlement
    budgets: tuple[str, ...] = ()
    epoch: str = ""
    """The one in which the call was admitted; a reservation that is missing in that one was settled before."""
    must_book: bool = False
    """The store knows no reservation of this call: its cost is booked by the budgets' names."""
    position: str | None = None
    sent_s: float = 0.0
    is_refusal: bool = False
    is_lost: bool = False
    """It says only that its process is gone; whoever knows more of the call is right."""


def refusal(call_id: str, packed: bytes) -> Kept:
    return Kept(Settlement(call_id, NanoUsd(0), 0, packed), is_refusal=True)


class RecoveringCounters:
    """Counters of all processes. Epochs and absent budgets are dealt with in here; callers see neither."""

    def __init__(
        self,
        shared: SharedCounters,
        *,
        sink: UsageSink,
        ledger: UsageStore,
        clock: Clock,
        told_time: Callable[[int, float], None] = lambda store_ms, took_s: None,
    ) -> None:
        """`told_time` is told, at every look, what time it is at the store in ms, and how many seconds the answer took."""
        self._told_time = told_time
        self._shared = shared
        self._sink = sink
        self._ledger = ledger
        self._clock = clock
        self._epoch: str | None = None
        self._generation = 0
        """Counts what was begun to be told again; an answer that spans two of them proves nothing."""
        self._looking = asyncio.Lock()
        self._has_told = asyncio.Event()
        self._has_told.set()
        self._open: dict[str, tuple[Reservation, Admitted]] = {}
        self._checkpoints: dict[str, Checkpoint] = {}
        """The last of each call that is open."""
        self._unconfirmed: dict[str, Kept] = {}
        self._kept_bytes = 0
        self.processes = 1

    # ── Calls ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def admit(self, reservation: Reservation) -> Admission:
        """Raises: DependencyUnavailable, also when the budgets could not be counted again in time."""
        deadline_s = 0.0
        while True:
            if self._epoch is None:
                await self.look()
            generation = self._generation
            answer = await self._shared.admit(reservation)
            if isinstance(answer, Admitted):
                while generation != self._generation:
                    generation = self._generation
                    await self._shared.reassert(reservation, answer)
                self._open[reservation.call_id] = (reservation, answer)
                return answer
            if not isinstance(answer, EpochLost | BudgetsUnseeded):
                return answer
            deadline_s = deadline_s or self._clock.monotonic() + SEED_PATIENCE_S
            wait_s = await self._mended(answer, generation)
            if wait_s:
                if self._clock.monotonic() + wait_s > deadline_s:
                    raise DependencyUnavailable("ledger")
                await self._clock.sleep(wait_s)

    async def tell(self, reservation: Reservation, admitted: Admitted) -> None:
        """Of a call that runs, and that the store did not admit: it counts from now on, and keeps a lease."""
        self._open[reservation.call_id] = (reservation, admitted)
        await self._shared.reassert(reservation, admitted)

    async def settle(self, settlement: Settlement) -> None:
        await self.send(self.taken(settlement))

    def taken(self, settlement: Settlement) -> Kept:
        """Close the call here: from now on it is its settlement that is told again."""
        again = self._unconfirmed.get(settlement.call_id)
        if again is not None:
            return again
        held = self._closed(settlement.call_id)
        budgets = tuple(claim.counter for claim in held[0].budgets) if held else ()
        return Kept(settlement, budgets, self._epoch or "")

    async def send(self, kept: Kept) -> None:
        """Hand a settlement to the store. Raises: CounterStoreAway; it is then still kept, and sent again by `look`.

        A caller that is cancelled meanwhile leaves it to `look` as well.
        """
        self.keep(kept)
        kept.sent_s = self._clock.monotonic()
        if not self._has_told.is_set():
            kept.must_book = True
            await self._has_told.wait()
        await self._deliver(kept)

    async def release(self, call_id: str, *, is_over: bool = True) -> None:
        self._closed(call_id)
        await self._shared.release(call_id, is_over=is_over)

    async def join(self, call_id: str, claims: Sequence[BudgetClaim]) -> None:
        held = self._open.get(call_id)
        if held is None:
            return
        reservation, admitted = held
        known = {claim.counter for claim in reservation.budgets}
        claims = [claim for claim in claims if claim.counter not in known]
        amount = admitted.budgets[0].claim.amount_nanousd if admitted.budgets else None
        joined = [
            claim if amount is None else msgspec.structs.replace(claim, amount_nanousd=amount) for claim in claims
        ]
        self._open[call_id] = (
            msgspec.structs.replace(reservation, budgets=(*reservation.budgets, *joined)),
            msgspec.structs.replace(admitted, budgets=(*admitted.budgets, *(_untouched(claim) for claim in joined))),
        )
        await self._shared.join(call_id, joined)

    async def checkpoint(self, checkpoints: Sequence[Checkpoint]) -> None:
        self._checkpoints.update((each.call_id, each) for each in checkpoints if each.call_id in self._open)
        await self._shared.checkpoint(checkpoints)

    async def grow(self, call_id: str, output_tokens: int) -> int:
        granted = await self._shared.grow(call_id, output_tokens)
        self._note_growth(call_id, granted)
        return granted

    def is_open(self, call_id: str) -> bool:
        """Whether it runs here, and holds what the store granted it."""
        return call_id in self._open

    def granted(self, call_id: str) -> int:
        """How many output tokens are reserved for, as far as is known here."""
        held = self._open.get(call_id)
        return held[1].output_tokens if held else 0

    async def renew(self, call_ids: Sequence[str], lease_s: int) -> list[str]:
        """Those that the store does not know although it has forgotten nothing: their lease ran out while this process stood still."""
        gone = await self._shared.renew(call_ids, lease_s)
        if not gone:
            return []
        generation = self._generation
        await self.look()
        if generation != self._generation:
            return []  # it had lost its memory, and has been told
        return gone

    async def expire_leases(self, limit: int) -> int:
        return await self._shared.expire_leases(limit)

    async def seed(self, claim: BudgetClaim, spent: NanoUsd) -> None:
        await self._shared.seed(claim, spent)

    async def budget_states(self, claims: Sequence[BudgetClaim]) -> list[BudgetState | None]:
        return await self._shared.budget_states(claims)

    async def limit_states(self, claims: Sequence[Claim]) -> list[ClaimState]:
        return await self._shared.limit_states(claims)

    async def room_in_ms(self, claim: Claim, amount: int) -> int:
        return await self._shared.room_in_ms(claim, amount)

    # ── Looking, and telling again ────────────────────────────────────────────────────────────────────────────────────

    async def look(self) -> None:
        """Look at the epoch; tell again what it does not know; send again what has no position; forget what SQL has."""
        async with self._looking:
            asked_s = self._clock.monotonic()
            epoch = await self._shared.epoch()
            self._told_time(epoch.now_ms, self._clock.monotonic() - asked_s)
            self.processes = max(1, epoch.processes)
            if self._epoch is not None and epoch.token != self._epoch:
                await self._tell_again(epoch)
            self._epoch = epoch.token
            self._forget_up_to(epoch.drained)
        before_s = self._clock.monotonic() - RESEND_AFTER_S
        stale = [kept for kept in self._unconfirmed.values() if kept.position is None and kept.sent_s < before_s]
        await each_of(stale, self.send)

    async def _look_unless_past(self, generation: int) -> None:
        """Of all the calls that find the memory gone at once, one looks; the others wait for it."""
        if self._looking.locked():
            async with self._looking:
                pass
        if generation == self._generation:
            await self.look()

    async def recorded(self, call_ids: Sequence[str]) -> Mapping[str, bool]:
        """Those of the calls that SQL has, and whether only as lost. Raises: DependencyUnavailable."""
        return await self._ledger.recorded(call_ids)

    def has_taken(self, call_id: str) -> bool:
        """Whether the store has this settlement, as far as is known here."""
        kept = self._unconfirmed.get(call_id)
        return kept is None or kept.position is not None

    @property
    def unconfirmed(self) -> int:
        """Settlements that SQL may not have yet."""
        return len(self._unconfirmed)

    async def _tell_again(self, epoch: Epoch) -> None:
        self._generation += 1
        self._has_told.clear()
        opened, records = list(self._open.values()), list(self._unconfirmed.values())
        try:
            await each_of(opened, lambda held: self._shared.reassert(*held))
            await self._shared.checkpoint(list(self._checkpoints.values()))
            for kept in records:
                kept.position, kept.must_book = None, True
            self._epoch = epoch.token
            await each_of(records, self._deliver)
        finally:
            self._has_told.set()
        logger.warning("counters_lost_their_memory", reservations=len(opened), records=len(records))

    async def _deliver(self, kept: Kept) -> None:
        generation = self._generation
        if kept.is_refusal:
            position = await self._sink.append(kept.settlement.call_id, kept.settlement.record)
            if kept.must_book:
                await self._shared.release(kept.settlement.call_id)  # its admission may still be on its way
            if generation == self._generation:
                kept.position = position
            return
        named = kept.budgets if kept.must_book else None
        settled = await self._shared.book(kept.settlement, named, unless_known=kept.is_lost)
        if settled.unknown_in is not None and settled.unknown_in != kept.epoch and not kept.must_book:
            kept.must_book = True  # memory was lost since the call was admitted, and we are the first to see it
            settled = await self._shared.book(kept.settlement, kept.budgets)
        if generation == self._generation:
            kept.position = settled.position

    async def _mended(self, answer: EpochLost | BudgetsUnseeded, generation: int) -> float:
        """Do what stood in the way of an admission. Returns how long to wait before asking again, in seconds."""
        if isinstance(answer, EpochLost):
            await self._look_unless_past(generation)
            return 0.0
        waits = [await self._seeded(claim) for claim in answer.claims]
        return max(waits, default=0.0)

    async def _seeded(self, claim: BudgetClaim) -> float:
        match await self._shared.may_seed(claim):
            case SeedTicket() as ticket:
                await self._shared.seed_with(ticket, claim, await self._ledger.spent(claim))
            case SeedingTooEarly(retry_after_ms):
                return min(SEED_PAUSE_S, retry_after_ms / 1000)
            case EpochLost():
                await self.look()
            case None:
                pass
        return 0.0

    def _closed(self, call_id: str) -> tuple[Reservation, Admitted] | None:
        self._checkpoints.pop(call_id, None)
        return self._open.pop(call_id, None)

    def _note_growth(self, call_id: str, granted: int) -> None:
        """Keep the reservation as it is now."""
        held = self._open.get(call_id)
        if held is None:
            return
        reservation, admitted = held
        amount = reservation.need.cost_of(granted)
        budgets = tuple(
            msgspec.structs.replace(state, claim=msgspec.structs.replace(state.claim, amount_nanousd=amount))
            for state in admitted.budgets
        )
        self._open[call_id] = (reservation, Admitted(admitted.limits, budgets, granted))

    # ── What is kept ──────────────────────────────────────────────────────────────────────────────────────────────────

    def keep(self, kept: Kept) -> None:
        """Hold it until SQL has it; `look` sends what has no position."""
        call_id = kept.settlement.call_id
        if call_id not in self._unconfirmed:
            self._kept_bytes += len(kept.settlement.record)
        self._unconfirmed[call_id] = kept
        while self._kept_bytes > KEPT_BYTES:
            oldest = next(iter(self._unconfirmed.values()))
            if oldest.position is None:
                return
            self.forget(oldest)

    def _forget_up_to(self, drained: str) -> None:
        """Settlements stand about in the order of their positions: the first that is not drained ends the search."""
        if not drained:
            return
        mark, passed = _order(drained), []
        for kept in self._unconfirmed.values():
            if kept.position is not None:
                if kept.position and _order(kept.position) > mark:
                    break
                passed.append(kept)
        for kept in passed:
            self.forget(kept)

    def forget(self, kept: Kept) -> None:
        """Somebody else holds it now."""
        if self._unconfirmed.pop(kept.settlement.call_id, None) is not None:
            self._kept_bytes -= len(kept.settlement.record)


async def each_of(items: Iterable[Item], work: Callable[[Item], Awaitable[None]]) -> None:
    """Do it for all, a few hundred at once. The first failure is raised when its batch is over."""
    waiting = list(items)
    for start in range(0, len(waiting), TOLD_AT_ONCE):
        results = await asyncio.gather(*map(work, waiting[start : start + TOLD_AT_ONCE]), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result


def _untouched(claim: BudgetClaim) -> BudgetState:
    return BudgetState(claim, NanoUsd(0), NanoUsd(0))


def _order(position: str) -> tuple[int, int]:
    milliseconds, _, number = position.partition("-")
    return int(milliseconds), int(number or 0)
