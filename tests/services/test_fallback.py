"""What calls and their records meet while there is no counter store at all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest
import uvloop

from app.clock import Clock, SystemClock
from app.domain.budget import BudgetClaim
from app.domain.money import NanoUsd
from app.embedded import ValkeyServer
from app.exceptions import CounterStoreAway, DependencyUnavailable, LeaseLost
from app.redis_client import RedisClient, open_redis
from app.services.fallback import FallbackCounters
from app.services.recovery import RecoveringCounters
from app.services.running import RunningCalls
from app.storage.journal import RESERVE_BYTES, Journal, adopt_orphans
from app.storage.local_counters import LocalCounters
from app.storage.ports import Admitted, Checkpoint, LimitRefused, Settled, Settlement
from app.storage.redis_counters import RedisCounters, RedisUsageSink
from tests.storage.conform_counters import money, recorded, requests, reservation, settlement, slots

SILENT_AFTER_MS = 500
"""Of a store that is paused; one that works is heard within that time, also where others have the processor for a while."""


class EmptyLedger:
    def __init__(self, recorded: dict[str, bool] | None = None) -> None:
        self._recorded = recorded or {}

    async def recorded(self, call_ids: Sequence[str]) -> dict[str, bool]:
        return {call_id: is_lost for call_id, is_lost in self._recorded.items() if call_id in call_ids}

    async def write(self, records: object) -> int:
        raise AssertionError("nothing is drained here")

    async def write_content(self, contents: object) -> None:
        raise AssertionError("nothing is drained here")

    async def spent(self, claim: BudgetClaim) -> NanoUsd:
        return NanoUsd(0)


def fallback(
    client: RedisClient,
    folder: Path,
    *,
    is_local: bool = True,
    journal: Journal | None = None,
    store: RedisCounters | None = None,
    clock: Clock | None = None,
    ledger: EmptyLedger | None = None,
) -> FallbackCounters:
    clock = clock or SystemClock()
    return FallbackCounters(
        RecoveringCounters(
            store or RedisCounters(client, quarantine_ms=0),
            sink=RedisUsageSink(client),
            ledger=ledger or EmptyLedger(),
            clock=clock,
        ),
        local=LocalCounters(lambda: int(clock.monotonic() * 1000)),
        journal=journal or Journal(folder),
        clock=clock,
        is_local=is_local,
    )


def sizes(folder: Path) -> list[int]:
    return [path.stat().st_size for path in folder.iterdir()]


@pytest.fixture
async def nowhere() -> AsyncIterator[RedisClient]:
    """A client of a server that does not exist."""
    client = open_redis("redis://127.0.0.1:1/0", timeout_ms=200)
    async with client.pumping():
        yield client


async def test_a_full_journal_begins_no_call(nowhere: RedisClient, tmp_path: Path) -> None:
    """T103."""
    counters = fallback(nowhere, tmp_path, journal=Journal(tmp_path, max_bytes=RESERVE_BYTES - 1))
    with pytest.raises(DependencyUnavailable, match="journal"):
        await counters.admit(reservation("a", requests(10)))


async def test_where_it_is_so_wished_nothing_is_admitted_without_the_store(
    nowhere: RedisClient, tmp_path: Path
) -> None:
    counters = fallback(nowhere, tmp_path, is_local=False)
    with pytest.raises(CounterStoreAway):
        await counters.admit(reservation("a", requests(10)))


async def test_a_hard_budget_is_not_promised_by_one_replica_and_a_soft_one_is_no_promise(
    nowhere: RedisClient, tmp_path: Path
) -> None:
    counters = fallback(nowhere, tmp_path)
    with pytest.raises(CounterStoreAway):
        await counters.admit(reservation("hard", money(1)))
    assert isinstance(await counters.admit(reservation("soft", money(1, hard=None))), Admitted)


async def test_what_was_written_down_is_replayed_booked_and_forgotten_once_the_store_is_there(
    redis_url: str, valkey: ValkeyServer, tmp_path: Path
) -> None:
    client = open_redis(redis_url, timeout_ms=SILENT_AFTER_MS)
    soft = money(1, hard=None)
    counters = fallback(client, tmp_path)
    async with client.pumping():
        await counters.admit(reservation("before", soft))
        valkey.pause()
        try:
            await counters.settle(settlement("before", cost=3))
            await counters.admit(reservation("during", soft))
            await counters.settle(settlement("during", cost=4))
            await counters.append("call of refused", b"refused")
        finally:
            valkey.resume()
        async with asyncio.timeout(20):
            while counters.is_away:
                await counters.watch()
        await counters.watch()

        patient = open_redis(redis_url, timeout_ms=5_000)
        async with patient.pumping():
            records = await recorded(RedisUsageSink(patient))
            (state,) = await RedisCounters(patient).budget_states([soft])
    assert set(records) == {"done:before", "done:during", "refused"}
    assert state is not None
    assert (state.spent_nanousd, state.reserved_nanousd) == (7, 0)
    assert sizes(tmp_path) == [0]


async def test_a_refusal_is_told_again_to_a_store_that_lost_its_memory_until_sql_has_it(
    redis_url: str, tmp_path: Path
) -> None:
    client = open_redis(redis_url, timeout_ms=5_000)
    counters = fallback(client, tmp_path)
    sink = RedisUsageSink(client)
    async with client.pumping():
        await counters.watch()
        assert (
            await counters.append("call of drained", b"drained")
            == (await sink.pending(limit=9, wait_s=0.01))[0].position
        )
        await sink.confirm(await sink.pending(limit=9, wait_s=0.01))
        await counters.watch()  # learns that it was drained
        await counters.append("call of on its way", b"on its way")
        await client.redis.flushall()

        await counters.watch()

        assert await recorded(sink) == ["on its way"]


async def test_a_refusal_that_nobody_takes_is_given_back_to_its_caller(nowhere: RedisClient, tmp_path: Path) -> None:
    counters = fallback(nowhere, tmp_path, journal=Journal(tmp_path, max_bytes=1))
    with pytest.raises(CounterStoreAway):
        await counters.append("call of refused", b"refused")


async def test_refusals_leave_half_of_the_journal_to_calls(nowhere: RedisClient, tmp_path: Path) -> None:
    """T103: callers who are refused again and again would fill it, and then no call could be begun."""
    journal = Journal(tmp_path, max_bytes=2 * RESERVE_BYTES + 2_000_000)
    counters = fallback(nowhere, tmp_path, journal=journal)
    for number in range(6):
        await counters.append(f"refused-{number}", bytes(1_000_000))
    with pytest.raises(CounterStoreAway):
        await counters.append("one too many", bytes(1_000_000))
    assert isinstance(await counters.admit(reservation("call")), Admitted)
    await counters.settle(settlement("call"))
    journal.close()


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_process_that_stood_still_does_not_take_the_store_for_gone(
    redis_url: str, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """T095: it would enforce its share of each limit alone, beside all the others that hear the store well."""

    async def stand_still() -> None:
        client = open_redis(redis_url, timeout_ms=SILENT_AFTER_MS)
        counters = RedisCounters(client)
        async with client.pumping():
            await counters.epoch()  # connected
            for _ in range(2):
                asked = asyncio.create_task(counters.epoch())
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                time.sleep(2 * SILENT_AFTER_MS / 1000)  # noqa: ASYNC251 - the whole process stands still, as after SIGSTOP
                assert (await asked).token

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(stand_still())


async def test_a_store_that_is_silent_is_gone_after_the_bound(redis_url: str, valkey: ValkeyServer) -> None:
    """T095."""
    client = open_redis(redis_url, timeout_ms=SILENT_AFTER_MS)
    counters = RedisCounters(client)
    async with client.pumping():
        await counters.epoch()
        valkey.pause()
        try:
            began_s = time.monotonic()
            with pytest.raises(CounterStoreAway):
                await counters.epoch()
            assert time.monotonic() - began_s < 5
        finally:
            valkey.resume()


async def test_a_settlement_never_fails_and_what_cannot_be_written_down_is_kept(
    redis_url: str, valkey: ValkeyServer, tmp_path: Path
) -> None:
    blocked = tmp_path / "journal"
    blocked.write_text("a file where the folder should be")
    client = open_redis(redis_url, timeout_ms=SILENT_AFTER_MS)
    counters = fallback(client, blocked)
    async with client.pumping():
        await counters.admit(reservation("a", requests(5)))
        valkey.pause()
        try:
            await counters.settle(settlement("a"))
        finally:
            valkey.resume()
        patient = open_redis(redis_url, timeout_ms=5_000)
        async with patient.pumping(), asyncio.timeout(10):
            while "done:a" not in await recorded(RedisUsageSink(patient)):
                await counters.watch()


async def test_a_call_that_began_without_the_store_holds_its_slot_there_once_it_is_back(
    redis_url: str, valkey: ValkeyServer, tmp_path: Path
) -> None:
    client = open_redis(redis_url, timeout_ms=SILENT_AFTER_MS)
    counters = fallback(client, tmp_path)
    soft = money(1, hard=None)
    async with client.pumping():
        await counters.watch()
        valkey.pause()
        try:
            assert isinstance(await counters.admit(reservation("a", slots(1), soft)), Admitted)
        finally:
            valkey.resume()
        async with asyncio.timeout(20):
            while counters.is_away or sizes(tmp_path) != [0]:
                await counters.watch()

        patient = open_redis(redis_url, timeout_ms=5_000)
        async with patient.pumping():
            others = RedisCounters(patient)
            assert isinstance(await others.admit(reservation("b", slots(1))), LimitRefused)
            assert await counters.renew(["a"], 60) == []
            await counters.settle(settlement("a", cost=5))
            await counters.settle(settlement("a", cost=5))
            assert isinstance(await others.admit(reservation("b", slots(1))), Admitted)
            (state,) = await others.budget_states([soft])
    assert state is None, "nobody has seeded it yet"


async def test_a_call_whose_process_died_without_the_store_is_lost_and_billed_once(
    redis_url: str, tmp_path: Path
) -> None:
    absent = open_redis("redis://127.0.0.1:1/0", timeout_ms=200)
    journal = Journal(tmp_path)
    dying = fallback(absent, tmp_path, journal=journal)
    soft = money(0, hard=None, lost=7)
    async with absent.pumping():
        for call_id in ("ended", "cut off"):
            await dying.admit(reservation(call_id, soft))
        await dying.settle(settlement("ended", cost=30))
    journal.close()

    client = open_redis(redis_url, timeout_ms=5_000)
    heir = fallback(client, tmp_path / "heir")
    async with client.pumping():
        store = RedisCounters(client)
        await store.seed(soft, NanoUsd(0))
        for _ in range(2):
            await heir.adopt(tmp_path)
        records = await recorded(RedisUsageSink(client))
        (state,) = await store.budget_states([soft])
    assert sorted(records) == ["done:ended", "lost:cut off"]
    assert state is not None
    assert (state.spent_nanousd, state.reserved_nanousd) == (37, 0)


class InterruptedJournal(Journal):
    """Something happens at the moment in which it is about to be read for the replay, once."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.meanwhile: Callable[[], Awaitable[None]] | None = None
        self.was_interrupted = False

    async def batches(self, size: int) -> AsyncIterator[list[bytes]]:
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            await meanwhile()
            self.was_interrupted = True
        async for batch in super().batches(size):
            yield batch


class HeldCounters(RedisCounters):
    """Something happens when a doubtful call is given back, once; settlements wait until they are let go."""

    def __init__(self, client: RedisClient) -> None:
        super().__init__(client, quarantine_ms=0)
        self.meanwhile: Callable[[], None] | None = None
        self.was_interrupted = False
        self.may_book = asyncio.Event()

    async def release(self, call_id: str, *, is_over: bool = True) -> None:
        if self.meanwhile is not None:
            meanwhile, self.meanwhile, self.was_interrupted = self.meanwhile, None, True
            meanwhile()
            await asyncio.sleep(0)  # what that began is under way
        await super().release(call_id, is_over=is_over)

    async def book(
        self, settlement: Settlement, budgets: Sequence[str] | None, *, unless_known: bool = False
    ) -> Settled:
        await self.may_book.wait()
        return await super().book(settlement, budgets, unless_known=unless_known)


async def records_after_adoption(redis_url: str, folder: Path) -> list[str]:
    """What is recorded once another process has looked after the journals of those that are gone."""
    client = open_redis(redis_url, timeout_ms=5_000)
    async with client.pumping():
        await fallback(client, folder / "heir").adopt(folder)
        return await recorded(RedisUsageSink(client))


async def test_a_call_that_began_while_the_journal_was_replayed_is_not_forgotten_with_it(
    redis_url: str, valkey: ValkeyServer, tmp_path: Path
) -> None:
    """T128: the store falls silent again in the middle of catching up, and the process dies right after that."""
    client, journal = open_redis(redis_url, timeout_ms=SILENT_AFTER_MS), InterruptedJournal(tmp_path)
    counters = fallback(client, tmp_path, journal=journal)

    async def silent_again() -> None:
        valkey.pause()
        try:
            assert isinstance(await counters.admit(reservation("late")), Admitted)
        finally:
            valkey.resume()

    async with client.pumping():
        await counters.watch()
        await counters.admit(reservation("early"))
        valkey.pause()
        try:
            await counters.settle(settlement("early"))
        finally:
            valkey.resume()
        journal.meanwhile = silent_again
        async with asyncio.timeout(10):
            while not journal.was_interrupted:
                await counters.watch()
    journal.close()

    assert "lost:late" in await records_after_adoption(redis_url, tmp_path)


@pytest.mark.parametrize("is_cancelled", [False, True], ids=["under way", "its caller cancelled"])
async def test_the_journal_stands_until_the_settlement_of_every_call_in_it_is_taken(
    redis_url: str, valkey: ValkeyServer, tmp_path: Path, *, is_cancelled: bool
) -> None:
    """T128: a call that began without the store ends at the moment of its return; nobody has told the store of it."""
    client = open_redis(redis_url, timeout_ms=SILENT_AFTER_MS)
    store = HeldCounters(client)
    counters = fallback(client, tmp_path, store=store)
    settling: list[asyncio.Task[None]] = []
    async with client.pumping():
        await counters.watch()
        valkey.pause()
        try:
            await counters.admit(reservation("ends", slots(1)))
            assert isinstance(await counters.admit(reservation("refused", slots(1))), LimitRefused)
        finally:
            valkey.resume()
        store.meanwhile = lambda: settling.append(asyncio.create_task(counters.settle(settlement("ends"))))
        async with asyncio.timeout(10):
            while not store.was_interrupted:
                await counters.watch()
        if is_cancelled:
            settling[0].cancel()
        await counters.watch()
        assert sizes(tmp_path) != [0], "the only trace of the call that is sure to be there"

        store.may_book.set()
        await asyncio.gather(*settling, return_exceptions=True)
        async with asyncio.timeout(10):
            while sizes(tmp_path) != [0]:
                await counters.watch()
        assert "done:ends" in await recorded(RedisUsageSink(client))


async def test_who_adopts_a_journal_leaves_a_call_to_what_the_store_knows_of_it(redis_url: str, tmp_path: Path) -> None:
    """T127: its last checkpoint says more than that it was lost."""
    soft = money(0, hard=None, lost=7)
    absent, client = open_redis("redis://127.0.0.1:1/0", timeout_ms=200), open_redis(redis_url, timeout_ms=5_000)
    journal = Journal(tmp_path)
    dying = fallback(absent, tmp_path, journal=journal)
    async with absent.pumping():
        held = reservation("stream", soft)
        admitted = await dying.admit(held)
        assert isinstance(admitted, Admitted)
    journal.close()
    async with client.pumping():
        store = RedisCounters(client)
        await store.seed(soft, NanoUsd(0))
        await store.reassert(held, admitted)
        await store.checkpoint([Checkpoint("stream", NanoUsd(20), b"interrupted:stream")])

        await fallback(client, tmp_path / "heir").adopt(tmp_path)
        store.now_ms = int(time.time() * 1000) + 3_600_000
        await store.expire_leases(10)

        assert await recorded(RedisUsageSink(client)) == ["interrupted:stream"]
        (state,) = await store.budget_states([soft])
    assert state is not None
    assert (state.spent_nanousd, state.reserved_nanousd) == (20, 0)


async def test_who_adopts_a_journal_books_no_call_again_that_the_ledger_has(redis_url: str, tmp_path: Path) -> None:
    """Its process had replayed it, and died before it was cleared; then the store lost its memory, and with it the mark of each call."""
    soft = money(0, hard=None, lost=7)
    absent, client = open_redis("redis://127.0.0.1:1/0", timeout_ms=200), open_redis(redis_url, timeout_ms=5_000)
    journal = Journal(tmp_path)
    dying = fallback(absent, tmp_path, journal=journal)
    async with absent.pumping():
        for call_id in ("ended", "lost", "known to be lost", "ended after all"):
            await dying.admit(reservation(call_id, soft))
        for call_id in ("ended", "ended after all"):
            await dying.settle(settlement(call_id, cost=30))
    journal.close()
    async with client.pumping():
        store = RedisCounters(client)
        await store.seed(soft, NanoUsd(100))
        ledger = EmptyLedger({"ended": False, "known to be lost": True, "ended after all": True})
        await fallback(client, tmp_path / "heir", ledger=ledger).adopt(tmp_path)
        assert sorted(await recorded(RedisUsageSink(client))) == ["done:ended after all", "lost:lost"]
        (state,) = await store.budget_states([soft])
    assert state is not None
    assert state.spent_nanousd == 137


async def test_an_adoption_that_failed_leaves_the_journal_to_the_next(nowhere: RedisClient, tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    dying = fallback(nowhere, tmp_path, journal=journal)
    await dying.admit(reservation("lost"))
    journal.close()
    with pytest.raises(CounterStoreAway) as failure:
        await fallback(nowhere, tmp_path / "heir").adopt(tmp_path)
    assert len(list(adopt_orphans(tmp_path))) == 1, f"locked for as long as {failure} is remembered"


async def test_a_running_call_that_is_refused_more_while_the_store_is_away_keeps_what_it_has(
    redis_url: str, valkey: ValkeyServer, tmp_path: Path
) -> None:
    """It asks for a fallback's limits, say. What it was admitted with is not given back when the store returns."""
    client = open_redis(redis_url, timeout_ms=SILENT_AFTER_MS)
    counters = fallback(client, tmp_path)
    async with client.pumping():
        await counters.watch()
        assert isinstance(await counters.admit(reservation("runs", requests(5))), Admitted)
        valkey.pause()
        try:
            assert isinstance(await counters.admit(reservation("runs", requests(0))), LimitRefused)
        finally:
            valkey.resume()
        async with asyncio.timeout(10):
            while counters.is_away:
                await counters.watch()
        await counters.watch()
        assert await counters.renew(["runs"], 60) == []


class JumpingClock(SystemClock):
    """Of a process that may stand still."""

    stood_still_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.stood_still_s


async def test_a_process_that_stood_still_while_the_store_was_away_asks_before_it_serves_alone(
    redis_url: str, valkey: ValkeyServer, tmp_path: Path
) -> None:
    """The store was back long before; beside the others that count on it this one gave out its share of each limit once more."""
    client, clock = open_redis(redis_url, timeout_ms=SILENT_AFTER_MS), JumpingClock()
    counters = fallback(client, tmp_path, clock=clock)
    async with client.pumping():
        await counters.watch()
        valkey.pause()
        try:
            assert isinstance(await counters.admit(reservation("alone", requests(1))), Admitted)
        finally:
            valkey.resume()
        patient = open_redis(redis_url, timeout_ms=5_000)
        async with patient.pumping():
            assert isinstance(await RedisCounters(patient).admit(reservation("other", requests(2))), Admitted)
            assert isinstance(await RedisCounters(patient).admit(reservation("another", requests(2))), Admitted)

        clock.stood_still_s = 10.0
        answers = await asyncio.gather(*(counters.admit(reservation(f"c{n}", requests(2))) for n in range(5)))

    assert [type(answer) for answer in answers] == [LimitRefused] * 5
    assert not counters.is_away


async def test_a_running_call_is_ended_by_its_id_and_only_that_one() -> None:
    running, left, why = RunningCalls(), list[str](), LeaseLost()

    async def call(call_id: str) -> None:
        running.add(call_id)
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            left.append(call_id)
        finally:
            running.discard(call_id)

    tasks = [asyncio.create_task(call(call_id)) for call_id in ("a", "b")]
    await asyncio.sleep(0)
    assert running.end(["a", "unknown"], why) == 1
    assert running.end(["a"], why) == 0, "once"
    await asyncio.wait(tasks)

    assert left == ["a"]
    assert (running.why_ended("a"), running.why_ended("b"), len(running)) == (why, None, 0)
