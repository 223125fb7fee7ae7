"""Calls that were sent with an `Idempotency-Key`, and how they were answered: `{ag}:i:…`, forgotten after a day by themselves."""

from __future__ import annotations

from typing import Any

from app.redis_client import NAMESPACE, RedisClient
from app.storage.ports import KnownCall

PREFIX = f"{NAMESPACE}i:"
DIGEST_BYTES = 32
UNDER_WAY, DONE = b"0", b"1"


class RedisCallRepeats:
    """CallRepeatStore on Redis. A value is a mark, the request's digest, and, once there is one, the sealed answer."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis

    async def begin(self, name: str, digest: bytes, *, held_ms: int) -> KnownCall | None:
        async with self._redis.bounded() as redis:
            held: Any = await redis.set(PREFIX + name, UNDER_WAY + digest, nx=True, get=True, px=held_ms)
        if held is None:
            return None
        answer = held[1 + DIGEST_BYTES :] if held[:1] == DONE else None
        return KnownCall(held[1 : 1 + DIGEST_BYTES], answer)

    async def finish(self, name: str, digest: bytes, sealed: bytes, *, kept_ms: int) -> None:
        async with self._redis.bounded() as redis:
            await redis.set(PREFIX + name, DONE + digest + sealed, px=kept_ms)

    async def forget(self, name: str) -> None:
        async with self._redis.bounded() as redis:
            await redis.unlink(PREFIX + name)
