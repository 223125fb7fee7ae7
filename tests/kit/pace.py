"""So many calls a second, however long each of them takes: what a crowd does that knows nothing of the server's state."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine


async def paced(one: Callable[[int], Coroutine[None, None, None]], *, per_second: float, until: asyncio.Event) -> None:
    """Begin `one(0)`, `one(1)` … at their times until the event is set, and wait for those that are under way.

    Raises: what one of them raised, as a group; the others are cancelled.
    """
    loop = asyncio.get_running_loop()
    began, number = loop.time(), 0
    async with asyncio.TaskGroup() as group:
        while not until.is_set():
            group.create_task(one(number))
            number += 1
            await asyncio.sleep(max(0.0, began + number / per_second - loop.time()))
