"""The retry budget: how many attempts beyond the first a process may send, so that an outage is not multiplied.

Of any ten seconds at most `percent` of the calls' number is sent again, but `FLOOR` times in any case: where there is little traffic,
a share of it would be less than one.
"""

from __future__ import annotations

from collections import deque
from typing import Final

WINDOW_S: Final = 10.0
FLOOR: Final = 20
"""Two a second: too few to hurt anybody, enough for a handful of callers to be failed over."""
_SLOTS_PER_S: Final = 5


class RetryBudget:
    """Mutable; `now_s` is any clock that never runs backwards."""

    __slots__ = ("_calls", "_percent", "_retries", "_slots")

    def __init__(self, percent: int) -> None:
        self._percent = percent
        self._slots: deque[list[int]] = deque()
        """[number, calls, retries], the present one last."""
        self._calls = 0
        self._retries = 0

    def called(self, now_s: float) -> None:
        """A call sends its first attempt."""
        self._present(now_s)[1] += 1
        self._calls += 1

    def may_retry(self, now_s: float) -> bool:
        """Take one retry from the budget. False when it is spent."""
        slot = self._present(now_s)
        if self._retries >= max(FLOOR, self._calls * self._percent // 100):
            return False
        slot[2] += 1
        self._retries += 1
        return True

    def given_back(self, now_s: float) -> None:
        """The retry was not sent after all."""
        slot = self._present(now_s)
        if self._retries:
            slot[2] -= 1
            self._retries -= 1

    def counted(self, now_s: float) -> tuple[int, int]:
        """Calls and retries of the last ten seconds."""
        self._present(now_s)
        return self._calls, self._retries

    def _present(self, now_s: float) -> list[int]:
        number = int(now_s * _SLOTS_PER_S)
        slots = self._slots
        if slots and slots[-1][0] == number:
            return slots[-1]
        # One slot more than the window: a slot counts until all of it has left.
        first = number - int(WINDOW_S * _SLOTS_PER_S)
        while slots and slots[0][0] < first:
            _, calls, retries = slots.popleft()
            self._calls -= calls
            self._retries -= retries
        slot = [number, 0, 0]
        slots.append(slot)
        return slot
