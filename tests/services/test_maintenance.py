"""Chores: done again and again, by one process where that is enough, and never stopped by a fault."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from app.exceptions import DependencyUnavailable
from app.services.maintenance import BACKOFF_FIRST_S, BACKOFF_MAX_S, Chore, supervise
from tests.kit.clock import ManualClock


class FakeElection:
    def __init__(self, *, leads: bool = True) -> None:
        self.is_leader = leads
        self.is_away = False
        self.offices: list[str] = []

    async def leads(self, office: str) -> bool:
        self.offices.append(office)
        if self.is_away:
            raise DependencyUnavailable("counter store")
        return self.is_leader


class Work:
    """Notes when it was done; fails while `fault` is set."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self._start = clock.monotonic()
        self.fault: Exception | None = None
        self.at_s: list[float] = []

    async def __call__(self) -> None:
        self.at_s.append(round(self._clock.monotonic() - self._start, 3))
        if self.fault:
            raise self.fault


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def work(clock: ManualClock) -> Work:
    return Work(clock)


@asynccontextmanager
async def supervised(chore: Chore, clock: ManualClock, election: FakeElection | None = None) -> AsyncIterator[None]:
    task = asyncio.create_task(supervise(chore, election or FakeElection(), clock))
    try:
        yield
        assert not task.done(), "a chore never ends by itself"
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


async def test_a_chore_is_done_at_once_and_then_regularly(clock: ManualClock, work: Work) -> None:
    async with supervised(Chore("c", work, every_s=10), clock):
        await clock.advance(35)

        assert work.at_s == [0, 10, 20, 30]


async def test_a_chore_that_must_wait_for_something_is_not_done_before(clock: ManualClock, work: Work) -> None:
    ready = asyncio.Event()
    async with supervised(Chore("c", work, every_s=10, after=ready), clock):
        await clock.advance(100)
        assert work.at_s == []
        ready.set()
        await clock.advance(5)

        assert work.at_s == [100]


async def test_a_failing_chore_is_tried_again_with_pauses_that_grow_to_a_limit(clock: ManualClock, work: Work) -> None:
    work.fault = DependencyUnavailable("database")
    async with supervised(Chore("c", work, every_s=10), clock):
        await clock.advance(40)

        pauses = [round(b - a, 3) for a, b in zip(work.at_s, work.at_s[1:], strict=False)]
        assert pauses[:5] == [BACKOFF_FIRST_S * 2**n for n in range(5)]
        assert set(pauses[5:]) == {BACKOFF_MAX_S}


async def test_after_a_success_the_pauses_begin_small_again(clock: ManualClock, work: Work) -> None:
    work.fault = DependencyUnavailable("database")
    async with supervised(Chore("c", work, every_s=1), clock):
        await clock.advance(10)
        work.fault = None
        await clock.advance(10)
        work.fault = DependencyUnavailable("database")
        work.at_s.clear()
        await clock.advance(2)

        assert round(work.at_s[1] - work.at_s[0], 3) == BACKOFF_FIRST_S


async def test_an_absence_is_logged_when_it_begins_and_when_it_ends(clock: ManualClock, work: Work) -> None:
    work.fault = DependencyUnavailable("database")
    with capture_logs() as lines:
        async with supervised(Chore("c", work, every_s=1), clock):
            await clock.advance(10)
            work.fault = None
            await clock.advance(20)

    assert [(line["event"], line["log_level"]) for line in lines] == [
        ("chore_waits", "warning"),
        ("chore_recovered", "info"),
    ]


async def test_a_fault_of_our_own_is_logged_and_does_not_end_the_chore(clock: ManualClock, work: Work) -> None:
    work.fault = ZeroDivisionError()
    with capture_logs() as lines:
        async with supervised(Chore("c", work, every_s=1), clock):
            await clock.advance(0.1)
            work.fault = None
            await clock.advance(5)

            assert len(work.at_s) > 3
    assert (lines[0]["event"], lines[0]["chore"]) == ("chore_failed", "c")
    assert lines[-1]["event"] == "chore_recovered"


async def test_an_elected_chore_is_done_only_by_the_leader(clock: ManualClock, work: Work) -> None:
    election = FakeElection(leads=False)
    async with supervised(Chore("reaper", work, every_s=10, is_elected=True), clock, election):
        await clock.advance(10.5)
        assert work.at_s == []
        election.is_leader = True
        await clock.advance(12)
        assert work.at_s == [11, 21]
        election.is_leader = False
        await clock.advance(60)

        assert work.at_s == [11, 21]
        assert set(election.offices) == {"reaper"}


async def test_a_chore_that_is_not_elected_asks_nobody(clock: ManualClock, work: Work) -> None:
    election = FakeElection(leads=False)
    async with supervised(Chore("c", work, every_s=10), clock, election):
        await clock.advance(5)

        assert work.at_s == [0]
        assert election.offices == []


async def test_while_nobody_can_be_elected_an_elected_chore_waits_and_then_goes_on(
    clock: ManualClock, work: Work
) -> None:
    election = FakeElection()
    election.is_away = True
    async with supervised(Chore("c", work, every_s=10, is_elected=True), clock, election):
        await clock.advance(30)
        assert work.at_s == []
        election.is_away = False
        await clock.advance(BACKOFF_MAX_S)

        assert len(work.at_s) == 1


async def test_a_cancellation_that_was_not_meant_for_it_does_not_end_a_chore(clock: ManualClock) -> None:
    """T133: what a chore waits for may be cancelled by others a hundred times; the chore is a failure then, not over."""
    begun = 0

    async def work() -> None:
        nonlocal begun
        begun += 1
        if begun <= 100:
            raise asyncio.CancelledError

    with capture_logs() as lines:
        async with supervised(Chore("c", work, every_s=10), clock):
            await clock.advance(101 * BACKOFF_MAX_S)

            assert begun > 100
    assert [line["event"] for line in lines] == ["chore_failed", "chore_recovered"]
