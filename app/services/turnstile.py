"""Waiting for what other calls hold: woken when one of ours gives something back, and looking again now and then, because a call of
another process may have.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable

LOOK_AGAIN_S = 0.25
"""How late a call learns that another process's call has settled: a hundred waiting calls look 400 times a second."""


class Turnstiles:
    """One for each counter that somebody waits for."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, set[asyncio.Future[None]]] = defaultdict(set)

    async def wait(self, counter: str, *, at_most_s: float) -> None:
        """Return when something of this counter was given back here, or when it is time to look again."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting[counter]
        waiting.add(woken)
        try:
            async with asyncio.timeout(min(at_most_s, LOOK_AGAIN_S)):
                await woken
        except TimeoutError:
            pass
        finally:
            waiting.discard(woken)
            if not waiting:
                self._waiting.pop(counter, None)

    def given_back(self, counters: Iterable[str]) -> None:
        if not self._waiting:
            return
        for counter in counters:
            for woken in self._waiting.get(counter, ()):
                if not woken.done():
                    woken.set_result(None)
