"""Time as a port: the gateway reads it here, tests hold the other one."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

from app.telemetry import logger

RESOLUTION_MS = 2
"""The store tells whole milliseconds, and rounding takes another."""
WORTH_TELLING_MS = 1_000
"""Machines whose time is kept differ by less; more is for an operator to know."""


class Clock(Protocol):
    def now(self) -> datetime:
        """The wall clock, aware, in UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds that never run backwards; for durations and deadlines."""
        ...

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """This machine's, put right by the counter store's: processes whose machines disagree would be in different months at a month's turn,
    and expire keys at different moments. What follows from periods is decided in that store, so its clock is everybody's.
    """

    monotonic = staticmethod(time.monotonic)
    """Itself, with nothing around it: a call asks a dozen times."""

    def __init__(self) -> None:
        self._ahead_ms = 0
        """How much later it is than this machine says."""

    def now(self) -> datetime:
        if self._ahead_ms:
            return datetime.now(UTC) + timedelta(milliseconds=self._ahead_ms)
        return datetime.now(UTC)

    def now_ms(self) -> int:
        """Milliseconds since 1970."""
        return time.time_ns() // 1_000_000 + self._ahead_ms

    def told(self, store_ms: int, took_s: float) -> None:
        """The counter store said what time it is; the answer came just now, `took_s` after it was asked for.

        What could be the time the answer took is left alone, so that the clock does not waver.
        """
        took_ms = took_s * 1000
        ahead_ms = round(store_ms + took_ms / 2 - time.time_ns() / 1_000_000)
        if abs(ahead_ms - self._ahead_ms) <= took_ms / 2 + RESOLUTION_MS:
            return
        if abs(ahead_ms - self._ahead_ms) >= WORTH_TELLING_MS:
            logger.warning("clock_put_right", ahead_ms=ahead_ms)
        self._ahead_ms = ahead_ms

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
