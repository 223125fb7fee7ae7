"""More work than this process can do: refuse some of it at once rather than all of it late.

1. A process is overloaded when its event loop is late: tasks that are ready wait for their turn. One late turn says little (a machine
   stalls, a burst arrives); so many in a row say that more comes in than goes out.
2. From then on a share of new calls is refused, before they are read. The share follows the lateness, and is held where the loop is nearly
   in time: then a refusal takes milliseconds, and what is let in is answered as fast as ever.
3. When less comes in, the loop is in time by itself and the share falls to nothing.
What runs goes on; health and administration are never refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from app.clock import Clock
from app.telemetry import logger

TICK_S: Final = 0.05
LATE_S: Final = 0.2
"""A turn that comes later than this is late: two of them still leave time to answer a health check."""
PATIENCE_TICKS: Final = 10
"""Late turns in a row before anything is refused: two and a half seconds of them."""
FIRST_SHARE: Final = 0.3
HOLD_S: Final = 0.03
"""Once some are refused, the loop is kept about this late: later, and more are refused …"""
EASE_S: Final = 0.015
"""… sooner, and fewer are."""
MORE: Final = 0.05
FEWER: Final = 0.02
"""Down more slowly than up, so that it does not swing."""
MOST: Final = 0.95
"""Some are always let in, or nobody would notice that it is over."""


class Overload:
    def __init__(self, clock: Clock, *, chance: Callable[[], float], max_calls: int) -> None:
        self._clock = clock
        self._chance = chance
        self._max_calls = max_calls
        self._late_ticks = 0
        self.share = 0.0
        """Of new calls, how many are refused."""
        self.refused = 0

    def refuses(self, running_calls: int) -> bool:
        """Whether the next call is to be refused."""
        if running_calls < self._max_calls and (not self.share or self._chance() >= self.share):
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
        if self.share:
            if late_s > HOLD_S:
                self.share = min(MOST, self.share + MORE)
            elif late_s < EASE_S:
                self.share = max(0.0, round(self.share - FEWER, 6))
                if not self.share:
                    logger.warning("overload_over", refused=self.refused)
            return
        self._late_ticks = self._late_ticks + 1 if late_s > LATE_S else 0
        if self._late_ticks >= PATIENCE_TICKS:
            self.share, self._late_ticks = FIRST_SHARE, 0
            logger.warning("overloaded", late_ms=round(late_s * 1000))
