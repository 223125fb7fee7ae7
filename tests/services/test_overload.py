"""Overload: a late process refuses a growing share, one that is in time again refuses nobody. T136."""

from __future__ import annotations

from app.services.overload import LATE_S, MOST, PATIENCE_TICKS, Overload
from tests.kit.clock import ManualClock


def late(overload: Overload, ticks: int) -> None:
    for _ in range(ticks):
        overload.ticked(LATE_S + 0.01)


def test_a_stall_of_the_machine_refuses_nobody() -> None:
    overload = Overload(ManualClock(), chance=lambda: 0.0, max_calls=10)
    overload.ticked(30.0)
    late(overload, PATIENCE_TICKS - 2)
    overload.ticked(0.0)
    late(overload, PATIENCE_TICKS - 1)

    assert not overload.refuses(0)


def test_a_process_that_stays_late_refuses_a_growing_share_but_never_all() -> None:
    chance = 0.5
    overload = Overload(ManualClock(), chance=lambda: chance, max_calls=10)
    late(overload, PATIENCE_TICKS)
    assert not overload.refuses(0), "a tenth"
    late(overload, 5)
    assert overload.refuses(0), "more than half"
    late(overload, 100)

    chance = MOST

    assert not overload.refuses(0)


def test_once_it_is_in_time_again_nobody_is_refused() -> None:
    overload = Overload(ManualClock(), chance=lambda: 0.0, max_calls=10)
    late(overload, PATIENCE_TICKS + 20)
    for _ in range(10):
        overload.ticked(0.0)

    assert not overload.refuses(0)


def test_more_calls_than_may_run_at_once_are_refused_however_quick_it_is() -> None:
    overload = Overload(ManualClock(), chance=lambda: 1.0, max_calls=10)

    assert not overload.refuses(9)
    assert overload.refuses(10)


async def test_lateness_is_measured_by_its_own_sleep() -> None:
    import asyncio

    clock = ManualClock()
    overload = Overload(clock, chance=lambda: 0.0, max_calls=10)
    watching = asyncio.create_task(overload.watch())
    await clock.advance(5.0)
    watching.cancel()

    assert not overload.refuses(0)
