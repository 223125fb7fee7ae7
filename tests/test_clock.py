"""The wall clock: this machine's, as the counter store puts it right."""

from __future__ import annotations

import time

import pytest

from app.clock import SystemClock

DAYS_MS = 40 * 24 * 3600 * 1000


def machine_ms() -> float:
    return time.time_ns() / 1_000_000


def error_ms(clock: SystemClock) -> float:
    """By how much it differs from this machine's, as far as one can say while time goes on."""
    before = machine_ms()
    said = clock.now_ms()
    after = machine_ms()
    return said - (before + after) / 2


@pytest.mark.parametrize("ahead_ms", [DAYS_MS, -DAYS_MS, 5_000, -5_000])
def test_a_clock_that_is_apart_from_the_stores_is_put_right_and_stays_so(ahead_ms: int) -> None:
    clock = SystemClock()
    for _ in range(3):
        clock.told(round(machine_ms()) + ahead_ms, took_s=0.0)
        # What a machine that stands still in between may add.
        assert abs(error_ms(clock) - ahead_ms) < 2_000
        assert abs(clock.now().timestamp() * 1000 - machine_ms() - ahead_ms) < 2_000


def test_a_difference_that_may_be_the_time_of_the_answer_is_left_alone() -> None:
    clock = SystemClock()
    clock.told(round(machine_ms()), took_s=60.0)
    clock.told(round(machine_ms()) - 25_000, took_s=60.0)
    before = machine_ms()
    assert before - 1 <= clock.now_ms() <= machine_ms()


def test_a_clock_that_was_put_right_is_put_back_when_the_machine_is_right_again() -> None:
    clock = SystemClock()
    clock.told(round(machine_ms()) + DAYS_MS, took_s=0.0)
    clock.told(round(machine_ms()), took_s=0.0)
    assert abs(error_ms(clock)) < 2_000
