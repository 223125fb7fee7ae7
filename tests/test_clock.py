"""The wall clock: this machine's, as the counter store puts it right."""

from __future__ import annotations

import time

import pytest

from app.clock import RESOLUTION_MS, SystemClock

DAYS_MS = 40 * 24 * 3600 * 1000
SLACK_MS = 2 * RESOLUTION_MS
"""Rounding, and what is left alone."""


def machine_ms() -> float:
    return time.time_ns() / 1_000_000


def told_apart(clock: SystemClock, ahead_ms: int) -> None:
    """The store says that it is so much later, and the clock says so from then on; however long this machine stands still in between."""
    before = machine_ms()
    clock.told(round(before) + ahead_ms, took_s=0.0)
    said_ms, said = clock.now_ms(), clock.now().timestamp() * 1000
    after = machine_ms()
    for each in (said_ms, said):
        assert before - SLACK_MS <= each - ahead_ms <= after + SLACK_MS


@pytest.mark.parametrize("ahead_ms", [DAYS_MS, -DAYS_MS, 5_000, -5_000])
def test_a_clock_that_is_apart_from_the_stores_is_put_right_and_stays_so(ahead_ms: int) -> None:
    clock = SystemClock()
    for _ in range(3):
        told_apart(clock, ahead_ms)


def test_a_difference_that_may_be_the_time_of_the_answer_is_left_alone() -> None:
    clock = SystemClock()
    clock.told(round(machine_ms()), took_s=60.0)
    clock.told(round(machine_ms()) - 25_000, took_s=60.0)
    before = machine_ms()
    assert before - 1 <= clock.now_ms() <= machine_ms()


def test_a_clock_that_was_put_right_is_put_back_when_the_machine_is_right_again() -> None:
    clock = SystemClock()
    told_apart(clock, DAYS_MS)
    told_apart(clock, 0)
