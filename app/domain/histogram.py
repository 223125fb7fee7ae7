"""Latencies as counts in fixed buckets: what adds up over hours and endpoints, and from which percentiles can be told.

The buckets grow by about half, so a percentile is off by a fifth of itself at the most; a mean of percentiles would be off by anything.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

BOUNDS_MS: Final = (
    *(10, 20, 35, 50, 75, 100, 150, 200, 300, 500, 750, 1_000, 1_500, 2_000, 3_000, 5_000, 7_500),
    *(10_000, 15_000, 20_000, 30_000, 60_000, 120_000),
)
"""Upper ends, included. What took longer is in one bucket more, at the end."""
BUCKETS: Final = len(BOUNDS_MS) + 1


def bucket_of(ms: int) -> int:
    return bisect_left(BOUNDS_MS, ms)


def percentile_ms(counts: Sequence[int], percent: int) -> int | None:
    """Between the bounds of its bucket, in proportion. None when nothing was counted; the last bucket answers its lower end."""
    total = sum(counts)
    if not total:
        return None
    rank, seen = total * percent / 100, 0
    for position, count in enumerate(counts):
        if count and seen + count >= rank:
            if position == len(BOUNDS_MS):
                break
            low = BOUNDS_MS[position - 1] if position else 0
            return round(low + (BOUNDS_MS[position] - low) * (rank - seen) / count)
        seen += count
    return BOUNDS_MS[-1]
