"""Overload: a late process refuses a growing share, one that is in time again refuses nobody. T136."""

from __future__ import annotations

import asyncio

from app.services.overload import FIRST_SHARE, HOLD_S, LATE_S, MOST, PATIENCE_TICKS, Overload
from tests.kit.clock import ManualClock


def late(overload: Overload, ticks: int, by_s: float = LATE_S + 0.01) -> None:
    for _ in range(ticks):
        overload.ticked(by_s)


def test_a_stall_of_the_machine_and_a_burst_refuse_nobody() -> None:
    overload = Overload(ManualClock(), chance=lambda: 0.0, max_calls=10)
    overload.ticked(30.0)
    late(overload, PATIENCE_TICKS - 2)
    overload.ticked(0.0)
    late(overload, PATIENCE_TICKS - 1)

    assert not overload.refuses(0)


def test_a_process_that_stays_late_refuses_a_growing_share_but_never_all() -> None:
    overload = Overload(ManualClock(), chance=lambda: 0.5, max_calls=10)
    late(overload, PATIENCE_TICKS)
    assert overload.share == FIRST_SHARE
    assert not overload.refuses(0)

    late(overload, 5, HOLD_S + 0.001)
    assert overload.refuses(0), "more than half"
    late(overload, 100)

    assert overload.share == MOST < 1


def test_the_share_is_held_where_the_loop_is_nearly_in_time() -> None:
    overload = Overload(ManualClock(), chance=lambda: 0.5, max_calls=10)
    late(overload, PATIENCE_TICKS + 3)
    share = overload.share

    late(overload, 100, 0.02)

    assert overload.share == share


def test_once_it_is_in_time_again_nobody_is_refused() -> None:
    overload = Overload(ManualClock(), chance=lambda: 0.0, max_calls=10)
    late(overload, PATIENCE_TICKS + 100)
    late(overload, 50, 0.0)

    assert not overload.refuses(0)
    assert overload.share == 0


def test_more_calls_than_may_run_at_once_are_refused_however_quick_it_is() -> None:
    overload = Overload(ManualClock(), chance=lambda: 1.0, max_calls=10)

    assert not overload.refuses(9)
    assert overload.refuses(10)


async def test_lateness_is_measured_by_its_own_sleep() -> None:
    clock = ManualClock()
    overload = Overload(clock, chance=lambda: 0.0, max_calls=10)
    watching = asyncio.create_task(overload.watch())
    await clock.advance(5.0)
    watching.cancel()

    assert not overload.refuses(0)
