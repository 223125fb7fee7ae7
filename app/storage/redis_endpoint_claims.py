"""EndpointClaims on Redis: what all processes together send to an endpoint that has limits of its own.

Names, each after `{ag}:`: `e:c:…` who is there · `e:r:…` requests and `e:t:…` tokens of the last minute.
"""

from __future__ import annotations

from collections.abc import Sequence

from app.domain.catalog import Endpoint
from app.redis_client import NAMESPACE, RedisClient, Script
from app.storage.endpoint_ports import EndpointClaim, EndpointFull, LimitName

CLAIM = Script.load("claim_endpoint")
FREE = Script.load("free_endpoint")
HOLD = Script.load("hold_endpoints")
LEASE_MS = 60_000
"""How long the place of an attempt outlives its process."""

_NAMES = {1: LimitName.CONCURRENCY, 2: LimitName.REQUESTS, 3: LimitName.TOKENS}


class RedisEndpointClaims:
    """`now_ms` replaces the server's clock in tests."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis
        self.now_ms: int | None = None

    async def claim(self, endpoint: Endpoint, attempt: str, tokens: int) -> EndpointClaim | EndpointFull:
        limits = (endpoint.max_concurrency, endpoint.requests_per_minute, endpoint.tokens_per_minute)
        first, second = await self._redis.run(
            CLAIM,
            [_there(endpoint.id), f"{NAMESPACE}e:r:{endpoint.id}", _tokens(endpoint.id)],
            [
                *(attempt, LEASE_MS),
                *(-1 if limit is None else limit for limit in limits),
                *(tokens, "" if self.now_ms is None else self.now_ms),
            ],
        )
        if first == 0:
            counted = 0 if endpoint.tokens_per_minute is None else tokens
            return EndpointClaim(endpoint.id, attempt, second, counted)
        return EndpointFull(_NAMES[first], second)

    async def free(self, claim: EndpointClaim, tokens: int) -> None:
        correction = tokens - claim.tokens if claim.tokens else 0
        await self._redis.run(
            FREE, [_there(claim.endpoint_id), _tokens(claim.endpoint_id)], [claim.attempt, claim.slot, correction]
        )

    async def hold(self, claims: Sequence[EndpointClaim]) -> None:
        if claims:
            there = [_there(claim.endpoint_id) for claim in claims]
            await self._redis.run(HOLD, there, [LEASE_MS, *(claim.attempt for claim in claims)])


def _there(endpoint_id: str) -> str:
    return f"{NAMESPACE}e:c:{endpoint_id}"


def _tokens(endpoint_id: str) -> str:
    return f"{NAMESPACE}e:t:{endpoint_id}"
