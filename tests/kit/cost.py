"""What a piece of work costs by itself, on a machine that has other things to do."""

from __future__ import annotations

import time
from collections.abc import Callable


def least_cpu_s(work: Callable[[], object], *, times: int = 5) -> float:
    """CPU of this thread in the cheapest of several runs: none in which others had the core, or the garbage of other tests was gathered."""
    found = []
    for _ in range(times):
        began_s = time.thread_time()
        work()
        found.append(time.thread_time() - began_s)
    return min(found)
