"""What happens to calls while the counter store is away, and to their records.

1. The first command that fails says that the store is away: no other call waits for it. Several times a second it is asked whether it
   is back.
2. Meanwhile (`ON_REDIS_DOWN=local`) limits are enforced on this replica's share. A call under a hard budget waits a moment for the
   store, and is then refused: one replica alone cannot keep that promise. With `refuse` all calls are.
3. What a call would leave if this process died is on the disk before it is sent; its settlement is before the caller has the last bytes
   of his answer. When the journal is full no call is begun.
4. When the store is back, it is first told what runs, then the journal is replayed. A settlement is known by its call: what the store
   had carried out before it fell silent changes nothing the second time. The journal is cleared when the store knows of every call
   that began without it, running or settled.
5. The journal of a process that is gone is replayed by another one; a call that it holds without a settlement is lost, and billed so,
   unless the store knows more of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import msgspec

from app.clock import Clock
from app.domain.budget import BudgetClaim, BudgetState
from app.domain.limits import Claim, ClaimState
from app.domain.money import NanoUsd
from app.exceptions import CounterStoreAway, DependencyUnavailable
from app.services.recovery import Kept, RecoveringCounters, each_of, refusal
from app.storage.journal import Journal, JournalFull, adopt_orphans, read_frames
from app.storage.local_counters import LocalCounters
from app.storage.ports import Admission, Admitted, Checkpoint, PendingRecord, Reservation, Settlement, UsageSink
from app.telemetry import logger

LOOK_EVERY_S = 0.5
"""How often a process looks at the store: three times within the quarantine that follows a loss of its memory."""
ASK_EVERY_S = 0.2
"""How often a store that is away is asked whether it is back."""
STALE_S = 1.0
"""When it was last asked longer ago than this, this process stood still meanwhile, and what it knows of the store is worth nothing."""
HARD_PATIENCE_S = 1.0
"""How long a call under a hard budget waits for the store to come back."""
ORPHANS_EVERY_S = 15.0
REPLAYED_AT_ONCE = 200


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One line of the journal: a settlement, or the record of a refusal."""

    call_id: str
    cost_nanousd: int
    tokens: int
    record: bytes
    budgets: tuple[str, ...]
    epoch: str
    must_book: bool
    is_lost: bool = False
    """What to settle with if nothing else is found: the process died before the call ended."""
    is_refusal: bool = False


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Entry).decode


class FallbackCounters:
    """The counters that services are given."""

    def __init__(
        self,
        recovering: RecoveringCounters,
        *,
        local: LocalCounters,
        journal: Journal,
        clock: Clock,
        is_local: bool,
    ) -> None:
        self._recovering = recovering
        self._local = local
        self._journal = journal
        self._clock = clock
        self._is_local = is_local
        self._back = asyncio.Event()
        self._back.set()
        self._asked_s = 0.0
        self._asking = asyncio.Lock()
        self._local_calls: dict[str, tuple[Reservation, Admitted]] = {}
        self._told: set[str] = set()
        """Those of them that the store has been told of since."""
        self._ending: set[str] = set()
        """Those that have ended, while it is not known that the store or the journal has their settlement."""
        self._doubtful: dict[str, bool] = {}
        """Calls that the store may have admitted before it fell silent, and whether they are over."""

    @property
    def is_away(self) -> bool:
        return not self._back.is_set()

    # ── Calls ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def admit(self, reservation: Reservation) -> Admission:
        """Raises: DependencyUnavailable."""
        if self._doubtful:  # one that waited in a queue is asked for again: what it gets now is not to be given back
            self._doubtful.pop(reservation.call_id, None)
        if not self._back.is_set() and self._is_stale:
            async with self._asking:  # one asks for all
                if self._is_stale:
                    await self._is_there()
        if self._back.is_set():
            try:
                return await self._recovering.admit(reservation)
            except CounterStoreAway:
                self._note_away()
        if not self._is_local:
            raise CounterStoreAway
        if any(claim.budget.hard_limit_nanousd is not None for claim in reservation.budgets):
            return await self._admit_once_back(reservation)
        if self._journal.is_full:
            raise DependencyUnavailable("journal")
        return await self._admit_locally(reservation)

    async def settle(self, settlement: Settlement) -> None:
        """Never fails: what the store does not take is written down, and what cannot be written down is kept in memory."""
        kept = self._recovering.taken(settlement)
        local = self._local_calls.pop(settlement.call_id, None)
        self._local.settle(settlement.call_id, tokens=settlement.tokens)
        if local is not None:
            self._told.discard(settlement.call_id)
            self._ending.add(settlement.call_id)
            kept.budgets, kept.must_book = _names(local[0]), True
        await self._handed_over(kept)
        if local is not None and self._recovering.has_taken(settlement.call_id):
            self._ending.discard(settlement.call_id)

    async def append(self, call_id: str, packed: bytes) -> str:
        """Hand over the record of a refusal. Raises: CounterStoreAway when the journal takes no more either."""
        kept = refusal(call_id, packed)
        if await self._handed_over(kept):
            return kept.position or ""
        self._recovering.forget(kept)
        raise CounterStoreAway

    async def _handed_over(self, kept: Kept) -> bool:
        """Whether the store took it, or else the journal."""
        if self._back.is_set():
            try:
                await self._recovering.send(kept)
                return True
            except CounterStoreAway:
                self._note_away()
        if kept.is_refusal and self._journal.is_half_full:
            return False
        self._recovering.keep(kept)  # until the journal has it: whoever waits for that may be cancelled
        try:
            await self._journal.append(_encode(_entry(kept)))
        except JournalFull:
            return False
        self._recovering.forget(kept)
        return True

    async def join(self, call_id: str, claims: Sequence[BudgetClaim]) -> None:
        """While the store is away a call that runs has what it had."""
        if not self._back.is_set():
            return
        try:
            await self._recovering.join(call_id, claims)
        except CounterStoreAway:
            self._note_away()

    async def checkpoint(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Raises: CounterStoreAway; nobody waits for it."""
        if not self._back.is_set():
            raise CounterStoreAway
        try:
            await self._recovering.checkpoint(checkpoints)
        except CounterStoreAway:
            self._note_away()
            raise

    async def release(self, call_id: str, *, is_over: bool = True) -> None:
        self._local.settle(call_id, tokens=None)
        if self._local_calls.pop(call_id, None) is not None:
            self._told.discard(call_id)
            self._doubtful[call_id] = is_over
            return
        await self._recovering.release(call_id, is_over=is_over)

    async def grow(self, call_id: str, output_tokens: int) -> int:
        """While the store is away nothing more is granted."""
        try:
            return await self._recovering.grow(call_id, output_tokens)
        except CounterStoreAway:
            self._note_away()
            return self._recovering.granted(call_id)

    async def renew(self, call_ids: Sequence[str], lease_s: int) -> list[str]:
        shared = [call_id for call_id in call_ids if call_id not in self._local_calls or call_id in self._told]
        return await self._recovering.renew(shared, lease_s) if shared else []

    async def expire_leases(self, limit: int) -> int:
        return await self._recovering.expire_leases(limit)

    async def seed(self, claim: BudgetClaim, spent: NanoUsd) -> None:
        await self._recovering.seed(claim, spent)

    async def budget_states(self, claims: Sequence[BudgetClaim]) -> list[BudgetState | None]:
        return await self._recovering.budget_states(claims)

    async def limit_states(self, claims: Sequence[Claim]) -> list[ClaimState]:
        return await self._recovering.limit_states(claims)

    async def room_in_ms(self, claim: Claim, amount: int) -> int:
        if self._back.is_set():
            try:
                return await self._recovering.room_in_ms(claim, amount)
            except CounterStoreAway:
                self._note_away()
        return self._local.room_in_ms(claim, amount, replicas=self._recovering.processes)

    # ── Away, and back ────────────────────────────────────────────────────────────────────────────────────────────────

    async def watch(self) -> None:
        """One look at the store, and what follows from it. A chore that paces itself."""
        if await self._is_there():
            await self._catch_up()
            await self._clock.sleep(LOOK_EVERY_S)
        else:
            await self._clock.sleep(ASK_EVERY_S)

    async def _is_there(self) -> bool:
        try:
            await self._recovering.look()
        except CounterStoreAway:
            self._note_away()
            return False
        if not self._back.is_set():
            self._back.set()
            logger.warning("counters_back")
        return True

    @property
    def _is_stale(self) -> bool:
        return self._clock.monotonic() - self._asked_s > STALE_S

    async def adopt(self, folder: Path) -> None:
        """Replay the journals of processes that are gone, but for calls that SQL has: whatever the store has forgotten since, these are
        booked. Raises: DependencyUnavailable; what is left is there for the next who looks.
        """
        if self.is_away:
            return
        with closing(adopt_orphans(folder)) as orphans:
            for path in orphans:
                entries = _without_settled(await asyncio.to_thread(_entries_of, path))
                for start in range(0, len(entries), REPLAYED_AT_ONCE):
                    some = entries[start : start + REPLAYED_AT_ONCE]
                    known = await self._recovering.recorded([entry.call_id for entry in some])
                    await self._replay([entry for entry in some if _says_more(entry, known)])
                path.unlink(missing_ok=True)
                if entries:
                    logger.warning("journal_adopted", records=len(entries))

    def _note_away(self) -> None:
        self._asked_s = self._clock.monotonic()
        if self._back.is_set():
            self._back.clear()
            self._told.clear()  # it may have forgotten them by the time it is back; telling twice does no harm
            logger.warning("counters_away", serves="a share of each limit" if self._is_local else "nothing")

    async def _admit_locally(self, reservation: Reservation) -> Admission:
        self._local.settle(reservation.call_id, tokens=None)  # what it had before, if it is asked for again
        answer = self._local.admit(reservation, replicas=self._recovering.processes)
        if not isinstance(answer, Admitted):
            if not self._is_running(reservation.call_id):
                self._doubtful[reservation.call_id] = False
            return answer
        lost = max((claim.lost_nanousd for claim in reservation.budgets), default=0)
        entry = Entry(
            reservation.call_id, lost, 0, reservation.record, _names(reservation), "", must_book=True, is_lost=True
        )
        had = self._local_calls.get(reservation.call_id)
        # Before its entry is in the journal: whoever clears that must see that the store has not been told of the call.
        self._local_calls[reservation.call_id] = (reservation, answer)
        try:
            await self._journal.append(_encode(entry))
        except BaseException as error:
            await self.release(reservation.call_id)
            if had is not None:  # it runs, and goes on with what it had
                self._local_calls[reservation.call_id] = had
                del self._doubtful[reservation.call_id]
            if isinstance(error, JournalFull):
                raise DependencyUnavailable("journal") from error
            raise
        return answer

    async def _admit_once_back(self, reservation: Reservation) -> Admission:
        try:
            async with asyncio.timeout(HARD_PATIENCE_S):
                await self._back.wait()
        except TimeoutError:
            raise CounterStoreAway from None
        try:
            return await self._recovering.admit(reservation)
        except CounterStoreAway:
            self._note_away()
            raise

    async def _catch_up(self) -> None:
        try:
            for call_id, is_over in list(self._doubtful.items()):
                await self._recovering.release(call_id, is_over=is_over)
                self._doubtful.pop(call_id, None)
            await each_of([call_id for call_id in self._local_calls if call_id not in self._told], self._tell)
            if self._journal.is_empty:
                return
            replayed = 0
            async for payloads in self._journal.batches(REPLAYED_AT_ONCE):
                await self._replay([entry for entry in map(_read, payloads) if entry and not entry.is_lost])
                replayed += len(payloads)
            if replayed and self._is_all_known() and await self._journal.clear(if_holds=replayed):
                logger.warning("journal_replayed", records=replayed)
        except CounterStoreAway:
            self._note_away()

    async def _tell(self, call_id: str) -> None:
        held = self._local_calls.get(call_id)
        if held is None:
            return  # it has ended
        await self._recovering.tell(*held)
        if call_id in self._local_calls and self._back.is_set():
            self._told.add(call_id)

    def _is_all_known(self) -> bool:
        """Whether the store knows of every call that began without it, that it runs or what came of it."""
        self._ending = {call_id for call_id in self._ending if not self._recovering.has_taken(call_id)}
        return not self._ending and self._told.issuperset(self._local_calls)

    def _is_running(self, call_id: str) -> bool:
        return call_id in self._local_calls or self._recovering.is_open(call_id)

    async def _replay(self, entries: Sequence[Entry]) -> None:
        results = await asyncio.gather(
            *(self._recovering.send(_kept(entry)) for entry in entries), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result


class FallbackSink:
    """The sink that the usage log is given: appends go the same way as settlements."""

    def __init__(self, sink: UsageSink, counters: FallbackCounters) -> None:
        self._sink = sink
        self._counters = counters

    async def append(self, call_id: str, packed: bytes) -> str:
        return await self._counters.append(call_id, packed)

    async def pending(self, *, limit: int, wait_s: float) -> list[PendingRecord]:
        return await self._sink.pending(limit=limit, wait_s=wait_s)

    async def confirm(self, records: Sequence[PendingRecord]) -> None:
        await self._sink.confirm(records)

    async def depth(self) -> int:
        return await self._sink.depth()


def _names(reservation: Reservation) -> tuple[str, ...]:
    return tuple(claim.counter for claim in reservation.budgets)


def _read(payload: bytes) -> Entry | None:
    try:
        return _decode(payload)
    except msgspec.MsgspecError:
        logger.error("unreadable_journal_entry", packed=payload.hex()[:2000])
        return None


def _entries_of(path: Path) -> list[Entry]:
    return [entry for entry in map(_read, read_frames(path)) if entry is not None]


def _without_settled(entries: Sequence[Entry]) -> list[Entry]:
    """Without what calls would have left, of those that left something better."""
    settled = {entry.call_id for entry in entries if not entry.is_lost}
    return [entry for entry in entries if not entry.is_lost or entry.call_id not in settled]


def _says_more(entry: Entry, known: Mapping[str, bool]) -> bool:
    """Than the ledger, which has these calls, some of them only as lost."""
    is_lost = known.get(entry.call_id)
    return is_lost is None or (is_lost and not entry.is_lost)


def _entry(kept: Kept) -> Entry:
    settlement = kept.settlement
    return Entry(
        settlement.call_id,
        settlement.cost_nanousd,
        settlement.tokens,
        settlement.record,
        kept.budgets,
        kept.epoch,
        kept.must_book,
        is_refusal=kept.is_refusal,
    )


def _kept(entry: Entry) -> Kept:
    settlement = Settlement(entry.call_id, NanoUsd(entry.cost_nanousd), entry.tokens, entry.record)
    return Kept(
        settlement,
        entry.budgets,
        entry.epoch,
        must_book=entry.must_book or entry.is_refusal,
        is_refusal=entry.is_refusal,
        is_lost=entry.is_lost,
    )
