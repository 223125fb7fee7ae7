"""Waiting for room: in the order of arrival within a key, in turns between keys, never in vain without being told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from app.clock import SystemClock
from app.domain.limits import Claim, ClaimState, Limit, LimitKind, Scope
from app.exceptions import BudgetExceeded
from app.services.lines import Lines
from app.services.overflow import MAX_QUEUED_PER_KEY, Holder, OverflowQueues
from app.services.turnstile import Turnstiles
from app.storage.ports import LimitRefused
from tests.kit.clock import ManualClock

MODEL: Holder = (Scope.MODEL, "m")


class Room:
    """So many calls at once, or so many in a window, of one holder; and the queues before it."""

    def __init__(self, free: int, *, kind: LimitKind = LimitKind.CONCURRENCY, holder: Holder = MODEL) -> None:
        self.clock = ManualClock()
        self.turnstiles = Turnstiles()
        self.queues = OverflowQueues(clock=self.clock, turnstiles=self.turnstiles, room_in_ms=self.room_in_ms)
        self.claim = Claim(*holder, Limit(kind, 1, 0 if kind is LimitKind.CONCURRENCY else 10), 1)
        self.free = free
        self.free_at_s = 0.0
        self.admitted: list[str] = []
        self.asked: list[str] = []
        self.fails_for: str | None = None

    def asking(self, name: str) -> Callable[[], Awaitable[LimitRefused | None]]:
        async def ask() -> LimitRefused | None:
            self.asked.append(name)
            await asyncio.sleep(0)
            if name == self.fails_for:
                raise BudgetExceeded(scope=Scope.KEY, period="total", resets_at=None)
            if not self.free:
                return self.refusal(max(0.0, self.free_at_s - self.clock.monotonic()))
            self.free -= 1
            self.admitted.append(name)
            return None

        return ask

    def refusal(self, retry_s: float) -> LimitRefused:
        retry_ms = round(retry_s * 1000)
        return LimitRefused(ClaimState(self.claim, 0, retry_ms), retry_ms)

    async def room_in_ms(self, claim: Claim, amount: int) -> int:
        """The window is that of a limit of 1: each call more has to wait for another whole window."""
        await asyncio.sleep(0)
        first_s = max(0.0, self.free_at_s - self.clock.monotonic())
        return round((first_s + (amount - 1) * claim.limit.window_s) * 1000)

    def call(self, key: str, name: str, *, max_wait_s: float = 60.0) -> asyncio.Task[LimitRefused | None]:
        waiting = self.queues.admitted(key, [(Scope.KEY, key), MODEL], max_wait_s=max_wait_s, ask=self.asking(name))
        return asyncio.create_task(waiting)

    async def calls(self, *names: str) -> list[asyncio.Task[LimitRefused | None]]:
        """One after the other, of the key that is the name's first letter."""
        tasks = []
        for name in names:
            tasks.append(self.call(name[0], name))
            await self.clock.turns()
        return tasks

    async def leave(self) -> None:
        """A call ends: there is room for one."""
        self.free += 1
        self.turnstiles.given_back([self.claim.counter])
        await self.clock.turns()

    @property
    def is_forgotten(self) -> bool:
        return not self.queues._queues and not self.queues._heads and self.queues._waiting == 0


@asynccontextmanager
async def nobody_left(room: Room) -> AsyncIterator[None]:
    yield
    assert room.is_forgotten


async def test_calls_of_a_key_are_served_in_the_order_of_their_arrival() -> None:
    room = Room(0)
    async with nobody_left(room):
        tasks = await room.calls("a1", "a2", "a3")
        room.free += 1  # there is room, and nobody was told yet
        tasks += await room.calls("a4")
        assert room.admitted == [], "a fresh call does not take what the others wait for"
        for _ in range(3):
            await room.leave()
        await asyncio.gather(*tasks)
    assert room.admitted == ["a1", "a2", "a3", "a4"]


async def test_each_key_has_its_turn_however_many_calls_of_another_wait() -> None:
    room = Room(0)
    async with nobody_left(room):
        tasks = await room.calls("a1", "a2", "a3", "a4", "b1", "c1", "b2")
        for _ in tasks:
            await room.leave()
        await asyncio.gather(*tasks)
    assert room.admitted == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


async def test_a_fresh_call_of_another_key_lines_up_behind_those_that_wait_for_the_same_holder() -> None:
    room = Room(0)
    async with nobody_left(room):
        tasks = await room.calls("a1")
        room.free += 1
        tasks += await room.calls("b1")
        assert room.asked == ["a1"], "it would have been before a1"
        await room.leave()
        await asyncio.gather(*tasks)
    assert room.admitted == ["a1", "b1"]


async def test_calls_that_do_not_meet_the_full_limit_are_not_held_up() -> None:
    room = Room(0)
    (waiting,) = await room.calls("a1")

    async def ask() -> None:
        room.admitted.append("elsewhere")

    others = [(Scope.KEY, "a"), (Scope.MODEL, "another")]
    assert await room.queues.admitted("a", others, max_wait_s=1.0, ask=ask) is None
    await room.leave()
    assert await waiting is None
    assert room.admitted == ["elsewhere", "a1"]


async def test_a_hopeless_wait_is_refused_at_once_with_the_time_those_before_it_take_too() -> None:
    room = Room(0, kind=LimitKind.REQUESTS)
    room.free_at_s = room.clock.monotonic() + 5.0
    async with nobody_left(room):
        patient = [room.call("a", "a1"), room.call("a", "a2")]
        await room.clock.turns()
        asked = len(room.asked)
        refused = await room.call("a", "a3", max_wait_s=24.0)
        assert refused is not None
        assert refused.retry_after_ms == 25_000, "5 s until there is room, and two windows for the two before it"
        assert len(room.asked) == asked, "nobody had to be asked"
        for each in patient:
            each.cancel()
        await asyncio.gather(*patient, return_exceptions=True)


async def test_at_the_end_of_its_patience_a_call_is_told_how_long_it_takes_from_then_on() -> None:
    """What it was told when it came was true then."""
    room = Room(0, kind=LimitKind.REQUESTS)
    room.free_at_s = room.clock.monotonic() + 5.0
    async with nobody_left(room):
        first, second = room.call("a", "a1", max_wait_s=8.0), room.call("a", "a2", max_wait_s=16.0)
        await room.clock.turns()
        await room.clock.advance(4.9)
        room.free_at_s += 30.0  # another process was quicker
        await room.clock.advance(0.2)
        told = [refused.retry_after_ms for refused in await asyncio.gather(first, second) if refused is not None]
    assert told == [30_000, 30_000]


async def test_a_wait_in_line_ends_with_the_patience() -> None:
    room = Room(0, kind=LimitKind.TOKENS)
    queues = OverflowQueues(clock=SystemClock(), turnstiles=room.turnstiles, room_in_ms=room.room_in_ms)
    asked: list[str] = []

    def asking(name: str) -> Callable[[], Awaitable[LimitRefused | None]]:
        async def ask() -> LimitRefused | None:
            asked.append(name)
            return room.refusal(0.05)

        return ask

    room.claim = Claim(*MODEL, Limit(LimitKind.TOKENS, 100, 1), 1)
    first = asyncio.create_task(queues.admitted("a", [MODEL], max_wait_s=2.8, ask=asking("first")))
    await asyncio.sleep(0)
    second = await queues.admitted("a", [MODEL], max_wait_s=0.3, ask=asking("second"))
    assert second is not None
    assert second.retry_after_ms <= 60, "what is left of the wait of the first, and its own"
    assert "second" not in asked
    refused = await first
    assert refused is not None
    assert not queues._queues
    assert not queues._heads


async def test_a_queue_is_bounded_and_who_finds_no_place_is_told_at_once() -> None:
    room = Room(0)
    async with nobody_left(room):
        waiting = [room.call("a", f"a{n}") for n in range(MAX_QUEUED_PER_KEY)]
        await room.clock.turns()
        refused = await room.call("a", "too many")
        other = room.call("b", "b1")
        await room.clock.turns()
        assert refused is not None
        assert not other.done(), "another key has places of its own"
        for each in (*waiting, other):
            each.cancel()
        await asyncio.gather(*waiting, other, return_exceptions=True)


@pytest.mark.parametrize("who", [0, 1, 2], ids=["the first", "one in the middle", "the last"])
async def test_who_leaves_the_queue_leaves_no_trace_and_the_next_has_its_turn(who: int) -> None:
    room = Room(0)
    async with nobody_left(room):
        tasks = await room.calls("a1", "a2", "a3")
        tasks[who].cancel()
        await room.clock.turns()
        for _ in range(2):
            await room.leave()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert room.admitted == [name for name in ("a1", "a2", "a3") if name != f"a{who + 1}"]


async def test_a_call_that_is_refused_for_another_reason_makes_way() -> None:
    room = Room(0)
    async with nobody_left(room):
        tasks = await room.calls("a1", "a2")
        room.fails_for = "a1"
        await room.leave()
        with pytest.raises(BudgetExceeded):
            await tasks[0]
        assert await tasks[1] is None


async def test_a_call_that_another_holders_limit_refuses_meanwhile_waits_for_that_one() -> None:
    room = Room(0)
    mine = Claim(Scope.KEY, "a", Limit(LimitKind.CONCURRENCY, 1, 0), 1)
    answers: list[LimitRefused | None] = [
        room.refusal(1.0),
        LimitRefused(ClaimState(mine, 0, 1000), 1000),
        None,
    ]

    async def ask() -> LimitRefused | None:
        return answers.pop(0)

    async with nobody_left(room):
        waiting = asyncio.create_task(room.queues.admitted("a", [(Scope.KEY, "a"), MODEL], max_wait_s=9.0, ask=ask))
        await room.clock.turns()
        await room.leave()
        assert len(answers) == 1
        room.turnstiles.given_back([mine.counter])
        assert await waiting is None


async def test_a_turn_that_was_given_to_one_who_leaves_goes_to_the_next() -> None:
    lines: Lines[str, None] = Lines()
    with lines.joined("line", None), lines.joined("line", None) as second, lines.joined("line", None) as third:
        assert (second.ahead, third.ahead, lines.length("line")) == (1, 2, 3)
        assert not second.turn.done()
    assert not lines
    with lines.joined("line", None) as first:
        with lines.joined("line", None) as second:
            pass
        assert first.turn.done()
    assert not lines
