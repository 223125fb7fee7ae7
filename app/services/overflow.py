"""What happens to a call that a limit refuses: nothing more (`reject`), a place in its key's queue (`queue`), or another model.

A queue belongs to one key, so that no key waits behind another's calls. Its head alone looks for room; the others stand behind it in the
order in which they came. Whoever cannot be served within his patience is told so at once, with the time that it would take.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from app.clock import Clock
from app.domain.limits import LimitKind
from app.services.turnstile import Turnstiles
from app.storage.ports import LimitRefused

MAX_QUEUED_PER_KEY = 100
MAX_QUEUED = 2_000
"""Calls that wait in this process at most; each holds its client's connection and its body."""


@dataclass(slots=True)
class _Queue:
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0


class OverflowQueues:
    def __init__(self, *, clock: Clock, turnstiles: Turnstiles) -> None:
        self._clock = clock
        self._turnstiles = turnstiles
        self._queues: dict[str, _Queue] = {}
        self._waiting = 0

    async def admitted_later(
        self,
        key_id: str,
        refused: LimitRefused,
        *,
        max_wait_s: float,
        try_again: Callable[[], Awaitable[LimitRefused | None]],
    ) -> LimitRefused | None:
        """Wait for room; `try_again` says whether there was (None). Returns the refusal that stands when the wait is hopeless or over."""
        queue = self._queues.setdefault(key_id, _Queue())
        expected_s = refused.retry_after_ms / 1000 + queue.waiting * _spacing_s(refused)
        if expected_s > max_wait_s or queue.waiting >= MAX_QUEUED_PER_KEY or self._waiting >= MAX_QUEUED:
            return LimitRefused(refused.state, max(refused.retry_after_ms, round(expected_s * 1000)))
        queue.waiting += 1
        self._waiting += 1
        try:
            return await self._in_turn(queue, refused, self._clock.monotonic() + max_wait_s, try_again)
        finally:
            queue.waiting -= 1
            self._waiting -= 1
            if queue.waiting == 0:
                self._queues.pop(key_id, None)

    async def _in_turn(
        self,
        queue: _Queue,
        refused: LimitRefused,
        deadline_s: float,
        try_again: Callable[[], Awaitable[LimitRefused | None]],
    ) -> LimitRefused | None:
        try:
            async with asyncio.timeout(deadline_s - self._clock.monotonic()):
                await queue.turn.acquire()
        except TimeoutError:
            return refused
        try:
            latest: LimitRefused | None = refused
            while latest is not None:
                left_s = deadline_s - self._clock.monotonic()
                if left_s <= 0 or (latest.retry_after_ms / 1000 > left_s and not _is_unforeseeable(latest)):
                    return latest
                await self._until_worth_trying(latest, left_s)
                latest = await try_again()
            return None
        finally:
            queue.turn.release()

    async def _until_worth_trying(self, refused: LimitRefused, left_s: float) -> None:
        if _is_unforeseeable(refused):
            await self._turnstiles.wait(refused.state.claim.counter, at_most_s=left_s)
        else:
            await self._clock.sleep(min(left_s, refused.retry_after_ms / 1000))


def _is_unforeseeable(refused: LimitRefused) -> bool:
    """A slot is free when a call ends, and nobody knows when that is; a window says exactly when it will have room."""
    return refused.state.claim.limit.kind is LimitKind.CONCURRENCY


def _spacing_s(refused: LimitRefused) -> float:
    """How far apart a full window lets calls through, about."""
    claim = refused.state.claim
    if _is_unforeseeable(refused) or claim.limit.limit <= 0:
        return 0.0
    return claim.limit.window_s * claim.amount / claim.limit.limit
