"""More work than this process can do: refuse some of it at once rather than all of it late.

A process is overloaded when its event loop is late: tasks that are ready wait for their turn. One late turn says little (a machine
stalls); so many in a row say that more comes in than goes out. Then a growing share of new calls is refused, before their body is read,
until the loop is in time again. What runs goes on; health and administration are never refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from app.clock import Clock

TICK_S: Final = 0.05
LATE_S: Final = 0.15
"""A turn that comes later than this is late: five of them still make half a second, in which a health check has to be answered."""
PATIENCE_TICKS: Final = 8
"""Late turns in a row before anything is refused: more than a second of them."""
STEP: Final = 0.1
"""By how much the refused share changes at each turn."""
MOST: Final = 0.95
"""Some are always let in, or nobody would notice that it is over."""


class Overload:
    def __init__(self, clock: Clock, *, chance: Callable[[], float], max_calls: int) -> None:
        self._clock = clock
        self._chance = chance
        self._max_calls = max_calls
        self._late_ticks = 0
        self._share = 0.0
        self.refused = 0

    def refuses(self, running_calls: int) -> bool:
        """Whether the next call is to be refused."""
        if running_calls < self._max_calls and (not self._share or self._chance() >= self._share):
            return False
        self.refused += 1
        return True

    async def watch(self) -> None:
        """Measure how late this process is, for ever."""
        while True:
            began_s = self._clock.monotonic()
            await self._clock.sleep(TICK_S)
            self.ticked(self._clock.monotonic() - began_s - TICK_S)

    def ticked(self, late_s: float) -> None:
        """One turn came so late."""
        if late_s > LATE_S:
            self._late_ticks += 1
            if self._late_ticks >= PATIENCE_TICKS:
                self._share = min(MOST, self._share + STEP)
        else:
            self._late_ticks = 0
            self._share = max(0.0, self._share - STEP)
