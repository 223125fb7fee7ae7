"""Whoever shows credentials that are none, counted by network, so that guessing costs the guesser and nobody else.

Each bad credential fills its network's bucket, which leaks. A network whose bucket fills up becomes a suspect: what it shows and is not
known from memory is looked up together, by one statement for all that waited, a few times a second. So a flood of guesses asks the
database no more often than a single mistaken client, and a good key that comes through the same address waits a moment and is served.
Once the bucket is full, bad credentials are told to stay away rather than that they are bad.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from app.clock import Clock
from app.domain.identity import Identity
from app.domain.networks import network_of
from app.exceptions import GatewayError, InvalidApiKey, TooManyFailures

LEAK_PER_S = 3.0
"""Failures a second that are nobody's business: with three processes fewer than ten look-ups a second and address."""
SUSPECT_LEVEL = 30.0
"""A person who mistypes, or a deployment with an old key, stays below."""
FULL_LEVEL = 300.0
"""From here on the answer is 429. A whole test suite of wrong keys stays below, a guesser is there within a second."""
MOST_LEVEL = 306.0
"""A bucket holds no more, so that whoever stops is welcome again after (306 - 300) / 3 = 2 seconds."""
ENDED_WEIGHT = 0.1
"""Of a credential that was good once. To know it is no guess, and it is in memory: a fleet that goes on calling with a key that was
revoked makes no suspect of its address, and still is told to stay away at thirty times a second."""
GATHER_S = 0.35
"""Time between two look-ups for a suspect; three processes together stay below ten a second."""
MOST_WAITING = 1_000
"""Credentials gathered for one look-up; those beyond are turned away unseen."""
MOST_IN_LINE = 6
"""Look-ups that cannot be gathered, those of apps, which wait for their turn; the last one for about two seconds."""
MOST_NETWORKS = 10_000
"""Buckets kept, about 300 bytes each."""

LookUp = Callable[[Sequence[bytes]], Awaitable[Mapping[bytes, Identity]]]


@dataclass(slots=True)
class _Bucket:
    level: float = 0.0
    at_s: float = 0.0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    next_look_up_s: float = 0.0
    in_line: int = 0
    waiting: set[bytes] = field(default_factory=set)
    found: dict[bytes, Identity | GatewayError] = field(default_factory=dict)
    """What the newest look-up said to those who waited for it."""


class Strangers:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def note(self, address: str | None, weight: float = 1.0) -> None:
        """A bad credential came from there. Raises: TooManyFailures when there were too many."""
        network = network_of(address)
        bucket = self._buckets.setdefault(network, _Bucket(at_s=self._clock.monotonic()))
        self._buckets.move_to_end(network)
        while len(self._buckets) > MOST_NETWORKS:
            self._buckets.popitem(last=False)
        self._leak(bucket)
        bucket.level = min(bucket.level + weight, MOST_LEVEL)
        if bucket.level > FULL_LEVEL:
            raise self._stay_away(bucket)

    def is_suspect(self, address: str | None) -> bool:
        if not self._buckets:
            return False
        bucket = self._buckets.get(network_of(address))
        if bucket is None:
            return False
        self._leak(bucket)
        return bucket.level > SUSPECT_LEVEL

    async def turn(self, address: str | None) -> None:
        """Wait for one look-up by itself, of a suspect. Raises: TooManyFailures when many wait for theirs already."""
        bucket = self._buckets[network_of(address)]
        if bucket.in_line >= MOST_IN_LINE:
            raise TooManyFailures(retry_after_s=MOST_IN_LINE * GATHER_S)
        bucket.in_line += 1
        try:
            async with bucket.lock:
                await self._clock.sleep(bucket.next_look_up_s - self._clock.monotonic())
                bucket.next_look_up_s = self._clock.monotonic() + GATHER_S
        finally:
            bucket.in_line -= 1

    async def looked_up(self, digest: bytes, address: str | None, look_up: LookUp) -> Identity:
        """What a suspect's credential stands for, by a look-up that it shares with all that wait for one.

        Raises: InvalidApiKey, TooManyFailures, and what `look_up` raises.
        """
        bucket = self._buckets[network_of(address)]
        if len(bucket.waiting) >= MOST_WAITING:
            raise TooManyFailures(retry_after_s=1.0)
        bucket.waiting.add(digest)
        bucket.found.pop(digest, None)
        async with bucket.lock:  # whoever gets it first looks up for all who wait for it
            if digest not in bucket.found:
                await self._clock.sleep(bucket.next_look_up_s - self._clock.monotonic())
                await self._look_up_all(bucket, digest, look_up)
            found = bucket.found[digest]
        if isinstance(found, GatewayError):
            raise found
        return found

    async def _look_up_all(self, bucket: _Bucket, digest: bytes, look_up: LookUp) -> None:
        asked, bucket.waiting = bucket.waiting | {digest}, set()
        bucket.next_look_up_s = self._clock.monotonic() + GATHER_S
        known: Mapping[bytes, Identity] = {}
        failure: GatewayError = InvalidApiKey()
        try:
            known = await look_up(list(asked))
        except GatewayError as error:
            failure = error
        bucket.found = {each: known.get(each, failure) for each in asked}

    def _leak(self, bucket: _Bucket) -> None:
        now_s = self._clock.monotonic()
        bucket.level = max(0.0, bucket.level - (now_s - bucket.at_s) * LEAK_PER_S)
        bucket.at_s = now_s

    def _stay_away(self, bucket: _Bucket) -> TooManyFailures:
        return TooManyFailures(retry_after_s=max(1.0, (bucket.level - FULL_LEVEL) / LEAK_PER_S))
