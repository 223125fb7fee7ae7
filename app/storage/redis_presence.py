"""Which processes run, and on which revision of the configuration each of them is: one hash, a field per process."""

from __future__ import annotations

import time

import msgspec

from app.redis_client import NAMESPACE, RedisClient
from app.storage.overview_ports import Replica

REPLICAS = f"{NAMESPACE}replicas"
SILENT_MS = 10_000
"""A process tells of itself every two seconds; one that was silent for this long has gone."""
FORGOTTEN_S = 60


class _Told(msgspec.Struct, array_like=True):
    revision: int
    version: str
    at_ms: int


_told = msgspec.json.Decoder(_Told)


class RedisPresence:
    def __init__(self, redis: RedisClient, *, process_id: str, version: str) -> None:
        self._redis = redis
        self._process_id = process_id
        self._version = version

    async def report(self, revision: int) -> None:
        """Tell of this process. Raises: DependencyUnavailable."""
        told = msgspec.json.encode(_Told(revision, self._version, _now_ms()))
        async with self._redis.bounded() as redis:
            await redis.hset(REPLICAS, self._process_id, told)
            await redis.expire(REPLICAS, FORGOTTEN_S)

    async def withdraw(self) -> None:
        async with self._redis.bounded() as redis:
            await redis.hdel(REPLICAS, self._process_id)

    async def replicas(self) -> list[Replica]:
        """Those that told of themselves lately; what others left behind is cleared away. Raises: DependencyUnavailable."""
        async with self._redis.bounded() as redis:
            found = await redis.hgetall(REPLICAS)
            running, gone, now_ms = [], [], _now_ms()
            for name, value in found.items():
                try:
                    told = _told.decode(value)
                except msgspec.DecodeError:
                    gone.append(name)
                    continue
                if now_ms - told.at_ms > SILENT_MS:
                    gone.append(name)
                else:
                    running.append(Replica(_text(name), told.revision, told.version))
            if gone:
                await redis.hdel(REPLICAS, *gone)
        return sorted(running, key=lambda replica: replica.id)


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
