"""What the processes of a cluster tell each other: that the configuration changed, and who does the chores."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from redis.exceptions import RedisError

from app.exceptions import DependencyUnavailable
from app.redis_client import NAMESPACE, RedisClient, Script

LEAD = Script.load("lead")
CHANGED = f"{NAMESPACE}changed"
OFFICE_MS = 5_000
"""An office falls free this long after its holder last asked: how late another process takes over from one that died."""
LISTEN_TIMEOUT_S = 15.0


class RedisElection:
    def __init__(self, redis: RedisClient, *, process_id: str) -> None:
        self._redis = redis
        self._process_id = process_id

        self._held: set[str] = set()

    async def leads(self, office: str) -> bool:
        is_mine = bool(await self._redis.run(LEAD, [f"{NAMESPACE}office:{office}"], [self._process_id, OFFICE_MS]))
        (self._held.add if is_mine else self._held.discard)(office)
        return is_mine

    async def resign(self) -> None:
        """Give up every office held, so that another process takes over at once."""
        for office in list(self._held):
            await self._redis.run(LEAD, [f"{NAMESPACE}office:{office}"], [self._process_id, 1])
            self._held.discard(office)


class RedisSignals:
    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis

    async def publish(self, revision: int, kind: str, ref: str) -> None:
        """Tell every process that something changed. A message that is lost is made good by their polling."""
        try:
            async with self._redis.bounded() as redis:
                await redis.publish(CHANGED, f"{revision} {kind} {ref}")
        except DependencyUnavailable:
            return

    async def listen(self, on_change: Callable[[int, str, str], None]) -> None:
        """Call `on_change` with the revision (0: unknown), the kind and the id of what changed (empty: unknown), until the
        connection breaks.

        Raises: DependencyUnavailable, then.
        """
        pubsub = self._redis.redis.pubsub(ignore_subscribe_messages=True)
        try:
            await pubsub.subscribe(CHANGED)
            on_change(0, "", "")  # what was told before we listened
            while True:
                message = await pubsub.get_message(timeout=LISTEN_TIMEOUT_S)
                if message is not None:
                    on_change(*_told(message["data"]))
        except (RedisError, OSError) as error:
            raise DependencyUnavailable("counter store") from error
        finally:
            async with asyncio.timeout(1.0):
                await pubsub.aclose()  # type: ignore[no-untyped-call]


def _told(message: bytes | str) -> tuple[int, str, str]:
    """The revision, the kind and the id; a message of a version before holds the revision alone."""
    text = message.decode("utf-8", "replace") if isinstance(message, bytes) else message
    revision, _, change = text.partition(" ")
    kind, _, ref = change.partition(" ")
    return int(revision) if revision.isdecimal() else 0, kind, ref
