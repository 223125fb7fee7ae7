"""Carries the schedule of faults out, and notes when what was broken.

One pair is kept apart. A record is in two places until it is in SQL: with the process that answered, and in the counter store. Either may
die alone; a proof that took both at once would prove only that what is nowhere is gone. So the counter store loses its memory only while no
process is dead or stopped and all that dead ones left behind is in SQL, and no process is killed or stopped right after.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import redis.asyncio

from app.torture.plan import LEASE_S, Event, Fault
from app.torture.processes import Gateway, TortureError
from app.torture.stage import Stage, now_s

DOWN_S: Final = 0.5
"""How long a killed gateway stays away before the next one takes its place."""
WARM_UP_S: Final = LEASE_S
"""After a store is back, processes get this long to notice before the next fault may hit the same store."""

REAPED_WITHIN_S: Final = 3.0
LEDGER: Final = "{ag}:ledger"
DRAINED_TRIES: Final = 300
VICTIM_TRIES: Final = 150
"""Tenths of a second to wait for a gateway that can be spared; later the fault is left out."""


class Chaos:
    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._stores = {Fault.POSTGRES: asyncio.Lock(), Fault.REDIS: asyncio.Lock()}
        self._witnesses = asyncio.Condition()
        self._witnesses_away = 0
        """Processes killed or stopped whose records may be in the counter store alone."""
        self._is_memory_away = False
        self.done: Counter[Fault] = Counter()
        self.running: Counter[str] = Counter()
        """What is broken at this moment, for the progress line."""
        self.timeline: list[tuple[float, float, str]] = []
        """From when to when (Unix seconds) what was broken, to see beside a violation."""
        self.undrained: list[int] = []
        """Gateways that did not end after SIGTERM and had to be killed."""
        self.redis_spans: list[tuple[float, float]] = []
        """From when to when (Unix seconds) the counters' memory was away or was lost."""

    async def carry_out(self, events: list[Event]) -> None:
        """Every event at its time; returns when all is whole again."""
        began = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            for event in events:
                await asyncio.sleep(max(0.0, began + event.at_s - asyncio.get_running_loop().time()))
                group.create_task(self._one(event))

    async def _one(self, event: Event) -> None:
        match event.fault:
            case Fault.KILL | Fault.PAUSE | Fault.DRAIN:
                await self._hit_gateway(event)
            case Fault.FLUSH | Fault.REDIS:
                await self._hit_redis(event)
            case Fault.POSTGRES:
                await self._hit_postgres(event)
            case Fault.UPSTREAM:
                await self._hit_upstream(event)
            case Fault.DISCONNECT:
                return  # the clients do that themselves

    async def _hit_gateway(self, event: Event) -> None:
        async with self._witness_away(event):
            gateway = await self._victim(event.target)
            if gateway is not None:
                async with gateway.lock:
                    await self._hit(gateway, event)

    async def _hit(self, gateway: Gateway, event: Event) -> None:
        async with self._noted(event):
            went_down_at = now_s()
            match event.fault:
                case Fault.PAUSE:
                    gateway.pause()
                    try:
                        await asyncio.sleep(event.length_s)
                    finally:
                        gateway.resume()
                        gateway.spans_down.append((went_down_at, now_s()))
                    return
                case Fault.KILL:
                    await gateway.kill()
                    await asyncio.sleep(DOWN_S)
                case _:
                    if not await gateway.drain():
                        await gateway.kill()
                        self.undrained.append(gateway.number)
            gateway.launch()
            try:
                await gateway.ready(self._stage.session)
            except TortureError:
                return  # it is found missing at the end
            finally:
                gateway.spans_down.append((went_down_at, now_s()))

    async def _hit_redis(self, event: Event) -> None:
        async with self._stores[Fault.REDIS], self._memory_away(event), self._noted(event):
            valkey, lost_at = self._stage.valkey, now_s()
            if event.variant == "FLUSHALL":
                client = redis.asyncio.Redis.from_url(valkey.url, socket_timeout=10)
                await client.flushall()
                await client.aclose()
            else:
                await asyncio.to_thread(valkey.kill)
                await asyncio.sleep(event.length_s)
                if event.fault is Fault.FLUSH:
                    valkey.erase()
                await asyncio.to_thread(valkey.start)
                self._stage.keeper.watch(valkey.pid)
            self.redis_spans.append((lost_at, now_s()))
            await asyncio.sleep(WARM_UP_S)

    async def _hit_postgres(self, event: Event) -> None:
        async with self._stores[Fault.POSTGRES], self._noted(event):
            postgres = self._stage.postgres
            await asyncio.to_thread(postgres.stop if event.variant == "stopped" else postgres.kill)
            await asyncio.sleep(event.length_s)
            await asyncio.to_thread(postgres.start)
            self._stage.keeper.watch(postgres.pid)

    async def _hit_upstream(self, event: Event) -> None:
        fails, address = self._stage.upstream.fails, event.target % 2
        async with self._noted(event):
            fails[address] = event.variant
            try:
                await asyncio.sleep(event.length_s)
            finally:
                fails.pop(address, None)

    async def _victim(self, wanted: int) -> Gateway | None:
        """The gateway to hit: the one wanted, else another that is whole. None when for long it would be the last one standing."""
        for _ in range(VICTIM_TRIES):
            whole = [gateway for gateway in self._stage.gateways if gateway.is_up and not gateway.lock.locked()]
            if len(whole) >= min(2, len(self._stage.gateways)):
                return next((gateway for gateway in whole if gateway.number == wanted), whole[0])
            await asyncio.sleep(0.1)
        return None

    @asynccontextmanager
    async def _witness_away(self, event: Event) -> AsyncIterator[None]:
        """A process dies or sleeps: not while the counter store has lost its memory."""
        if event.fault is Fault.DRAIN:  # it hands over everything before it goes
            yield
            return
        async with self._witnesses:
            await self._witnesses.wait_for(lambda: not self._is_memory_away)
            self._witnesses_away += 1
        try:
            yield
            # What its calls held is in the counter store alone until their leases are over and the reaper has come round.
            await asyncio.sleep(LEASE_S + REAPED_WITHIN_S)
            await self._drained()
        finally:
            async with self._witnesses:
                self._witnesses_away -= 1
                self._witnesses.notify_all()

    @asynccontextmanager
    async def _memory_away(self, event: Event) -> AsyncIterator[None]:
        """The counter store loses its memory: not while a process that could fill it again is away."""
        if event.fault is not Fault.FLUSH:
            yield
            return
        async with self._witnesses:
            await self._witnesses.wait_for(lambda: not self._witnesses_away)
            self._is_memory_away = True
        try:
            yield
        finally:
            async with self._witnesses:
                self._is_memory_away = False
                self._witnesses.notify_all()

    async def _drained(self) -> None:
        """Wait until the counter store has handed over what it held when this was called: the stream is read from its beginning."""
        for _ in range(DRAINED_TRIES):
            client = redis.asyncio.Redis.from_url(self._stage.valkey.url, socket_timeout=2)
            try:
                if await self._has_drained(client):
                    return
            except redis.exceptions.RedisError:
                pass  # it is away itself at the moment
            finally:
                await client.aclose()
            await asyncio.sleep(0.1)

    async def _has_drained(self, client: redis.asyncio.Redis) -> bool:
        """Everything now in the stream leaves it within the time it takes to look a few times."""
        newest = [at for at, _ in await client.xrevrange(LEDGER, count=1) or () if at is not None]
        for _ in range(10):
            if not newest or not await client.xrange(LEDGER, min="-", max=newest[0], count=1):
                return True
            await asyncio.sleep(0.1)
        return False

    @asynccontextmanager
    async def _noted(self, event: Event) -> AsyncIterator[None]:
        name = f"{event.fault} ({event.variant})"
        self.done[event.fault] += 1
        self.running[name] += 1
        began_at = now_s()
        try:
            yield
        finally:
            self.running[name] -= 1
            self.timeline.append((began_at, now_s(), name))
