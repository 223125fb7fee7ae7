"""The proof beside running calls, on stores played by hand: what is only busy is no drift, and what is one is said once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, timedelta
from itertools import repeat

import pytest

from app.domain.budget import BudgetClaim
from app.domain.pricing import Price
from app.domain.record import CallRecord
from app.services.verify_ledger import ROUNDS, Drift, LedgerVerification, Proof, claim_of, to_come
from app.storage.verify_ports import Bill, Booked, Counter, OpenCall, RollupSlice, Slot, Standing, Waiting
from tests.storage.records import NOON, a_record

ALICE = "user:user-1:total"


@dataclass(slots=True)
class Ledger:
    """Nothing but sums of what was spent, one for each time that is asked."""

    spent: list[int]
    opened_ms: dict[str, int] = field(default_factory=dict)

    async def months(self) -> list[tuple[int, int]]:
        return []

    async def months_dropped(self) -> list[tuple[int, int]]:
        return []

    async def rows(self) -> int:
        return 0

    async def rollup_gaps(self, month: tuple[int, int]) -> AsyncIterator[RollupSlice]:
        yield RollupSlice(NOON, [])

    async def bills(self, month: tuple[int, int]) -> AsyncIterator[Sequence[Bill]]:
        yield []

    async def price(self, price_id: str) -> Price | None:
        return None

    async def budgets_opened(self) -> dict[str, int]:
        return self.opened_ms

    async def standing(self, claims: Sequence[BudgetClaim], call_ids: Collection[str]) -> Standing:
        spent = self.spent.pop(0) if len(self.spent) > 1 else self.spent[0]
        return Standing([spent for _ in claims], {})


@dataclass(slots=True)
class Counters:
    """One counter, with a figure for each time it is looked at; the last one stays."""

    figures: list[int]
    opened_ms: int | None = None
    calls: list[list[OpenCall]] = field(default_factory=lambda: [[]])
    taken: list[list[Slot]] = field(default_factory=lambda: [[]])

    async def names(self) -> list[str]:
        return [ALICE]

    async def counters(self, names: Sequence[str]) -> list[Counter | None]:
        figure = self.figures.pop(0) if len(self.figures) > 1 else self.figures[0]
        return [Counter(figure, 0, self.opened_ms) for _ in names]

    async def open_calls(self) -> list[OpenCall]:
        return self.calls.pop(0) if len(self.calls) > 1 else self.calls[0]

    async def slots(self) -> list[Slot]:
        return self.taken.pop(0) if len(self.taken) > 1 else self.taken[0]

    async def waiting(self) -> Waiting:
        return Waiting([], [])

    async def now_ms(self) -> int:
        return 1_000_000


async def proof_of(ledger: Ledger, counters: Counters | None) -> tuple[Proof, list[float]]:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    return await LedgerVerification(ledger, counters, UTC, lambda _id: None, sleep=sleep).run(), pauses


async def test_a_counter_that_agrees_is_looked_at_once() -> None:
    proof, pauses = await proof_of(Ledger([5]), Counters([5]))
    assert (proof.holds, proof.notes, pauses) == (True, [], [])


async def test_a_difference_that_goes_away_is_no_drift() -> None:
    proof, pauses = await proof_of(Ledger([4, 5]), Counters([5]))
    assert (proof.drifts, len(pauses)) == ([], 1)


async def test_a_difference_that_stays_is_a_drift_named_once() -> None:
    proof, _ = await proof_of(Ledger([4]), Counters([5]))
    assert proof.drifts == [Drift("budget counter", ALICE, "spent", 4, 5)]


async def test_a_counter_that_never_stands_still_is_said_not_to_have_been_compared() -> None:
    proof, pauses = await proof_of(Ledger([0]), Counters(list(range(100))))
    assert proof.holds
    assert len(pauses) == ROUNDS - 1
    assert ALICE in proof.notes[0]


async def test_a_call_that_ends_between_two_questions_leaks_nothing() -> None:
    slot = Slot("key:k:concurrency:0", "call-1")
    proof, _ = await proof_of(Ledger([0]), Counters([0], taken=[[slot], []]))
    assert proof.holds


@pytest.mark.parametrize(("lease_ends_ms", "found"), [(None, "none"), (1, "still open"), (999_000, None)])
async def test_a_reservation_that_nobody_ends_is_a_drift(lease_ends_ms: int | None, found: str | None) -> None:
    call = OpenCall("call-1", {}, lease_ends_ms)
    proof, _ = await proof_of(Ledger([0]), Counters([0], calls=[[call]]))
    assert [drift.found for drift in proof.drifts] == ([] if found is None else [found])
    assert proof.reservations == 1


async def test_without_counters_it_says_so() -> None:
    proof, _ = await proof_of(Ledger([0]), None)
    assert "REDIS_URL" in proof.notes[0]


def test_of_very_many_drifts_all_are_counted() -> None:
    proof = Proof()
    proof.add(repeat(Drift("cost", "record", "cost_nanousd", 1, 2), 10_003))
    assert (proof.drifts_found, len(proof.drifts), proof.holds) == (10_003, 10_000, False)


A_CALL = a_record(cost_nanousd=100)


@pytest.mark.parametrize(
    ("waiting", "booked", "change"),
    [
        ([A_CALL], {}, 100),
        ([A_CALL, A_CALL], {}, 100),
        ([A_CALL], {A_CALL.request_id: Booked(100, False)}, 0),
        ([A_CALL], {A_CALL.request_id: Booked(7, True)}, 93),
        ([a_record(request_id=A_CALL.request_id, outcome="lost", error_code="lost", cost_nanousd=7), A_CALL], {}, 100),
        ([A_CALL, a_record(request_id=A_CALL.request_id, outcome="lost", error_code="lost", cost_nanousd=7)], {}, 100),
        ([a_record(user_oid="another", cost_nanousd=9)], {}, 0),
    ],
)
def test_what_is_on_its_way_counts_each_call_once(
    waiting: list[CallRecord], booked: dict[str, Booked], change: int
) -> None:
    claim = claim_of(ALICE, UTC)
    assert claim is not None
    assert to_come(claim, waiting, booked) == change


def test_what_is_on_its_way_to_another_period_does_not_count() -> None:
    claim = claim_of("user:user-1:daily:2026-11-23", UTC)
    assert claim is not None
    midnight = NOON.replace(hour=0)
    days = [midnight - timedelta(milliseconds=1), midnight, midnight + timedelta(days=1)]
    assert [to_come(claim, [a_record(at, cost_nanousd=3)], {}) for at in days] == [0, 3, 0]


@pytest.mark.parametrize(
    ("opened_ms", "has_drift"),
    [({}, False), ({ALICE: 6}, False), ({ALICE: 5}, True), ({ALICE: 0}, True)],
    ids=["taken away", "made again since", "in force", "in force since ever"],
)
async def test_what_was_counted_for_a_budget_that_is_no_more_is_no_drift(
    opened_ms: dict[str, int], *, has_drift: bool
) -> None:
    proof, _ = await proof_of(Ledger([7], opened_ms), Counters([3], opened_ms=5))
    assert (not proof.holds) is has_drift
