"""Chores: what a process does besides answering calls. Small, supervised, and run by one elected process where one is enough."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from app.clock import Clock
from app.exceptions import DependencyUnavailable
from app.telemetry import CHORE_FAILURES, logger

BACKOFF_FIRST_S = 0.2
BACKOFF_MAX_S = 5.0


class Election(Protocol):
    async def leads(self, office: str) -> bool:
        """True while this process holds the office; asking again keeps it."""
        ...


@dataclass(frozen=True, slots=True)
class Chore:
    """`work` is done every `every_s`; with `every_s` 0 it paces itself. An elected chore is done by one process at a time."""

    name: str
    work: Callable[[], Awaitable[object]]
    every_s: float = 0.0
    is_elected: bool = False
    after: asyncio.Event | None = None
    """Not before this has happened (the tables exist, say)."""


async def supervise(chore: Chore, election: Election, clock: Clock) -> None:
    """Do a chore for ever. A failure is logged when it begins and when it ends, and the chore tried again with growing pauses."""
    if chore.after is not None:
        await chore.after.wait()
    backoff_s = BACKOFF_FIRST_S
    is_failing = False
    while True:
        try:
            if chore.is_elected and not await election.leads(chore.name):
                await clock.sleep(1.0)
                continue
            await chore.work()
            if is_failing:
                logger.info("chore_recovered", chore=chore.name)
            is_failing, backoff_s = False, BACKOFF_FIRST_S
            await clock.sleep(chore.every_s)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Nobody ends this chore: something that it waited for was cancelled. As an end it would pass unnoticed, for ever.
            if not is_failing:
                logger.exception("chore_failed", chore=chore.name)
        except DependencyUnavailable as error:
            if not is_failing:
                logger.warning("chore_waits", chore=chore.name, why=error.message)
        except Exception:  # noqa: BLE001 - the supervisor: one chore's fault must not end the process
            if not is_failing:
                logger.exception("chore_failed", chore=chore.name)
        else:
            continue
        is_failing = True
        CHORE_FAILURES.add(chore.name)
        await clock.sleep(backoff_s)
        backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)
