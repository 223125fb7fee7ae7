"""A clock that moves only when a test says so. It satisfies the gateway's `Clock` protocol by its shape."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from datetime import UTC, datetime, timedelta

START = datetime(2026, 1, 15, 12, 0, tzinfo=UTC)
"""In the middle of a day, a week and a month: no period ends by accident."""

TURNS = 20
"""Turns of the event loop that woken tasks get before time moves on: enough for a few awaits and another sleep."""


class ManualClock:
    """`advance` wakes sleepers one after the other, in the order of their deadlines, at exactly their deadline.

    Sleepers with the same deadline wake in the order in which they fell asleep. A task that sleeps again within the span is
    woken again within it.
    """

    def __init__(self, start: datetime = START) -> None:
        if start.tzinfo is None:
            raise ValueError("the clock wants an aware time")
        self._now = start.astimezone(UTC)
        self._monotonic = 1_000.0
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._monotonic + seconds, next(self._order), woken))
        await woken

    @property
    def sleepers(self) -> int:
        """How many tasks sleep; cancelled ones do not count."""
        return sum(not woken.done() for _, _, woken in self._sleepers)

    async def advance(self, seconds: float) -> None:
        """Lets that much time pass, and lets everything that is due happen.

        Raises:
            ValueError: `seconds` is negative; the monotonic clock never runs backwards.
        """
        if seconds < 0:
            raise ValueError("time does not run backwards; use set_now for a step of the wall clock")
        # First let tasks that were just created fall asleep at the present time.
        await self.turns()
        target = self._monotonic + seconds
        while self._sleepers and self._sleepers[0][0] <= target:
            due, _, woken = heapq.heappop(self._sleepers)
            if woken.done():
                continue
            self._move_to(due)
            woken.set_result(None)
            await self.turns()
        self._move_to(target)

    async def advance_to(self, moment: datetime) -> None:
        """`advance` to a wall-clock moment."""
        await self.advance((moment - self._now).total_seconds())

    def set_now(self, moment: datetime) -> None:
        """Steps the wall clock, as an operator or NTP would; the monotonic clock and the sleepers do not notice."""
        if moment.tzinfo is None:
            raise ValueError("the clock wants an aware time")
        self._now = moment.astimezone(UTC)

    async def until_asleep(self, count: int, *, turns: int = 1_000) -> None:
        """Gives the loop turns until so many tasks sleep.

        Raises:
            AssertionError: they do not, after so many turns.
        """
        for _ in range(turns):
            if self.sleepers >= count:
                return
            await asyncio.sleep(0)
        raise AssertionError(f"{self.sleepers} tasks sleep, not {count}")

    async def turns(self, count: int = TURNS) -> None:
        """Gives the event loop turns without moving time."""
        for _ in range(count):
            await asyncio.sleep(0)

    def _move_to(self, monotonic: float) -> None:
        self._now += timedelta(seconds=monotonic - self._monotonic)
        self._monotonic = monotonic
