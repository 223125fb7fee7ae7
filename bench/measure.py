"""How a cost and its floor are measured: in turns, several times, the median of each."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from statistics import median

ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Ratio:
    """One promise. Costs are in microseconds each: of CPU of this process, or of waiting where others do the work."""

    promise: str
    cost_us: float
    floor: str
    """What the floor is, in words."""
    floor_us: float

    @property
    def value(self) -> float:
        return self.cost_us / self.floor_us

    def __str__(self) -> str:
        return (
            f"{self.promise:<58} {self.cost_us:10.2f} µs   {self.value:7.1f} x   {self.floor} ({self.floor_us:.2f} µs)"
        )


Work = Callable[[], Awaitable[int]]
"""Does it, so and so often; returns how often."""


async def in_turns(*works: Work, clock: Callable[[], float] = time.process_time) -> Sequence[float]:
    """Microseconds each, by the median of several rounds in which each has its turn."""
    taken: list[list[float]] = [[] for _ in works]
    for work in works:
        await work()  # warm: caches, connections, plans
    for _ in range(ROUNDS):
        for work, times in zip(works, taken, strict=True):
            began = clock()
            count = await work()
            times.append((clock() - began) / count * 1e6)
    return [median(times) for times in taken]
