"""How long the machine itself stood still: a bound on what the gateway takes is no bound on who else uses the processor.

A thread sleeps five milliseconds at a time. What it oversleeps is time in which this process was ready and was not run: another
process had the core, or the machine as a whole was paused. A bound that is short beside such pauses is held against the time without
them. It forgives nothing that the gateway does by itself: while a gateway waits, this thread is woken in time.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from time import monotonic, sleep

TICK_S = 0.005
"""Ordinary lateness of a wake-up is well below this; a pause that is not is counted whole."""


class StallWatch:
    """The pauses since it was made. A pause is written down when it ends."""

    def __init__(self) -> None:
        self._ended_at: list[float] = []
        self._lasted_s: list[float] = []
        threading.Thread(target=self._watch, name="stalls", daemon=True).start()

    def since(self, moment: float) -> float:
        """Seconds. A pause that began before `moment` (of `time.monotonic`) counts with what fell after it."""
        first = bisect_right(self._ended_at, moment)
        return sum(
            min(lasted_s, ended_at - moment)
            for ended_at, lasted_s in zip(self._ended_at[first:], self._lasted_s[first:], strict=False)
        )

    def _watch(self) -> None:
        woken_at = monotonic()
        while True:
            sleep(TICK_S)
            slept_from, woken_at = woken_at, monotonic()
            late_s = woken_at - slept_from - TICK_S
            if late_s > TICK_S:
                self._lasted_s.append(late_s)  # first, for who looks in between: no end without its length
                self._ended_at.append(woken_at)


_watches: list[StallWatch] = []


def watch_stalls() -> None:
    """From now on, in this process."""
    if not _watches:
        _watches.append(StallWatch())


def stalled_s(since: float) -> float:
    """How long the machine stood still since `since` (of `time.monotonic`), in seconds."""
    watch_stalls()
    return _watches[0].since(since)


def require_close_to(taken_s: float, limit_s: float) -> None:
    """What has just ended took as long as its deadline says."""
    most_s = limit_s * 1.1 + 0.6 + stalled_s(monotonic() - taken_s)
    assert limit_s * 0.98 <= taken_s <= most_s, "±10 %, and something for a busy machine"
