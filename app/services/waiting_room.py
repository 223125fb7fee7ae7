"""Where calls wait while every endpoint that could take them is full: briefly, and only so many of them.

Only endpoints whose operator named a `max_concurrency` are waited for: these are small, and free again soon. An endpoint that has as
many calls as a whole process may send it does not answer, and who asks for it is better told so at once.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Final

from app.clock import Clock
from app.domain.catalog import Endpoint, Model

MAX_WAITING: Final = 64
"""Calls of one model that wait in one process."""
LOOK_AGAIN_S: Final = 0.25
"""How late a call learns that another process has made room."""
PATIENCE_S: Final = 2.0
"""What most clients take for a slow answer rather than for none."""


class WaitingRoom:
    def __init__(self, clock: Clock, *, max_waiting: int = MAX_WAITING, patience_s: float = PATIENCE_S) -> None:
        self._clock = clock
        self._max_waiting = max_waiting
        self._patience_s = patience_s
        self._waiting: defaultdict[str, deque[asyncio.Future[None]]] = defaultdict(deque)

    async def waited(self, model: Model, pick: Callable[[], Endpoint | None]) -> Endpoint | None:
        """Ask `pick` again whenever a call of the model has ended here, first come, first served; None when it was in vain."""
        queue = self._waiting[model.name]
        if len(queue) >= self._max_waiting or not any(each.max_concurrency for each in model.endpoints):
            return None
        deadline_s = self._clock.monotonic() + self._patience_s
        while (left_s := deadline_s - self._clock.monotonic()) > 0:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            queue.append(turn)
            try:
                async with asyncio.timeout(min(left_s, LOOK_AGAIN_S)):
                    await turn
            except TimeoutError:
                pass  # a call of another process may have ended
            finally:
                if turn in queue:
                    queue.remove(turn)
            endpoint = pick()
            if endpoint is not None:
                return endpoint
        return None

    def left(self, model: str) -> None:
        """A call of this model has ended: whoever waits longest may look."""
        queue = self._waiting.get(model)
        while queue:
            turn = queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
