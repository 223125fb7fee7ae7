"""Shadow traffic: a share of a model's calls goes to another model as well, whose answers are thrown away.

1. Whether a call has a shadow is decided by chance when it is admitted. The offer costs the caller a few microseconds: it is put into a
   short queue, and dropped (and counted) when that is full.
2. A few workers make shadow calls, each like any other call, from admission to its own record, on the house's account: no limit or
   budget of a user sees them, those of the shadow's model do.
3. Whatever comes of one is on its record and nowhere else. A shadow has no shadow.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Final

from app.clock import Clock
from app.dialects.base import Dialect
from app.domain.call import Meter
from app.domain.catalog import Catalog, Model
from app.domain.ids import RANDOM_BYTES, time_of, uuid7
from app.exceptions import AttemptFailed, GatewayError
from app.providers.base import Answer
from app.services import house_accounts
from app.telemetry import logger

WORKERS: Final = 8
"""Shadow calls at once in one process: a slow shadow loses calls, it does not gather them."""
MAX_QUEUED: Final = 16
MAX_BODY_BYTES: Final = 1 << 20
"""What waits is held in memory: larger requests have no shadow."""
PATIENCE_S: Final = 120.0
"""A shadow that has not answered by then has shown what it is worth."""

Answered = Callable[[Meter, Dialect, Catalog, Callable[[Answer], Awaitable[None]]], Awaitable[None]]
"""`Chat.answered`."""
Offer = tuple[Meter, str, Dialect, Catalog]
"""The call that is shadowed, the name of the model that is to answer it too, how to write it, and the catalog it was admitted with."""


class Shadows:
    def __init__(self, *, clock: Clock, chance: Callable[[], float]) -> None:
        self._clock = clock
        self._chance = chance
        self._queue: asyncio.Queue[Offer] = asyncio.Queue(MAX_QUEUED)
        self.dropped = 0

    def offer(self, model: Model, meter: Meter, dialect: Dialect, catalog: Catalog) -> None:
        """The call of this meter was admitted: shadow it, if its model says so and chance will have it. Waits for nothing."""
        shadow = model.shadow
        if shadow is None or meter.identity is house_accounts.SHADOWS or self._chance() * 100 >= shadow.percent:
            return
        if shadow.model not in catalog.models or meter.identity is house_accounts.CHECKS:
            return
        if len(meter.call.body) > MAX_BODY_BYTES:
            self.dropped += 1
            return
        try:
            self._queue.put_nowait((meter, shadow.model, dialect, catalog))
        except asyncio.QueueFull:
            self.dropped += 1

    async def run(self, answered: Answered) -> None:
        """Make shadow calls, for ever."""
        async with asyncio.TaskGroup() as workers:
            for _ in range(WORKERS):
                workers.create_task(self._work(answered))

    async def _work(self, answered: Answered) -> None:
        while True:
            shadowed, model, dialect, catalog = await self._queue.get()
            # A task of its own: a call that loses its lease is ended by cancelling its task, and this one has to go on.
            async with asyncio.TaskGroup() as one:
                one.create_task(self._made(answered, shadowed, model, dialect, catalog))

    async def _made(self, answered: Answered, shadowed: Meter, model: str, dialect: Dialect, catalog: Catalog) -> None:
        try:
            meter = self._meter(shadowed, model, dialect)
            async with asyncio.timeout(PATIENCE_S):
                await answered(meter, dialect, catalog, _read_to_the_end)
        except (GatewayError, AttemptFailed, TimeoutError):
            pass  # it is on the shadow's record, which is what it was made for
        except Exception:  # noqa: BLE001 - a shadow's fault must not end the others
            logger.exception("shadow_failed")

    def _meter(self, of: Meter, model: str, dialect: Dialect) -> Meter:
        # What is sent is the body: it has to name the other model too.
        body = dialect.upstream_body(of.call, upstream_model=model, max_tokens=None)
        request_id = uuid7(int(self._clock.now().timestamp() * 1000), os.urandom(RANDOM_BYTES))
        return Meter(
            request_id=request_id,
            client_request_id=of.request_id,
            identity=house_accounts.SHADOWS,
            call=dialect.read(body),
            created_at=time_of(request_id),
            started_s=self._clock.monotonic(),
        )


async def _read_to_the_end(answer: Answer) -> None:
    if answer.chunks is not None:
        async for _ in answer.chunks:
            pass
