"""What every adapter of `Counters` and `UsageSink` must do, whatever stands behind it.

A suite of an adapter inherits `CountersConformance` and gives the fixtures `counters`, `sink` and `at` (sets the store's clock).
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from msgspec.structs import replace

from app.domain.budget import Budget, BudgetClaim, Need, PeriodKind, ReserveMode, period_at
from app.domain.limits import Claim, Limit, LimitKind, Scope
from app.domain.money import NanoUsd, PicoUsd
from app.storage.ports import (
    Admission,
    Admitted,
    BudgetRefused,
    BudgetsUnseeded,
    Checkpoint,
    Counters,
    LimitRefused,
    Reservation,
    Settlement,
    UsageSink,
)

NOW_MS = 1_790_000_000_000
At = Callable[[int], None]

USD = 10**9


def requests(limit: int, window_s: int = 60, *, holder: str = "k1") -> Claim:
    return Claim(Scope.KEY, holder, Limit(LimitKind.REQUESTS, limit, window_s), 1)


def tokens(limit: int, amount: int, window_s: int = 60) -> Claim:
    return Claim(Scope.USER, "u1", Limit(LimitKind.TOKENS, limit, window_s), amount)


def slots(limit: int) -> Claim:
    return Claim(Scope.KEY, "k1", Limit(LimitKind.CONCURRENCY, limit, 0), 1)


def money(amount: int, *, hard: int | None = USD, lost: int = 0, holder: str = "u1", opened_ms: int = 0) -> BudgetClaim:
    budget = Budget(PeriodKind.MONTHLY, None, None if hard is None else NanoUsd(hard), opened_ms=opened_ms)
    period = period_at(
        PeriodKind.MONTHLY, datetime(2090, 9, 21, tzinfo=UTC), UTC
    )  # a counter is forgotten after its period
    return BudgetClaim(Scope.USER, holder, budget, period, NanoUsd(amount), NanoUsd(lost))


def reservation(call_id: str, *claims: Claim | BudgetClaim, lease_s: int = 60, need: Need | None = None) -> Reservation:
    return Reservation(
        call_id,
        tuple(claim for claim in claims if isinstance(claim, Claim)),
        tuple(claim for claim in claims if isinstance(claim, BudgetClaim)),
        lease_s,
        f"lost:{call_id}".encode(),
        need if need is not None else _fixed(claims),
    )


def _fixed(claims: tuple[Claim | BudgetClaim, ...]) -> Need:
    """A call that costs just what its budget claims say."""
    amount = max((claim.amount_nanousd for claim in claims if isinstance(claim, BudgetClaim)), default=NanoUsd(0))
    return Need(amount, PicoUsd(0), 0, 0, is_elastic=False)


def settlement(call_id: str, *, cost: int = 0, tokens: int = 0) -> Settlement:
    return Settlement(call_id, NanoUsd(cost), tokens, f"done:{call_id}".encode())


async def recorded(sink: UsageSink) -> list[str]:
    return [record.packed.decode() for record in await sink.pending(limit=1000, wait_s=0.01)]


def is_admitted(admission: Admission) -> bool:
    return isinstance(admission, Admitted)


class CountersConformance:
    @pytest.fixture
    def at(self, counters: Counters) -> At:
        raise AssertionError("the adapter's suite gives it")

    async def test_as_many_as_the_limit_are_admitted_and_no_more(self, counters: Counters) -> None:
        answers = await asyncio.gather(*(counters.admit(reservation(f"c{i}", requests(50))) for i in range(200)))

        assert sum(map(is_admitted, answers)) == 50

    async def test_in_no_interval_of_the_windows_length_more_than_the_limit_is_admitted(
        self, counters: Counters, at: At
    ) -> None:
        admitted_ms: list[int] = []
        for step in range(0, 200_000, 250):
            at(NOW_MS + step)
            if is_admitted(await counters.admit(reservation(f"c{step}", requests(10)))):
                admitted_ms.append(step)

        for begin in admitted_ms:
            assert sum(begin <= moment < begin + 60_000 for moment in admitted_ms) <= 10
        assert len(admitted_ms) >= 10 * 200 // 60 - 1, "nor much less than the limit"

    async def test_a_full_window_says_truly_when_the_claim_will_fit(self, counters: Counters, at: At) -> None:
        at(NOW_MS)
        for i in range(5):
            await counters.admit(reservation(f"a{i}", requests(5)))
        refused = await counters.admit(reservation("b", requests(5)))
        assert isinstance(refused, LimitRefused)

        at(NOW_MS + refused.retry_after_ms - 1)
        assert not is_admitted(await counters.admit(reservation("early", requests(5))))
        at(NOW_MS + refused.retry_after_ms)
        assert is_admitted(await counters.admit(reservation("on-time", requests(5))))
        assert 60_000 <= refused.retry_after_ms <= 61_000

    async def test_a_refused_call_takes_nothing_from_other_limits(self, counters: Counters) -> None:
        wide, narrow = requests(100, holder="wide"), tokens(10, 11)
        await counters.seed(money(0), NanoUsd(0))

        refused = await counters.admit(reservation("c", wide, slots(5), money(500), narrow))

        assert isinstance(refused, LimitRefused)
        assert refused.state.claim == narrow
        states = await counters.limit_states([wide, slots(5)])
        assert [state.remaining for state in states] == [100, 5]
        (budget,) = await counters.budget_states([money(0)])
        assert budget is not None
        assert budget.reserved_nanousd == 0

    async def test_a_call_refused_by_a_budget_takes_nothing_from_limits(self, counters: Counters) -> None:
        await counters.seed(money(0), NanoUsd(USD))

        refused = await counters.admit(reservation("c", requests(5), slots(5), money(1)))

        assert isinstance(refused, BudgetRefused)
        assert refused.state.spent_nanousd == USD
        assert [s.remaining for s in await counters.limit_states([requests(5), slots(5)])] == [5, 5]

    async def test_settling_corrects_the_tokens_to_what_was_used(self, counters: Counters) -> None:
        await counters.admit(reservation("c", tokens(1000, 800)))
        await counters.settle(settlement("c", tokens=120))

        (state,) = await counters.limit_states([tokens(1000, 0)])
        assert state.remaining == 880

    async def test_a_token_limit_under_steady_traffic_is_given_out_and_never_more_than_that(
        self, counters: Counters, at: At
    ) -> None:
        """T113: ten minutes of calls that use half of what they were thought to, twice as many as fit."""
        limit, thought, used, every_ms, lasts_ms = 50_000, 500, 250, 150, 300
        limits = [tokens(limit, thought)]
        running: list[tuple[int, str]] = []
        admitted_ms: list[int] = []
        for now_ms in range(NOW_MS, NOW_MS + 600_000, every_ms):
            at(now_ms)
            while running and running[0][0] <= now_ms:
                await counters.settle(settlement(running.pop(0)[1], tokens=used))
            if is_admitted(await counters.admit(reservation(f"c{now_ms}", *limits))):
                running.append((now_ms + lasts_ms, f"c{now_ms}"))
                admitted_ms.append(now_ms)
        for begin_ms in range(NOW_MS, NOW_MS + 540_000, 5_000):
            in_a_window = used * sum(begin_ms <= moment < begin_ms + 60_000 for moment in admitted_ms)
            assert limit * 0.95 <= in_a_window <= limit

    async def test_a_slot_is_free_again_once_its_call_is_settled(self, counters: Counters) -> None:
        assert is_admitted(await counters.admit(reservation("a", slots(1))))
        assert not is_admitted(await counters.admit(reservation("b", slots(1))))
        await counters.settle(settlement("a"))
        assert is_admitted(await counters.admit(reservation("b", slots(1))))

    async def test_exactly_as_many_calls_are_admitted_as_a_hard_budget_pays_for(self, counters: Counters) -> None:
        await counters.seed(money(0), NanoUsd(0))
        tenth = USD // 10

        answers = await asyncio.gather(*(counters.admit(reservation(f"c{i}", money(tenth))) for i in range(200)))

        assert sum(map(is_admitted, answers)) == 10
        (state,) = await counters.budget_states([money(0)])
        assert state is not None
        assert state.reserved_nanousd == USD
        for i, answer in enumerate(answers):
            if is_admitted(answer):
                await counters.settle(settlement(f"c{i}", cost=tenth))
        (state,) = await counters.budget_states([money(0)])
        assert state is not None
        assert (state.spent_nanousd, state.reserved_nanousd) == (USD, 0)

    async def test_an_absent_budget_is_not_zero_but_asks_to_be_seeded(self, counters: Counters) -> None:
        known, unknown = money(1), money(1, holder="u2")
        await counters.seed(known, NanoUsd(0))

        answer = await counters.admit(reservation("c", requests(1), known, unknown))

        assert answer == BudgetsUnseeded((unknown,))
        assert [s.remaining for s in await counters.limit_states([requests(1)])] == [1]

    async def test_seeding_leaves_a_counter_that_exists_alone(self, counters: Counters) -> None:
        await counters.seed(money(0), NanoUsd(7))
        await counters.seed(money(0), NanoUsd(0))

        (state,) = await counters.budget_states([money(0)])
        assert state is not None
        assert state.spent_nanousd == 7

    async def test_a_budget_that_was_taken_away_and_made_again_asks_to_be_seeded_again(
        self, counters: Counters
    ) -> None:
        """Calls that were made in between were not counted. Who has not heard of the new one yet goes on counting for it."""
        first, second = money(10, opened_ms=1_000), money(10, opened_ms=2_000)
        await counters.seed(first, NanoUsd(100))
        assert is_admitted(await counters.admit(reservation("before", first)))

        answer = await counters.admit(reservation("after", second))
        assert answer == BudgetsUnseeded((second,))
        assert await counters.budget_states([second]) == [None]
        await counters.seed(second, NanoUsd(500))
        await counters.settle(settlement("before", cost=7))
        assert is_admitted(await counters.admit(reservation("unaware", first)))

        (state,) = await counters.budget_states([second])
        assert state is not None
        assert (state.spent_nanousd, state.reserved_nanousd) == (507, 10)

    async def test_large_amounts_stay_exact_to_the_nanodollar(self, counters: Counters) -> None:
        most = 9_000_000 * USD
        await counters.seed(money(0, hard=most), NanoUsd(most - 3))

        assert is_admitted(await counters.admit(reservation("a", money(2, hard=most))))
        assert not is_admitted(await counters.admit(reservation("b", money(2, hard=most))))
        assert is_admitted(await counters.admit(reservation("c", money(1, hard=most))))

    async def test_a_soft_budget_counts_and_never_refuses(self, counters: Counters) -> None:
        await counters.seed(money(0, hard=None), NanoUsd(5))

        answer = await counters.admit(reservation("c", money(USD * 100, hard=None)))

        assert isinstance(answer, Admitted)
        assert answer.budgets[0].spent_nanousd == 5

    async def test_settling_twice_changes_nothing_the_second_time(self, counters: Counters) -> None:
        await counters.seed(money(0), NanoUsd(0))
        await counters.admit(reservation("c", tokens(1000, 500), money(400)))
        await counters.settle(settlement("c", cost=300, tokens=100))
        await counters.settle(settlement("c", cost=300, tokens=100))

        (budget,) = await counters.budget_states([money(0)])
        assert budget is not None
        assert (budget.spent_nanousd, budget.reserved_nanousd) == (300, 0)
        assert (await counters.limit_states([tokens(1000, 0)]))[0].remaining == 900

    async def test_releasing_gives_everything_back_and_records_nothing(
        self, counters: Counters, sink: UsageSink
    ) -> None:
        await counters.seed(money(0), NanoUsd(0))
        await counters.admit(reservation("c", requests(5), tokens(1000, 500), slots(5), money(400)))
        await counters.release("c")

        states = await counters.limit_states([requests(5), tokens(1000, 0), slots(5)])
        assert [state.remaining for state in states] == [5, 1000, 5]
        (budget,) = await counters.budget_states([money(0)])
        assert budget is not None
        assert (budget.spent_nanousd, budget.reserved_nanousd) == (0, 0)
        assert await recorded(sink) == []

    async def test_a_call_whose_lease_ran_out_gives_back_its_claims_and_leaves_its_record(
        self, counters: Counters, sink: UsageSink, at: At
    ) -> None:
        at(NOW_MS)
        await counters.seed(money(0), NanoUsd(0))
        await counters.admit(reservation("dead", slots(1), money(400, lost=150), lease_s=60))

        at(NOW_MS + 59_000)
        assert await counters.expire_leases(100) == 0
        at(NOW_MS + 60_001)
        assert await counters.expire_leases(100) == 1
        assert await counters.expire_leases(100) == 0

        assert await recorded(sink) == ["lost:dead"]
        (budget,) = await counters.budget_states([money(0)])
        assert budget is not None
        assert (budget.spent_nanousd, budget.reserved_nanousd) == (150, 0)
        assert is_admitted(await counters.admit(reservation("next", slots(1))))

    async def test_a_renewed_lease_keeps_the_call_and_its_slot(self, counters: Counters, at: At) -> None:
        at(NOW_MS)
        await counters.admit(reservation("long", slots(1), lease_s=60))
        at(NOW_MS + 50_000)
        assert await counters.renew(["long", "unknown"], 60) == ["unknown"]

        at(NOW_MS + 100_000)
        assert await counters.expire_leases(100) == 0
        assert not is_admitted(await counters.admit(reservation("other", slots(1))))

    async def test_a_settlement_that_comes_after_its_lease_corrects_what_was_booked(
        self, counters: Counters, sink: UsageSink, at: At
    ) -> None:
        at(NOW_MS)
        await counters.seed(money(0), NanoUsd(0))
        await counters.admit(reservation("paused", slots(1), tokens(1_000, 800), money(400, lost=150), lease_s=60))
        at(NOW_MS + 60_001)
        await counters.expire_leases(100)
        assert await counters.renew(["paused"], 60) == ["paused"], "it learns that its lease is gone"

        for _ in range(2):
            await counters.settle(settlement("paused", cost=390, tokens=120))

        (budget,) = await counters.budget_states([money(0)])
        assert budget is not None
        assert (budget.spent_nanousd, budget.reserved_nanousd) == (390, 0)
        assert (await counters.limit_states([tokens(1_000, 0)]))[0].remaining == 880
        assert (await recorded(sink))[:2] == ["lost:paused", "done:paused"]

    async def test_giving_back_a_call_whose_lease_ran_out_takes_back_what_was_booked(
        self, counters: Counters, at: At
    ) -> None:
        """It never reached an upstream: its refusal takes the place of its lost record in the ledger."""
        at(NOW_MS)
        await counters.seed(money(0), NanoUsd(0))
        await counters.admit(reservation("paused", requests(5), tokens(1_000, 800), money(400, lost=150), lease_s=60))
        at(NOW_MS + 60_001)
        await counters.expire_leases(100)

        for _ in range(2):
            await counters.release("paused")

        (budget,) = await counters.budget_states([money(0)])
        assert budget is not None
        assert (budget.spent_nanousd, budget.reserved_nanousd) == (0, 0)

    async def test_a_call_admitted_twice_because_nobody_heard_the_first_answer_holds_its_claims_once(
        self, counters: Counters
    ) -> None:
        await counters.seed(money(0), NanoUsd(0))
        await counters.admit(reservation("other", requests(5), tokens(1_000, 100), slots(3), money(100)))
        for amount in (400, 400, 300):
            answer = await counters.admit(
                reservation("again", requests(5), tokens(1_000, amount), slots(3), money(amount))
            )
            assert is_admitted(answer)

        states = await counters.limit_states([requests(5), tokens(1_000, 0), slots(3)])
        assert [state.remaining for state in states] == [3, 600, 1]
        (budget,) = await counters.budget_states([money(0)])
        assert budget is not None
        assert (budget.spent_nanousd, budget.reserved_nanousd) == (0, 400)
        await counters.settle(settlement("again", cost=30, tokens=20))
        (budget,) = await counters.budget_states([money(0)])
        assert budget is not None
        assert (budget.spent_nanousd, budget.reserved_nanousd) == (30, 100)
        assert (await counters.limit_states([tokens(1_000, 0)]))[0].remaining == 880

    async def test_a_call_that_dies_after_a_checkpoint_is_charged_and_recorded_by_the_last_one(
        self, counters: Counters, sink: UsageSink, at: At
    ) -> None:
        """T127."""
        at(NOW_MS)
        await counters.seed(money(0), NanoUsd(0))
        await counters.admit(reservation("stream", slots(1), money(400, lost=150), lease_s=60))
        for cost in (200, 250):
            await counters.checkpoint([Checkpoint("stream", NanoUsd(cost), f"so far {cost}".encode())])
        at(NOW_MS + 60_001)
        await counters.expire_leases(100)

        assert [(r.packed, r.cost_nanousd) for r in await sink.pending(limit=9, wait_s=0.01)] == [(b"so far 250", 250)]
        (budget,) = await counters.budget_states([money(0)])
        assert budget is not None
        assert (budget.spent_nanousd, budget.reserved_nanousd) == (250, 0)

        await counters.settle(settlement("stream", cost=260))  # it was only paused
        (budget,) = await counters.budget_states([money(0)])
        assert budget is not None
        assert budget.spent_nanousd == 260

    async def test_a_checkpoint_that_comes_after_the_end_of_its_call_changes_nothing(
        self, counters: Counters, sink: UsageSink, at: At
    ) -> None:
        at(NOW_MS)
        await counters.seed(money(0), NanoUsd(0))
        await counters.admit(reservation("done", money(400, lost=150)))
        await counters.settle(settlement("done", cost=30))
        await counters.checkpoint([Checkpoint("done", NanoUsd(200), b"late"), Checkpoint("never", NanoUsd(9), b"x")])
        at(NOW_MS + 60_001)

        assert await counters.expire_leases(100) == 0
        assert await recorded(sink) == ["done:done"]
        (budget,) = await counters.budget_states([money(0)])
        assert budget is not None
        assert (budget.spent_nanousd, budget.reserved_nanousd) == (30, 0)

    async def test_a_lost_call_is_charged_no_more_than_it_was_granted_and_its_record_says_so(
        self, counters: Counters, sink: UsageSink, at: At
    ) -> None:
        at(NOW_MS)
        await counters.seed(money(0), NanoUsd(0))
        need = Need(NanoUsd(100), PicoUsd(1_000_000), 10_000_000, 1, is_elastic=True)
        claim = money(need.cost_of(10_000_000), lost=need.cost_of(10_000_000))
        answer = await counters.admit(reservation("lost", claim, lease_s=60, need=need))
        assert isinstance(answer, Admitted)
        at(NOW_MS + 60_001)
        await counters.expire_leases(100)

        (record,) = await sink.pending(limit=9, wait_s=0.01)
        (budget,) = await counters.budget_states([money(0)])
        assert budget is not None
        assert record.cost_nanousd == budget.spent_nanousd == need.cost_of(answer.output_tokens) < USD

    @pytest.mark.parametrize("is_late", [False, True])
    async def test_a_refusal_gives_back_what_was_admitted_after_all(
        self, counters: Counters, sink: UsageSink, at: At, is_late: bool
    ) -> None:
        """Its caller hung up before he was told, and the process may die before it can give anything back: it is one step."""
        at(NOW_MS)
        await counters.seed(money(0), NanoUsd(0))
        wanted = reservation("left", requests(5), tokens(1_000, 800), slots(1), money(400, lost=150), lease_s=60)
        assert is_admitted(await counters.admit(wanted))
        if is_late:
            at(NOW_MS + 60_001)
            await counters.expire_leases(100)
        for _ in range(2):
            await sink.append("left", b"refused")

        states = await counters.limit_states([slots(1)] if is_late else [requests(5), tokens(1_000, 0), slots(1)])
        assert [state.remaining for state in states] == ([1] if is_late else [5, 1_000, 1])
        (budget,) = await counters.budget_states([money(0)])
        assert budget is not None
        assert (budget.spent_nanousd, budget.reserved_nanousd) == (0, 0)
        assert (await recorded(sink))[-1] == "refused"

    async def test_a_call_that_is_refused_more_has_again_what_it_had(self, counters: Counters) -> None:
        await counters.seed(money(0), NanoUsd(0))
        had = (requests(5), tokens(1_000, 300), slots(2))
        await counters.admit(reservation("other", requests(5), tokens(1_000, 500), slots(2), money(USD // 2)))
        assert is_admitted(await counters.admit(reservation("more", *had, money(USD // 4))))

        too_dear = await counters.admit(reservation("more", *had, money(USD // 2 + 1)))
        too_long = await counters.admit(reservation("more", requests(5), tokens(1_000, 600), slots(2), money(1)))
        assert (type(too_dear), type(too_long)) == (BudgetRefused, LimitRefused)
        states = await counters.limit_states([requests(5), tokens(1_000, 0), slots(2)])
        assert [state.remaining for state in states] == [3, 200, 0]
        (budget,) = await counters.budget_states([money(0)])
        assert budget is not None
        assert budget.reserved_nanousd == USD // 2 + USD // 4

        assert is_admitted(await counters.admit(reservation("more", *had, money(USD // 2))))
        await counters.settle(settlement("more", cost=9, tokens=10))
        (budget,) = await counters.budget_states([money(0)])
        assert budget is not None
        assert (budget.spent_nanousd, budget.reserved_nanousd) == (9, USD // 2)

    @pytest.mark.parametrize("is_seeded_first", [True, False])
    async def test_a_budget_made_while_a_call_runs_pays_for_it(self, counters: Counters, is_seeded_first: bool) -> None:
        late = money(0, hard=None, holder="late")
        await counters.seed(money(0), NanoUsd(0))
        await counters.admit(reservation("run", money(400, lost=150)))
        if is_seeded_first:
            await counters.seed(late, NanoUsd(7))
        for _ in range(2):
            await counters.join("run", [replace(late, amount_nanousd=NanoUsd(999)), money(400)])
        if not is_seeded_first:
            await counters.seed(late, NanoUsd(7))

        states = await counters.budget_states([money(0), late])
        assert [(state.spent_nanousd, state.reserved_nanousd) for state in states if state] == [(0, 400), (7, 400)]
        await counters.settle(settlement("run", cost=30))
        await counters.join("run", [money(1)])  # too late: it has ended
        states = await counters.budget_states([money(0), late])
        assert [(state.spent_nanousd, state.reserved_nanousd) for state in states if state] == [(30, 0), (37, 0)]

    async def test_settlements_append_their_records_in_order_until_they_are_confirmed(
        self, counters: Counters, sink: UsageSink
    ) -> None:
        for call_id in ("a", "b", "c"):
            await counters.admit(reservation(call_id, requests(10)))
            await counters.settle(settlement(call_id))
        await sink.append("call of refused", b"refused")

        pending = await sink.pending(limit=2, wait_s=0.01)
        assert [record.packed for record in pending] == [b"done:a", b"done:b"]
        assert await recorded(sink) == ["done:a", "done:b", "done:c", "refused"], "unconfirmed records come again"
        await sink.confirm(pending)
        assert await recorded(sink) == ["done:c", "refused"]
        assert await sink.depth() == 2

    async def test_waiting_for_records_ends_when_one_comes(self, sink: UsageSink) -> None:
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(sink.pending(limit=10, wait_s=5.0))
            await asyncio.sleep(0)
            await sink.append("call of new", b"new")
        assert [record.packed for record in waiting.result()] == [b"new"]

    async def test_a_window_says_when_so_much_more_will_fit(self, counters: Counters, at: At) -> None:
        """As the admissions then find it, for more than one window holds too."""
        two_in_a_minute = requests(2)
        at(NOW_MS)
        assert await counters.room_in_ms(two_in_a_minute, 2) == 0
        assert is_admitted(await counters.admit(reservation("a", two_in_a_minute)))
        at(NOW_MS + 20_000)
        assert is_admitted(await counters.admit(reservation("b", two_in_a_minute)))

        first, second, third, fourth = [await counters.room_in_ms(two_in_a_minute, n) for n in (1, 2, 3, 4)]

        at(NOW_MS + 20_000 + first - 1)
        assert not is_admitted(await counters.admit(reservation("c", two_in_a_minute)))
        at(NOW_MS + 20_000 + first)
        assert is_admitted(await counters.admit(reservation("c", two_in_a_minute)))
        at(NOW_MS + 20_000 + second)
        assert is_admitted(await counters.admit(reservation("d", two_in_a_minute)))
        assert (third, fourth) == (first + 60_000, second + 60_000)

    async def test_several_windows_of_one_holder_hold_at_once(self, counters: Counters, at: At) -> None:
        minute, hour = requests(2), requests(3, 3600)
        outcomes = []
        for step in (0, 1_000, 2_000, 62_500, 63_000):
            at(NOW_MS + step)
            outcomes.append(is_admitted(await counters.admit(reservation(f"c{step}", minute, hour))))

        assert outcomes == [True, True, False, True, False]

    async def test_a_limit_of_zero_admits_nothing(self, counters: Counters) -> None:
        assert not is_admitted(await counters.admit(reservation("c", requests(0))))

    async def test_holders_do_not_share_what_they_have(self, counters: Counters) -> None:
        one = requests(1)
        assert is_admitted(await counters.admit(reservation("a", one)))
        assert is_admitted(await counters.admit(reservation("b", replace(one, scope_id="k2"))))
        assert is_admitted(await counters.admit(reservation("c", replace(one, scope=Scope.APP))))

    # ── Near the limit ────────────────────────────────────────────────────────────────────────────────────────────────

    async def test_ten_elastic_calls_share_what_one_could_hold(self, counters: Counters) -> None:
        """A budget of 20 000 tokens, calls whose model could produce 1 000 000."""
        budget = money(0, hard=20_000)
        await counters.seed(budget, NanoUsd(0))
        need = Need(NanoUsd(0), PicoUsd(1000), 1_000_000, 64, is_elastic=True)

        answers = [await counters.admit(reservation(f"c{i}", budget, need=need)) for i in range(20)]

        granted = [answer.output_tokens for answer in answers if isinstance(answer, Admitted)]
        assert granted == [2_000] * 10
        assert all(isinstance(answer, BudgetRefused) for answer in answers[10:])

    async def test_an_explicit_maximum_is_granted_whole_or_not_yet(self, counters: Counters) -> None:
        budget = money(0, hard=1_000)
        await counters.seed(budget, NanoUsd(0))
        need = Need(NanoUsd(0), PicoUsd(1000), 400, 64, is_elastic=False)

        answers = [await counters.admit(reservation(f"c{i}", budget, need=need)) for i in range(3)]

        assert [isinstance(answer, Admitted) for answer in answers] == [True, True, False]
        await counters.settle(settlement("c0", cost=100))
        later = await counters.admit(reservation("c3", budget, need=need))
        assert isinstance(later, Admitted)
        assert later.output_tokens == 400

    async def test_what_is_left_buys_a_shorter_answer_but_no_useless_one(self, counters: Counters) -> None:
        budget = money(0, hard=1_000)
        need = Need(NanoUsd(100), PicoUsd(1000), 5_000, 64, is_elastic=False)
        await counters.seed(budget, NanoUsd(0))
        first = await counters.admit(reservation("c0", budget, need=need))
        assert isinstance(first, Admitted)
        assert (first.output_tokens, first.budgets[0].claim.amount_nanousd) == (900, 1_000)
        await counters.settle(settlement("c0", cost=840))

        useless = await counters.admit(reservation("c1", budget, need=need))

        assert isinstance(useless, BudgetRefused)
        assert useless.state.spent_nanousd == 840

    async def test_where_less_is_expected_only_that_is_held(self, counters: Counters) -> None:
        plain = money(0, hard=1_000_000)
        expected = replace(plain, budget=dataclasses.replace(plain.budget, reserve=ReserveMode.EXPECTED))
        await counters.seed(expected, NanoUsd(0))

        answer = await counters.admit(
            reservation("c", expected, need=Need(NanoUsd(10), PicoUsd(1000), 5_000, 120, is_elastic=False))
        )

        assert isinstance(answer, Admitted)
        assert (answer.output_tokens, answer.budgets[0].claim.amount_nanousd) == (120, 130)

    async def test_a_call_that_costs_nothing_passes_a_budget_that_is_used_up(self, counters: Counters) -> None:
        budget = money(0, hard=10)
        await counters.seed(budget, NanoUsd(10))
        assert is_admitted(
            await counters.admit(reservation("c", budget, need=Need(NanoUsd(0), PicoUsd(0), 100, 1, is_elastic=True)))
        )

    async def test_an_elastic_claim_of_tokens_takes_what_is_left_but_no_less_than_it_needs(
        self, counters: Counters
    ) -> None:
        claim = Claim(Scope.USER, "u1", Limit(LimitKind.TOKENS, 1_000, 60), 300, 100)
        answers = [await counters.admit(reservation(f"c{i}", claim)) for i in range(5)]

        taken = [answer.limits[0].claim.amount for answer in answers if isinstance(answer, Admitted)]
        assert taken == [300, 300, 300, 100]
        assert isinstance(answers[4], LimitRefused)

    async def test_tokens_that_are_only_held_come_back_sooner_than_those_that_were_used(
        self, counters: Counters, at: At
    ) -> None:
        at(NOW_MS)
        for i in range(2):
            assert is_admitted(await counters.admit(reservation(f"c{i}", tokens(1000, 500))))
        held = await counters.admit(reservation("d", tokens(1000, 300)))
        assert isinstance(held, LimitRefused)
        assert held.retry_after_ms <= 1_000

        for i in range(2):
            await counters.settle(settlement(f"c{i}", tokens=450))
        used = await counters.admit(reservation("e", tokens(1000, 300)))
        assert isinstance(used, LimitRefused)
        assert used.retry_after_ms >= 60_000
