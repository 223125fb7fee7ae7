"""A thread that looks whether the event loop still answers, and writes down what this process has counted for its siblings to read.

It is a thread because what it watches for is the loop standing still: nothing inside the loop could tell of that.
"""

from __future__ import annotations

import asyncio
import threading
import time

from app.exposition import Siblings
from app.telemetry import LOOP_BLOCKED, LOOP_LAG, logger

EVERY_S = 0.5
PUBLISHED_EVERY_S = 1.0
BLOCKED_S = 1.0
"""From here on it is no longer a busy loop but a blocked one, and said in the log."""


class Watchdog:
    """Watches the loop that it is entered in."""

    def __init__(self, siblings: Siblings | None = None) -> None:
        self._siblings = siblings
        self._ended = threading.Event()
        self._asked_s: float | None = None
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    def __enter__(self) -> Watchdog:
        self._loop = asyncio.get_running_loop()
        LOOP_BLOCKED.follow(self.blocked_s)
        if self._siblings is not None:
            self._siblings.join()
            self._siblings.listen()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(timeout=2.0)
        if self._siblings is not None:
            self._siblings.close()

    def blocked_s(self) -> float:
        """For how long the loop has owed an answer by now; 0 for less than anybody need know."""
        asked_s = self._asked_s
        waited_s = time.monotonic() - asked_s if asked_s is not None else 0.0
        return waited_s if waited_s > EVERY_S else 0.0

    def _watch(self) -> None:
        is_told = False
        published_s = 0.0
        while not self._ended.is_set():
            is_asked = self._pause()
            if self._siblings is not None and (is_asked or time.monotonic() - published_s >= PUBLISHED_EVERY_S):
                self._siblings.publish()
                published_s = time.monotonic()
            if is_asked:
                continue
            if self._asked_s is None:
                self._asked_s = time.monotonic()
                is_told = False
                self._ask()
            elif not is_told and time.monotonic() - self._asked_s > BLOCKED_S:
                is_told = True
                logger.warning("event_loop_blocked", since_ms=round((time.monotonic() - self._asked_s) * 1000))

    def _pause(self) -> bool:
        """Until it is time to look again. True: not yet, another worker asks for what was counted."""
        if self._siblings is None:
            self._ended.wait(EVERY_S)
            return False
        return self._siblings.wait(EVERY_S)

    def _ask(self) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._answered)

    def _answered(self) -> None:
        if self._asked_s is not None:
            LOOP_LAG.observe(time.monotonic() - self._asked_s)
            self._asked_s = None
