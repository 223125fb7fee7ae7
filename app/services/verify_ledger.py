"""The proof of the books: everything that is a sum of something else is summed again and compared. Reads only.

1. Rollups = Σ ledger, for every hour, key and column; those of a day = Σ those of its hours.
   Refusals counted = refused calls in the log.
2. Every row of the ledger: nothing negative; its cost is its own arithmetic, rounded up once; that arithmetic is its usage at
   the price it names, where that price is known.
3. Every budget counter: spent = ledger + records on their way, reserved = Σ open reservations; no reservation and no slot
   that nobody will give back.

Calls go on meanwhile. SQL is compared within one statement, which sees one moment. A counter is read, then the stream, then the
ledger, then the counter again: if it has not changed in between, no call was booked to it, and the figures belong together. One
that does not agree has to say the same twice before it is called a drift.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta, tzinfo

from app.domain.budget import Budget, BudgetClaim, PeriodKind, period_at
from app.domain.limits import Scope
from app.domain.money import NanoUsd, pico_to_nano_rounded_up
from app.domain.pricing import Price, cost_of
from app.domain.record import CallRecord
from app.storage.verify_ports import Bill, Booked, Counter, CounterProof, LedgerProof, OpenCall, RollupGap, RollupSlice

ROUNDS = 8
PAUSE_S = 0.25
"""A busy counter is looked at again this often, and after this long."""
COUNTERS_AT_ONCE = 200
OVERDUE_MS = 30_000
"""A lease that ran out is ended within seconds; one that is this old has nobody to end it."""
MAX_DRIFTS = 10_000
"""More are counted, not kept."""

Sleep = Callable[[float], Awaitable[None]]
Progress = Callable[[str, int, int], None]
"""What is being looked at, how much of it is done, and of how much about (0: not known)."""


@dataclass(frozen=True, slots=True)
class Drift:
    """One figure that is not what it should be. Money in nanodollars."""

    kind: str
    where: str
    column: str
    expected: int | str
    found: int | str


@dataclass(slots=True)
class Proof:
    """What was looked at, and what was found."""

    records: int = 0
    counters: int = 0
    reservations: int = 0
    on_their_way: int = 0
    months: list[str] = field(default_factory=list)
    months_skipped: list[str] = field(default_factory=list)
    """Their records are no longer kept."""
    notes: list[str] = field(default_factory=list)
    drifts: list[Drift] = field(default_factory=list)
    drifts_found: int = 0

    @property
    def holds(self) -> bool:
        return self.drifts_found == 0

    def add(self, drifts: Iterable[Drift]) -> None:
        for drift in drifts:
            self.drifts_found += 1
            if len(self.drifts) < MAX_DRIFTS:
                self.drifts.append(drift)


PriceOf = Callable[[str], Price | None]


def silent(_what: str, _done: int, _of: int) -> None:
    """Progress that nobody watches."""


@dataclass(slots=True)
class LedgerVerification:
    """One run. `mapped_price` knows the price map's prices by id; without `counters` only SQL is looked at."""

    ledger: LedgerProof
    counters: CounterProof | None
    zone: tzinfo
    mapped_price: PriceOf
    journal: Callable[[], Awaitable[Sequence[CallRecord]]] | None = None
    on_progress: Progress = silent
    sleep: Sleep = asyncio.sleep
    _prices: dict[str, Price | None] = field(default_factory=dict)

    async def run(self) -> Proof:
        """Raises: DependencyUnavailable when a store cannot be asked; then nothing is proved."""
        proof = Proof()
        proof.months_skipped = [_month(month) for month in await self.ledger.months_dropped()]
        months = await self.ledger.months()
        gaps = [gap for month in months for gap in await self._rollups(month, proof)]
        await self._bills(months, proof)
        if self.counters is None:
            proof.notes.append("Budget counters were not looked at: there is no REDIS_URL to ask.")
        else:
            await self._counters(self.counters, gaps, proof)
        return proof

    async def _rollups(self, month: tuple[int, int], proof: Proof) -> list[RollupGap]:
        proof.months.append(_month(month))
        gaps: list[RollupGap] = []
        async for found in self.ledger.rollup_gaps(month):
            self.on_progress(f"Rollups of {_month(month)}", found.until.day, 31)
            gaps += found.gaps
            proof.add(drift for gap in found.gaps for drift in rollup_drifts(gap))
            proof.add(endpoint_drifts(found))
            proof.add(day_drifts(found, gaps))
            proof.add(Drift("refusals", str(gap), "requests", gap.in_log, gap.in_rollups) for gap in found.refusal_gaps)
        return gaps

    async def _bills(self, months: list[tuple[int, int]], proof: Proof) -> None:
        about = await self.ledger.rows()
        for month in months:
            async for page in self.ledger.bills(month):
                await self._learn_prices({bill.price_id for bill in page if bill.price_id} - self._prices.keys())
                proof.add(drift for bill in page for drift in bill_drifts(bill, self._prices))
                proof.records += len(page)
                self.on_progress("Records", proof.records, about)

    async def _learn_prices(self, price_ids: Iterable[str]) -> None:
        for price_id in sorted(price_ids):
            is_mapped = price_id.startswith("map:")
            self._prices[price_id] = self.mapped_price(price_id) if is_mapped else await self.ledger.price(price_id)

    # ── Counters ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _counters(self, store: CounterProof, gaps: list[RollupGap], proof: Proof) -> None:
        waiting = await store.waiting()
        in_journal = await self.journal() if self.journal else ()
        proof.on_their_way = len(waiting.records) + len(in_journal)
        proof.add(Drift("stream", f"entry {each}", "record", "readable", "not readable") for each in waiting.unreadable)
        names = sorted(await store.names())
        proof.counters = len(names)
        for start in range(0, len(names), COUNTERS_AT_ONCE):
            self.on_progress("Budget counters", start, len(names))
            await self._some_counters(store, names[start : start + COUNTERS_AT_ONCE], gaps, proof)
        await self._leaks(store, proof)

    async def _some_counters(self, store: CounterProof, names: list[str], gaps: list[RollupGap], proof: Proof) -> None:
        """Look until every counter agrees, or disagrees in the same way twice."""
        suspected: dict[str, list[Drift]] = {}
        left = names
        for round_number in range(ROUNDS):
            if round_number:
                await self.sleep(PAUSE_S)
            seen = await self._look(store, left, gaps)
            proof.add(drift for name, drifts in seen.items() if suspected.get(name) == drifts for drift in drifts)
            settled = {name for name, drifts in seen.items() if not drifts or suspected.get(name) == drifts}
            suspected = seen
            left = [name for name in left if name not in settled]
            if not left:
                return
        proof.notes.append(f"Too busy to be compared now: {', '.join(left[:20])}.")

    async def _look(self, store: CounterProof, names: list[str], gaps: list[RollupGap]) -> dict[str, list[Drift]]:
        """The drifts of each counter that stood still while it was looked at. The order of the questions is the proof."""
        before = await store.counters(names)
        calls = await store.open_calls()
        in_stream = (await store.waiting()).records
        in_journal = list(await self.journal()) if self.journal else []
        claims = [claim_of(name, self.zone) for name in names]
        known = [claim for claim in claims if claim is not None]
        standing = await self.ledger.standing(known, {r.request_id for r in (*in_stream, *in_journal)})
        opened_ms = await self.ledger.budgets_opened()
        after = await store.counters(names)
        spent = dict(zip((claim.counter for claim in known), standing.spent_nanousd, strict=True))
        found: dict[str, list[Drift]] = {}
        for name, claim, counter, again in zip(names, claims, before, after, strict=True):
            if counter is None or again is None:
                found[name] = []  # its period is over, and it was forgotten meanwhile
            elif claim is None:
                found[name] = [Drift("budget counter", name, "name", "scope:id:period", name)]
            elif counter == again:
                ways = (in_stream, [*in_stream, *in_journal])  # what is in a journal may be booked already, or not yet
                on_the_way = [to_come(claim, way, standing.booked) for way in ways]
                sums = (spent[claim.counter], spent[claim.counter] + untold(claim, gaps))
                expected = {already + coming for already in sums for coming in on_the_way}
                if not _is_in_force(claim, counter, opened_ms):
                    counter = replace(counter, spent_nanousd=None)
                found[name] = counter_drifts(name, counter, expected, held_in(name, calls))
        return found

    async def _leaks(self, store: CounterProof, proof: Proof) -> None:
        """What nobody will give back, seen twice: a call may end between two questions."""
        first, count = await self._leaks_now(store)
        proof.reservations = count
        if first:
            await self.sleep(PAUSE_S)
            again, _ = await self._leaks_now(store)
            proof.add(drift for drift in first if drift in again)

    async def _leaks_now(self, store: CounterProof) -> tuple[list[Drift], int]:
        slots, calls, now_ms = await store.slots(), await store.open_calls(), await store.now_ms()
        open_ids = {call.call_id for call in calls}
        leaks = [
            Drift("slot", slot.counter, "call", "an open reservation", slot.call_id)
            for slot in slots
            if slot.call_id not in open_ids
        ]
        for call in calls:
            if call.lease_ends_ms is None:
                leaks.append(Drift("reservation", call.call_id, "lease", "a lease", "none"))
            elif call.lease_ends_ms + OVERDUE_MS < now_ms:
                leaks.append(Drift("reservation", call.call_id, "lease", "ended by now", "still open"))
        return leaks, len(calls)


# ── Comparing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def rollup_drifts(gap: RollupGap) -> Iterator[Drift]:
    for column, expected in gap.in_ledger.items():
        if gap.in_rollups[column] != expected:
            yield Drift("rollup", str(gap.key), column, expected, gap.in_rollups[column])


def endpoint_drifts(found: RollupSlice) -> Iterator[Drift]:
    """What is wrong in the sums by endpoint alone: a record that was changed shows in both, and is named once."""
    told = {
        (gap.key.hour, gap.key.model, gap.key.endpoint_id, column)
        for gap in found.gaps
        for column, expected in gap.in_ledger.items()
        if gap.in_rollups[column] != expected
    }
    for gap in found.endpoint_gaps:
        for column, expected in gap.in_ledger.items():
            is_told = (gap.key.hour, gap.key.model, gap.key.endpoint_id, column) in told
            if gap.in_rollups[column] != expected and not is_told:
                yield Drift("endpoint rollup", str(gap.key), column, expected, gap.in_rollups[column])


def day_drifts(found: RollupSlice, of_hours: Iterable[RollupGap]) -> Iterator[Drift]:
    """What is wrong in the sums by day alone: where an hour's are, that is told already."""
    told = {
        _of_day(gap, column)
        for gap in of_hours
        for column, sum_ in gap.in_ledger.items()
        if gap.in_rollups[column] != sum_
    }
    for gap in found.day_gaps:
        for column, expected in gap.in_ledger.items():
            if gap.in_rollups[column] != expected and _of_day(gap, column) not in told:
                yield Drift("day rollup", str(gap.key), column, expected, gap.in_rollups[column])


def _of_day(gap: RollupGap, column: str) -> tuple[datetime, str, str, str, str]:
    key = gap.key
    return key.hour.replace(hour=0), key.user_oid, key.key_id, key.app_id, column


def bill_drifts(bill: Bill, prices: Mapping[str, Price | None]) -> Iterator[Drift]:
    """What one row of the ledger says that cannot be, or does not follow from what else it says."""
    where = f"record {bill.request_id}"
    figures = ("cost_nanousd", "prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens")
    for column in figures:
        if getattr(bill, column) < 0:
            yield Drift("negative", where, column, 0, getattr(bill, column))
    if bill.outcome == "lost":
        return  # charged by what was surely sent, at the cheapest price: there is no arithmetic
    if bill.lines is None:
        yield Drift("explanation", where, "detail", "readable", "not readable")
        return
    if bill.usage is not None:
        for column in figures[1:]:
            if getattr(bill.usage, column) != getattr(bill, column):
                yield Drift("usage", where, column, getattr(bill.usage, column), getattr(bill, column))
    price = prices.get(bill.price_id) if bill.price_id else None
    if bill.price_id and price is None and not bill.price_id.startswith("map:"):
        yield Drift("price", where, "price_id", "a row of the price history", bill.price_id)
    yield from _cost_drifts(bill, price, where)
    for number, attempt in enumerate(bill.attempts, 1):
        shown = pico_to_nano_rounded_up(sum(line.quantity * line.unit_picousd for line in attempt.arithmetic))
        if attempt.cost_nanousd != shown:
            yield Drift("arithmetic", f"{where}, attempt {number}", "cost_nanousd", shown, attempt.cost_nanousd)


def _cost_drifts(bill: Bill, price: Price | None, where: str) -> Iterator[Drift]:
    """Three ways to the same figure: what is charged, the arithmetic that is shown, usage × price. The odd one out is named."""
    shown = pico_to_nano_rounded_up(sum(line.quantity * line.unit_picousd for line in bill.lines or ()))
    computed = cost_of(bill.usage, price).nanousd if bill.usage is not None and price is not None else shown
    charged = bill.cost_nanousd - sum(attempt.cost_nanousd for attempt in bill.attempts)
    if charged == shown == computed:
        return
    if charged == computed:
        yield Drift("arithmetic", where, "detail.arithmetic", charged, shown)
    elif charged == shown:
        yield Drift("price", where, "cost_nanousd", computed, charged)
    else:
        yield Drift("cost", where, "cost_nanousd", computed, charged)


def counter_drifts(name: str, counter: Counter, expected: set[int], held_nanousd: int) -> list[Drift]:
    """`expected` is what the sums say and what the ledger itself says: where the two differ, that drift has been named already."""
    drifts = []
    if counter.spent_nanousd is not None and counter.spent_nanousd not in expected:
        drifts.append(Drift("budget counter", name, "spent", min(expected), counter.spent_nanousd))
    if counter.reserved_nanousd != held_nanousd:
        drifts.append(Drift("budget counter", name, "reserved", held_nanousd, counter.reserved_nanousd))
    return drifts


def _is_in_force(claim: BudgetClaim, counter: Counter, opened_ms: Mapping[str, int]) -> bool:
    """Whether it counts for a budget that there is. One that was taken away leaves its counter, to be forgotten or counted anew."""
    if not counter.opened_ms:
        return True
    return opened_ms.get(f"{claim.scope}:{claim.scope_id}:{claim.budget.period}", 2**63) <= counter.opened_ms


def held_in(name: str, calls: Sequence[OpenCall]) -> int:
    return sum(call.held.get(name, 0) for call in calls)


def to_come(claim: BudgetClaim, waiting: Iterable[CallRecord], booked: Mapping[str, Booked]) -> int:
    """What the records on their way will add to what the ledger says was spent; each call once, a `lost` one only for want of better."""
    known = dict(booked)
    change = 0
    for record in waiting:
        if not _is_booked_to(claim, record):
            continue
        is_lost, stands = record.is_lost, known.get(record.request_id)
        if stands is None:
            change += record.cost_nanousd
        elif stands.is_lost and not is_lost:
            change += record.cost_nanousd - stands.cost_nanousd
        else:
            continue
        known[record.request_id] = Booked(record.cost_nanousd, is_lost)
    return change


def _is_booked_to(claim: BudgetClaim, record: CallRecord) -> bool:
    holder = {
        Scope.KEY: record.key_id,
        Scope.USER: record.user_oid,
        Scope.APP: record.app_id,
        Scope.MODEL: record.served_model,
    }[claim.scope]
    starts_at, ends_at = claim.period.starts_at, claim.period.ends_at
    is_within = starts_at is None or ends_at is None or starts_at <= record.created_at < ends_at
    return holder == claim.scope_id and is_within


def untold(claim: BudgetClaim, gaps: Iterable[RollupGap]) -> int:
    """By how much the rollups fall short of the ledger in what this claim sums up."""
    holder = {Scope.KEY: "key_id", Scope.USER: "user_oid", Scope.APP: "app_id", Scope.MODEL: "model"}[claim.scope]
    starts_at, ends_at = claim.period.starts_at, claim.period.ends_at
    return sum(
        gap.in_ledger["cost_nanousd"] - gap.in_rollups["cost_nanousd"]
        for gap in gaps
        if getattr(gap.key, holder) == claim.scope_id
        and (starts_at is None or ends_at is None or (starts_at <= gap.key.hour and gap.key.hour + HOUR <= ends_at))
    )


HOUR = timedelta(hours=1)


def claim_of(name: str, zone: tzinfo) -> BudgetClaim | None:
    """The claim whose counter has this name; None for a name that no claim has. Read from its end: ids may hold colons."""
    scope_name, _, rest = name.partition(":")
    try:
        scope = Scope(scope_name)
        if rest.endswith(":total"):
            kind, scope_id, day = PeriodKind.TOTAL, rest.removesuffix(":total"), date(2000, 1, 1)
        else:
            scope_id, kind_name, day_text = rest.rsplit(":", 2)
            kind, day = PeriodKind(kind_name), date.fromisoformat(day_text)
    except ValueError:
        return None
    noon = datetime.combine(day, time(12), tzinfo=zone if day.year > 2000 else UTC)
    claim = BudgetClaim(scope, scope_id, Budget(kind, None, None), period_at(kind, noon, zone), NanoUsd(0))
    return claim if claim.counter == name else None


def _month(month: tuple[int, int]) -> str:
    return f"{month[0]:04d}-{month[1]:02d}"
