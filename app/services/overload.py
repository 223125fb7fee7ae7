"""More work than this process can do: refuse some of it at once rather than all of it late.

1. A process is overloaded when its event loop is late: whatever arrives waits for its turn before anybody looks at it. One late turn
   says little (a machine stalls, a burst arrives); nothing but late turns for a third of a second say that more comes in than goes out.
2. From then on the share of new calls that is refused follows the lateness of this very turn: none while the loop is nearly in time,
   nearly all once it is late again. So the loop always has something to do and never much: what is let in is answered as fast as ever,
   and a refusal takes milliseconds.
3. When less comes in, the loop is in time by itself and nobody is refused; after a second of that it is over.

The loop is judged, not the calls: a thousand that wait for their upstreams are no load, and fifty that carry books are one. What runs
goes on; health and administration are never refused. `middleware/early_refusal.py` refuses for a twentieth of what serving costs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from app.clock import Clock
from app.telemetry import logger

TICK_S: Final = 0.05
QUICK_TICK_S: Final = 0.005
"""While some are refused: the share must follow what it causes, and a process that refuses does not idle."""
LATE_S: Final = 0.025
"""A turn later than this is late. A call takes some ten turns, so one that finds this waits a quarter of a second beside its upstream's
time; it takes a thousand calls at work at once."""
MANY_CALLS: Final = 256
"""With fewer inside a late loop has another cause, a machine that is wanted elsewhere for one; nothing is refused because of that."""
PATIENCE_S: Final = 0.35
"""So much time of late turns, with none in time between them, before anything is refused."""
STALL_S: Final = 0.25
"""No turn counts for more: a machine that slept for a minute was not overloaded for a minute."""
EASE_S: Final = 0.002
FULL_S: Final = 0.008
"""Once some are refused: later than the first, and some are; later than the second, and nearly all are. With three times the load that
it can carry a refusal then takes 6 ms at the median and a call 50 to 60, which is less than the tenth of a second after which
`routers/streaming.py` begins to watch it at some cost."""
MOST: Final = 0.98
CALM_S: Final = 1.0
"""So long nobody was refused, and it is over."""
FEW_CALLS: Final = 96
"""Once some are refused: so many are let in whatever the loop says, for a loop that ran dry serves nobody."""
RETRY_S: Final = (1.0, 3.0)
"""When to come back: between these, or all that were refused at once would come back at once."""


class Overload:
    """Asked before every call. `is_refusing` is read with every piece that arrives, so it is plain."""

    def __init__(self, clock: Clock, *, chance: Callable[[], float], max_calls: int, max_connections: int) -> None:
        self._clock = clock
        self._chance = chance
        self._max_calls = max_calls
        self.max_connections = max_connections
        self._due_s = clock.monotonic() + TICK_S
        self._late_s = 0.0
        self._late_for_s = 0.0
        self._calm_for_s = 0.0
        self._refused_before = 0
        self.is_refusing = False
        self.refused = 0
        self.inside = 0
        """Calls that were let in and are not answered yet; whoever lets them in counts them."""

    def refuses(self) -> bool:
        """Whether the next call is to be refused. Ask once for each."""
        inside = self.inside
        if inside < self._max_calls and (not self.is_refusing or inside < FEW_CALLS or self._chance() >= self.share):
            return False
        self.refused += 1
        return True

    @property
    def share(self) -> float:
        """Of new calls, how many are refused: by how late the last turn was, or this one is by now."""
        late_s = max(self._late_s, self._clock.monotonic() - self._due_s)
        return min(MOST, max(0.0, (late_s - EASE_S) / (FULL_S - EASE_S))) if self.is_refusing else 0.0

    def retry_after_s(self) -> float:
        least, most = RETRY_S
        return least + (most - least) * self._chance()

    async def watch(self) -> None:
        """Measure how late this process is, for ever."""
        while True:
            tick_s = QUICK_TICK_S if self.is_refusing else TICK_S
            self._due_s = self._clock.monotonic() + tick_s
            await self._clock.sleep(tick_s)
            self.ticked(tick_s, self._clock.monotonic() - self._due_s)

    def ticked(self, tick_s: float, late_s: float) -> None:
        """A turn was due in `tick_s` and came so late."""
        self._late_s = late_s
        if self.is_refusing:
            self._look_whether_over(tick_s + late_s)
            return
        self._late_for_s = (
            self._late_for_s + min(tick_s + late_s, STALL_S) if late_s > LATE_S and self.inside >= MANY_CALLS else 0.0
        )
        if self._late_for_s >= PATIENCE_S:
            self.is_refusing, self._late_for_s, self._calm_for_s = True, 0.0, 0.0
            self.refused = self._refused_before = 0
            logger.warning("overloaded", late_ms=round(late_s * 1000), inside=self.inside)

    def _look_whether_over(self, passed_s: float) -> None:
        is_calm = self.refused == self._refused_before and self._late_s < LATE_S
        self._calm_for_s = self._calm_for_s + passed_s if is_calm else 0.0
        self._refused_before = self.refused
        if self._calm_for_s >= CALM_S:
            self.is_refusing = False
            logger.warning("overload_over", refused=self.refused)
