"""The manual clock moves only by command and wakes sleepers in order."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from app.clock import Clock
from tests.kit.clock import START, ManualClock


async def test_sleepers_wake_in_the_order_of_their_deadlines_at_their_deadlines() -> None:
    clock = ManualClock()
    woken: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((name, (clock.now() - START).total_seconds()))

    async with asyncio.TaskGroup() as group:
        for name, seconds in (("c", 3), ("a", 1), ("b1", 2), ("b2", 2), ("late", 9)):
            group.create_task(sleeper(name, seconds))
        await clock.advance(5)
        assert woken == [("a", 1), ("b1", 2), ("b2", 2), ("c", 3)]
        assert clock.sleepers == 1
        await clock.advance(5)
    assert woken[-1] == ("late", 9.0)
    assert clock.now() == START + timedelta(seconds=10)


async def test_a_task_that_sleeps_again_is_woken_again_within_one_advance() -> None:
    clock = ManualClock()
    ticks: list[float] = []

    async def ticker() -> None:
        for _ in range(5):
            await clock.sleep(1)
            ticks.append(clock.monotonic())

    async with asyncio.TaskGroup() as group:
        group.create_task(ticker())
        await clock.advance(4.5)
        assert ticks == [1001, 1002, 1003, 1004]
        await clock.advance(0.5)
    assert ticks[-1] == 1005


async def test_nothing_wakes_before_its_time() -> None:
    clock = ManualClock()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(clock.sleep(2))
        await clock.until_asleep(1)
        await clock.advance(1.999)
        assert clock.sleepers == 1
        await clock.advance(0.001)
        assert clock.sleepers == 0
        await task


async def test_a_cancelled_sleeper_is_forgotten() -> None:
    clock = ManualClock()
    task = asyncio.create_task(clock.sleep(1))
    await clock.until_asleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert clock.sleepers == 0
    await clock.advance(2)
    assert clock.monotonic() == 1002


async def test_a_step_of_the_wall_clock_moves_no_sleeper() -> None:
    clock = ManualClock()
    clock.set_now(datetime(2027, 1, 1, tzinfo=UTC))
    assert clock.monotonic() == 1000
    await clock.advance_to(datetime(2027, 1, 1, 0, 0, 7, tzinfo=UTC))
    assert clock.monotonic() == 1007
    with pytest.raises(ValueError, match="aware"):
        clock.set_now(datetime(2027, 1, 1))  # noqa: DTZ001 - the point
    with pytest.raises(ValueError, match="backwards"):
        await clock.advance(-1)


async def test_until_asleep_gives_up() -> None:
    with pytest.raises(AssertionError, match="0 tasks sleep, not 1"):
        await ManualClock().until_asleep(1, turns=3)


def test_it_is_the_gateways_clock_by_shape() -> None:
    clock: Clock = ManualClock()
    assert clock.now().tzinfo is UTC
