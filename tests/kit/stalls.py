"""How long the machine itself stood still: a bound on what the gateway takes is no bound on who else uses the processor.

A thread sleeps five milliseconds at a time. What it oversleeps is time in which this process was ready and was not run: another
process had the core, or the machine as a whole was paused. A bound that is short beside such pauses is held against the time without
them. It forgives nothing that the gateway does by itself: while a gateway waits, this thread is woken in time.
"""

from __future__ import annotations

import asyncio
import threading
from bisect import bisect_right
from collections.abc import Callable
from time import monotonic, sleep

TICK_S = 0.005
"""Ordinary lateness of a wake-up is well below this; a pause that is not is counted whole."""


class StallWatch:
    """The pauses since it was made. A pause is written down when the watch runs again."""

    def __init__(self) -> None:
        self._ended_at: list[float] = []
        self._lasted_s: list[float] = []
        self._woken_at = monotonic()
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, name="stalls", daemon=True).start()

    def since(self, moment: float) -> float:
        """Seconds. A pause that began before `moment` (of `time.monotonic`) counts with what fell after it."""
        with self._lock:
            now = monotonic()
            first = bisect_right(self._ended_at, moment)
            written_s = sum(
                min(lasted_s, ended_at - moment)
                for ended_at, lasted_s in zip(self._ended_at[first:], self._lasted_s[first:], strict=True)
            )
            # After a pause of the whole machine whoever asks may run before the watch does: that pause counts as well.
            late_s = now - self._woken_at - TICK_S
            return written_s + (min(late_s, now - moment) if late_s > TICK_S else 0.0)

    def _watch(self) -> None:
        while True:
            sleep(TICK_S)
            with self._lock:
                slept_from, self._woken_at = self._woken_at, monotonic()
                late_s = self._woken_at - slept_from - TICK_S
                if late_s > TICK_S:
                    self._lasted_s.append(late_s)
                    self._ended_at.append(self._woken_at)


_watches: list[StallWatch] = []


def watch_stalls() -> None:
    """From now on, in this process."""
    if not _watches:
        _watches.append(StallWatch())


def stalled_s(since: float) -> float:
    """How long the machine stood still since `since` (of `time.monotonic`), in seconds."""
    watch_stalls()
    return _watches[0].since(since)


async def require_soon(happens: Callable[[], bool], *, within_s: float = 1.0) -> None:
    """It happens within that time, while others run; what the machine stood still is not counted."""
    began = monotonic()
    while not happens():
        assert monotonic() - began - stalled_s(began) < within_s, "it has not happened in time"
        await asyncio.sleep(0.005)


def require_close_to(taken_s: float, limit_s: float) -> None:
    """What has just ended took as long as its deadline says."""
    most_s = limit_s * 1.1 + 0.6 + stalled_s(monotonic() - taken_s)
    assert limit_s * 0.98 <= taken_s <= most_s, "±10 %, and something for a busy machine"
