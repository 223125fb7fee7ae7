"""What the counters on Redis do to be told again after it lost its memory."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from app.domain.budget import BudgetClaim
from app.domain.money import NanoUsd
from app.exceptions import DependencyUnavailable
from app.redis_client import RedisClient, open_redis
from app.storage.ports import (
    Admitted,
    BudgetsUnseeded,
    EpochLost,
    PendingRecord,
    Reservation,
    SeedingTooEarly,
    SeedTicket,
)
from app.storage.redis_counters import RedisCounters, RedisUsageSink
from tests.storage.conform_counters import USD, money, recorded, requests, reservation, settlement, slots

BUDGET = money(0).counter


@pytest.fixture
def counters(redis: RedisClient) -> RedisCounters:
    return RedisCounters(redis, process_id="p1", quarantine_ms=0)


async def admitted(counters: RedisCounters, wanted: Reservation) -> Admitted:
    answer = await counters.admit(wanted)
    assert isinstance(answer, Admitted), answer
    return answer


async def booked(counters: RedisCounters) -> tuple[int, int] | None:
    """Spent and reserved, or None while the budget is not seeded."""
    (state,) = await counters.budget_states([money(0)])
    return None if state is None else (state.spent_nanousd, state.reserved_nanousd)


async def forget_everything(counters: RedisCounters, redis: RedisClient) -> None:
    await redis.redis.flushall()
    await counters.epoch()


async def seed_from_ledger(counters: RedisCounters, redis: RedisClient, spent: int) -> None:
    """What a process does once the drainer has moved what lies in the stream."""
    sink = RedisUsageSink(redis)
    records = await sink.pending(limit=100, wait_s=0.001)
    if records:
        await sink.confirm(records)
    ticket = await counters.may_seed(money(0))
    assert isinstance(ticket, SeedTicket)
    assert await counters.seed_with(ticket, money(0), NanoUsd(spent))


async def test_a_server_without_an_epoch_admits_nothing_until_one_is_begun(
    counters: RedisCounters, redis: RedisClient
) -> None:
    first = await counters.epoch()
    assert (await counters.epoch()).token == first.token
    assert isinstance(await counters.admit(reservation("a", requests(1))), Admitted)
    await redis.redis.flushall()

    assert isinstance(await counters.admit(reservation("b", requests(1))), EpochLost)

    second = await counters.epoch()
    assert second.token != first.token
    assert isinstance(await counters.admit(reservation("b", requests(1))), Admitted)


async def test_the_first_words_on_a_new_connection_begin_an_epoch(redis_url: str) -> None:
    client = open_redis(redis_url, timeout_ms=2_000)
    counters = RedisCounters(client)
    async with client.pumping():
        assert isinstance(await counters.admit(reservation("a", requests(1))), Admitted)


async def test_a_call_told_again_holds_its_money_and_its_slot_and_settles_as_ever(
    counters: RedisCounters, redis: RedisClient
) -> None:
    await counters.seed(money(0), NanoUsd(0))
    wanted = reservation("run", slots(1), money(400))
    answer = await admitted(counters, wanted)
    await forget_everything(counters, redis)

    for _ in range(2):
        await counters.reassert(wanted, answer)
    assert await booked(counters) is None
    assert isinstance(await counters.admit(reservation("x", money(1))), BudgetsUnseeded)
    await seed_from_ledger(counters, redis, 100)

    assert await booked(counters) == (100, 400)
    assert not isinstance(await counters.admit(reservation("y", slots(1))), Admitted)
    await counters.settle(settlement("run", cost=30))
    assert await booked(counters) == (130, 0)


async def test_a_call_that_has_ended_is_not_brought_back_to_life(counters: RedisCounters, redis: RedisClient) -> None:
    await counters.seed(money(0), NanoUsd(0))
    wanted = reservation("ended", money(400))
    answer = await admitted(counters, wanted)
    await forget_everything(counters, redis)
    await counters.book(settlement("ended", cost=30), [BUDGET])

    await counters.reassert(wanted, answer)

    await seed_from_ledger(counters, redis, 30)
    assert await booked(counters) == (30, 0)


async def test_a_budget_is_not_seeded_while_a_record_of_its_is_on_the_way(
    counters: RedisCounters, redis: RedisClient
) -> None:
    await counters.seed(money(0), NanoUsd(0))
    await admitted(counters, reservation("done", money(400)))
    await forget_everything(counters, redis)
    ticket = await counters.may_seed(money(0))
    assert isinstance(ticket, SeedTicket)

    settled = await counters.book(settlement("done", cost=30), [BUDGET])

    assert isinstance(await counters.may_seed(money(0)), SeedingTooEarly)
    assert not await counters.seed_with(ticket, money(0), NanoUsd(0)), "what was read before it came is void"
    await RedisUsageSink(redis).confirm([PendingRecord(settled.position, b"")])
    assert (await counters.epoch()).drained == settled.position
    await seed_from_ledger(counters, redis, 30)
    assert await booked(counters) == (30, 0)


async def test_a_record_told_late_is_booked_in_a_budget_that_is_seeded_already_and_once(
    counters: RedisCounters, redis: RedisClient
) -> None:
    await forget_everything(counters, redis)
    await counters.seed(money(0), NanoUsd(100))

    for _ in range(2):
        await counters.book(settlement("late", cost=30), [BUDGET])

    assert await booked(counters) == (130, 0)


async def test_a_repeat_whose_first_try_ended_the_reservation_books_nothing(
    counters: RedisCounters, redis: RedisClient
) -> None:
    await counters.seed(money(0), NanoUsd(0))
    await admitted(counters, reservation("c", money(400)))

    for _ in range(2):
        await counters.book(settlement("c", cost=30), [BUDGET])

    assert await booked(counters) == (30, 0)


async def test_a_budget_that_was_made_again_is_counted_when_all_know_of_it_and_all_records_are_there(
    redis: RedisClient,
) -> None:
    counters = RedisCounters(redis, quarantine_ms=60_000)
    await counters.epoch()
    await redis.redis.hset("{ag}:epoch", "b", "0")  # begun long ago
    first, second = money(0, opened_ms=1_000), money(0, opened_ms=2_000)
    await counters.seed(first, NanoUsd(100))

    answer = await counters.may_seed(second)
    assert isinstance(answer, SeedingTooEarly)
    assert answer.retry_after_ms > 30_000
    await redis.redis.hset("{ag}:b:" + second.counter, "n", "0")  # time passes
    await counters.book(settlement("in between", cost=30), [BUDGET])
    assert isinstance(await counters.may_seed(second), SeedingTooEarly), "its record is on the way"
    await RedisUsageSink(redis).confirm(await RedisUsageSink(redis).pending(limit=9, wait_s=0.01))
    ticket = await counters.may_seed(second)
    assert isinstance(ticket, SeedTicket)
    assert await counters.seed_with(ticket, second, NanoUsd(130))
    assert await counters.may_seed(second) is None
    assert await counters.may_seed(first) is None
    assert await booked(counters) == (130, 0)


async def test_an_admission_that_arrives_after_its_call_was_settled_by_name_reserves_nothing(
    counters: RedisCounters, redis: RedisClient
) -> None:
    """It lay in the buffers of a server that stood still; expired, it would be charged a second time."""
    await counters.seed(money(0), NanoUsd(0))
    await counters.book(settlement("c", cost=30), [BUDGET])
    await counters.book(settlement("free of budgets"), [])

    for call_id in ("c", "free of budgets"):
        with pytest.raises(DependencyUnavailable):
            await counters.admit(reservation(call_id, money(400), slots(1)))

    assert await booked(counters) == (30, 0)
    assert isinstance(await counters.admit(reservation("another", slots(1))), Admitted)


async def test_an_admission_that_arrives_after_its_call_was_given_back_reserves_nothing_unless_it_may_ask_again(
    counters: RedisCounters, redis: RedisClient
) -> None:
    await counters.epoch()
    await counters.release("over")
    await counters.release("in a queue", is_over=False)

    with pytest.raises(DependencyUnavailable):
        await counters.admit(reservation("over", slots(1)))
    assert isinstance(await counters.admit(reservation("in a queue", slots(1))), Admitted)


async def test_the_refusal_of_a_call_that_was_given_back_before_is_recorded_all_the_same(
    counters: RedisCounters, redis: RedisClient
) -> None:
    await counters.release("c")
    assert await RedisUsageSink(redis).append("c", b"refused")
    assert await recorded(RedisUsageSink(redis)) == ["refused"]


async def test_a_call_that_is_lost_is_left_to_what_is_known_of_it(counters: RedisCounters, redis: RedisClient) -> None:
    await counters.seed(money(0), NanoUsd(0))
    await admitted(counters, reservation("runs", money(400)))
    await counters.book(settlement("ended", cost=30), [BUDGET])

    for call_id in ("runs", "ended", "unknown"):
        await counters.book(settlement(call_id, cost=7), [BUDGET], unless_known=True)

    assert await booked(counters) == (37, 400)


async def test_a_settlement_that_finds_no_reservation_names_the_epoch(
    counters: RedisCounters, redis: RedisClient
) -> None:
    epoch = await counters.epoch()
    settled = await counters.book(settlement("unknown", cost=30), None)
    assert settled.unknown_in == epoch.token


async def test_no_budget_is_seeded_before_the_quarantine_is_over(redis: RedisClient) -> None:
    counters = RedisCounters(redis, quarantine_ms=60_000)
    await counters.epoch()
    answer = await counters.may_seed(money(0))
    assert isinstance(answer, SeedingTooEarly)
    assert 30_000 < answer.retry_after_ms <= 60_000


async def test_another_server_with_the_same_memory_is_a_new_epoch_that_keeps_what_is_reserved(
    counters: RedisCounters, redis: RedisClient
) -> None:
    """Restarted from a log, or a replica that was promoted: what it says of budgets may lack the last second."""
    first = await counters.epoch()
    await counters.seed(money(0), NanoUsd(100))
    await admitted(counters, reservation("run", money(400)))
    await redis.redis.hset("{ag}:epoch", "s", "another server")

    second = await counters.epoch()

    assert second.token != first.token
    assert await booked(counters) is None
    await seed_from_ledger(counters, redis, 700)
    assert await booked(counters) == (700, 400)
    await counters.settle(settlement("run", cost=30))
    assert await booked(counters) == (730, 0)


async def test_living_processes_are_counted(redis: RedisClient) -> None:
    counts = [(await RedisCounters(redis, process_id=name).epoch()).processes for name in ("p1", "p2", "p2", "p3")]
    assert counts == [1, 2, 2, 3]


async def test_a_soft_budget_that_is_told_again_is_counted_too(counters: RedisCounters, redis: RedisClient) -> None:
    soft = money(0, hard=None)
    await counters.seed(soft, NanoUsd(USD))
    wanted = reservation("run", soft)
    answer = await admitted(counters, wanted)
    await forget_everything(counters, redis)
    await counters.reassert(wanted, answer)

    await counters.settle(settlement("run", cost=30))

    assert isinstance(await counters.may_seed(soft), SeedingTooEarly)


FAR_MS = 1_000_000_000_000_000
"""No clock gets there."""


async def opening_later(redis: RedisClient, *, processes: int) -> tuple[RedisCounters, BudgetClaim]:
    """A store whose epoch is old, and a budget that opens later."""
    counters = RedisCounters(redis, process_id="p0", quarantine_ms=60_000)
    for number in range(processes):
        await RedisCounters(redis, process_id=f"p{number}").epoch()
    await redis.redis.hset("{ag}:epoch", "b", 0)
    claim = money(0)
    return counters, msgspec.structs.replace(claim, budget=dataclasses.replace(claim.budget, opened_ms=FAR_MS))


async def test_a_budget_made_now_is_counted_when_every_process_knows_of_it(redis: RedisClient) -> None:
    """One that does not know of it yet may be making calls without it: they are in the ledger by then."""
    counters, claim = await opening_later(redis, processes=2)

    for _ in range(2):
        answer = await counters.may_seed(claim)
        assert isinstance(answer, SeedingTooEarly)
        assert 0 < answer.retry_after_ms <= 60_000, "it waits no longer, whatever the database's clock says"
    await redis.redis.hset("{ag}:b:" + claim.counter, "n", 1)  # that time is over
    ticket = await counters.may_seed(claim)
    assert isinstance(ticket, SeedTicket)
    assert await counters.seed_with(ticket, claim, NanoUsd(5))
    assert await counters.may_seed(claim) is None


async def test_the_only_process_knows_of_every_budget_at_once(redis: RedisClient) -> None:
    counters, claim = await opening_later(redis, processes=1)
    assert isinstance(await counters.may_seed(claim), SeedTicket)


async def test_a_budget_that_was_made_with_its_holder_is_counted_at_once(redis: RedisClient) -> None:
    counters, claim = await opening_later(redis, processes=2)
    claim = msgspec.structs.replace(claim, budget=dataclasses.replace(claim.budget, opened_ms=1))
    assert isinstance(await counters.may_seed(claim), SeedTicket)
