"""Percentiles from counts: never further off than the bucket is wide."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from app.domain.histogram import BOUNDS_MS, BUCKETS, bucket_of, percentile_ms

TIMES_MS = st.lists(st.integers(0, BOUNDS_MS[-1]), min_size=1, max_size=200)


def counted(times_ms: list[int]) -> list[int]:
    counts = [0] * BUCKETS
    for ms in times_ms:
        counts[bucket_of(ms)] += 1
    return counts


@given(TIMES_MS, st.integers(1, 99))
def test_a_percentile_lies_in_the_bucket_of_the_true_one(times_ms: list[int], percent: int) -> None:
    true = sorted(times_ms)[math.ceil(len(times_ms) * percent / 100) - 1]
    told = percentile_ms(counted(times_ms), percent)
    assert told is not None
    at = bucket_of(true)
    assert (BOUNDS_MS[at - 1] if at else 0) <= told <= BOUNDS_MS[at]


@given(TIMES_MS, TIMES_MS)
def test_counts_of_two_hours_add_up_to_those_of_both(one: list[int], other: list[int]) -> None:
    both = [a + b for a, b in zip(counted(one), counted(other), strict=True)]
    assert percentile_ms(both, 95) == percentile_ms(counted(one + other), 95)


def test_of_nothing_there_is_no_percentile_and_what_is_longer_than_all_bounds_is_told_as_the_last() -> None:
    assert percentile_ms([0] * BUCKETS, 50) is None
    assert percentile_ms(counted([10**9]), 50) == BOUNDS_MS[-1]
