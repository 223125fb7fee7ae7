"""EndpointNews over Redis publish/subscribe: quick, at most once, and gone with Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from redis.exceptions import RedisError

from app.exceptions import DependencyUnavailable
from app.redis_client import NAMESPACE, RedisClient

CHANNEL = f"{NAMESPACE}endpoints"
LISTEN_TIMEOUT_S = 15.0


class RedisEndpointNews:
    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis

    async def publish(self, message: bytes) -> None:
        async with self._redis.bounded() as redis:
            await redis.publish(CHANNEL, message)

    async def listen(self, heard: Callable[[bytes], None]) -> None:
        pubsub = self._redis.redis.pubsub(ignore_subscribe_messages=True)
        try:
            await pubsub.subscribe(CHANNEL)
            while True:
                message = await pubsub.get_message(timeout=LISTEN_TIMEOUT_S)
                if message is not None and isinstance(message["data"], bytes):
                    heard(message["data"])
        except (RedisError, OSError) as error:
            raise DependencyUnavailable("counter store") from error
        finally:
            async with asyncio.timeout(1.0):
                await pubsub.aclose()  # type: ignore[no-untyped-call]
