"""Overload: a process that stays late refuses as much as makes it late, one that is in time again refuses nobody. T136."""

from __future__ import annotations

import asyncio

import pytest

from app.services.overload import (
    CALM_S,
    EASE_S,
    FEW_CALLS,
    FULL_S,
    LATE_S,
    MANY_CALLS,
    MOST,
    PATIENCE_S,
    STALL_S,
    TICK_S,
    Overload,
)
from tests.kit.clock import ManualClock


def overload(
    *, chance: float = 0.0, inside: int = MANY_CALLS, max_calls: int = 1000, clock: ManualClock | None = None
) -> Overload:
    judged = Overload(clock or ManualClock(), chance=lambda: chance, max_calls=max_calls, max_connections=1000)
    judged.inside = inside
    return judged


def late(judged: Overload, for_s: float, by_s: float = LATE_S + 0.01) -> None:
    passed_s = 0.0
    while passed_s < for_s:
        judged.ticked(TICK_S, by_s)
        passed_s += TICK_S + by_s


def refusing(*, chance: float = 0.0, inside: int = MANY_CALLS, clock: ManualClock | None = None) -> Overload:
    judged = overload(chance=chance, inside=inside, clock=clock)
    late(judged, PATIENCE_S)
    assert judged.is_refusing
    return judged


def test_a_stall_of_the_machine_and_a_burst_refuse_nobody() -> None:
    judged = overload()
    judged.ticked(TICK_S, 30.0)
    late(judged, PATIENCE_S - STALL_S - (TICK_S + LATE_S))
    judged.ticked(TICK_S, 0.0)
    late(judged, PATIENCE_S - 3 * (TICK_S + LATE_S))

    assert not judged.refuses()


def test_a_process_that_stays_late_refuses_nearly_all_but_never_all() -> None:
    assert refusing(chance=MOST - 0.001).refuses()
    assert not refusing(chance=MOST).refuses()


@pytest.mark.parametrize(
    ("late_s", "share"), [(0.0, 0.0), (EASE_S, 0.0), ((EASE_S + FULL_S) / 2, 0.5), (FULL_S, MOST), (9.0, MOST)]
)
def test_the_share_that_is_refused_follows_the_lateness(late_s: float, share: float) -> None:
    judged = refusing()

    judged.ticked(0.005, late_s)

    assert judged.share == pytest.approx(share)


async def test_a_turn_that_is_late_by_now_refuses_before_it_is_over() -> None:
    clock = ManualClock()
    judged = refusing(clock=clock)
    judged.ticked(0.005, 0.0)
    assert judged.share == 0.0

    await clock.advance(TICK_S + FULL_S)

    assert judged.share == MOST


def test_with_few_calls_inside_it_is_not_calls_that_make_it_late() -> None:
    judged = overload(inside=MANY_CALLS - 1)
    late(judged, 5 * PATIENCE_S)
    assert not judged.is_refusing

    judged = refusing()
    judged.inside = FEW_CALLS - 1
    assert not judged.refuses()


def test_it_is_over_once_the_loop_was_in_time_for_a_second_and_nobody_was_refused() -> None:
    judged = refusing()
    for _ in range(100):  # it is in time because it refuses
        judged.ticked(0.01, EASE_S + 0.001)
        assert judged.refuses()
    judged.ticked(0.01, 0.0)

    judged.ticked(CALM_S / 2, 0.0)
    was_refusing = judged.is_refusing
    judged.ticked(CALM_S / 2 + 0.001, 0.0)

    assert (was_refusing, judged.is_refusing) == (True, False)
    assert not judged.refuses()


def test_more_calls_than_may_run_at_once_are_refused_however_quick_it_is() -> None:
    assert not overload(inside=9, max_calls=10).refuses()
    assert overload(inside=10, max_calls=10).refuses()


def test_those_refused_at_once_are_not_told_to_come_back_at_once() -> None:
    assert overload(chance=0.0).retry_after_s() == 1.0
    assert overload(chance=1.0).retry_after_s() == 3.0


async def test_lateness_is_measured_by_its_own_sleep() -> None:
    clock = ManualClock()
    judged = overload(clock=clock)
    watching = asyncio.create_task(judged.watch())
    await clock.advance(5.0)
    watching.cancel()

    assert not judged.refuses()
