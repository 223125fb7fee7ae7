"""The limits of endpoints over all processes, on a real server."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.redis_client import RedisClient
from app.storage.endpoint_ports import EndpointClaim, EndpointFull, LimitName
from app.storage.redis_endpoint_claims import LEASE_MS, RedisEndpointClaims
from tests.calls import a_request_id, an_endpoint

NOW_MS = 1_700_000_000_000


@pytest.fixture
def claims(redis: RedisClient) -> RedisEndpointClaims:
    made = RedisEndpointClaims(redis)
    made.now_ms = NOW_MS
    return made


def limited(**limits: int) -> object:
    return replace(an_endpoint(a_request_id()), **limits)  # type: ignore[arg-type]


async def claimed(claims: RedisEndpointClaims, endpoint: object, attempt: str, tokens: int = 0) -> EndpointClaim:
    answer = await claims.claim(endpoint, attempt, tokens)  # type: ignore[arg-type]
    assert isinstance(answer, EndpointClaim), answer
    return answer


async def refused(claims: RedisEndpointClaims, endpoint: object, tokens: int = 0) -> EndpointFull:
    answer = await claims.claim(endpoint, "refused", tokens)  # type: ignore[arg-type]
    assert isinstance(answer, EndpointFull), answer
    return answer


async def test_so_many_at_once_and_a_place_is_free_when_one_leaves(claims: RedisEndpointClaims) -> None:
    endpoint = limited(max_concurrency=2)
    first = await claimed(claims, endpoint, "1")
    await claimed(claims, endpoint, "2")
    assert (await refused(claims, endpoint)).by is LimitName.CONCURRENCY

    await claims.free(first, 0)

    await claimed(claims, endpoint, "3")


async def test_the_place_of_a_process_that_died_is_free_after_its_lease(claims: RedisEndpointClaims) -> None:
    endpoint = limited(max_concurrency=1)
    await claimed(claims, endpoint, "1")
    claims.now_ms = NOW_MS + LEASE_MS + 1

    await claimed(claims, endpoint, "2")


async def test_requests_of_any_minute_are_bounded_and_the_time_to_come_back_is_true(
    claims: RedisEndpointClaims,
) -> None:
    endpoint = limited(requests_per_minute=3)
    for number in range(3):
        claims.now_ms = NOW_MS + number * 10_000
        await claimed(claims, endpoint, f"{number}")
    full = await refused(claims, endpoint)
    assert full.by is LimitName.REQUESTS
    assert 39_000 <= full.retry_after_ms <= 42_000

    claims.now_ms = NOW_MS + 20_000 + full.retry_after_ms

    await claimed(claims, endpoint, "later")
    await refused(claims, endpoint)


async def test_tokens_are_corrected_to_what_was_used(claims: RedisEndpointClaims) -> None:
    endpoint = limited(tokens_per_minute=1000)
    first = await claimed(claims, endpoint, "1", 900)
    assert (await refused(claims, endpoint, 200)).by is LimitName.TOKENS

    await claims.free(first, 100)

    await claimed(claims, endpoint, "2", 900)
    await refused(claims, endpoint, 1)


async def test_a_call_larger_than_the_whole_limit_goes_when_nothing_else_does(claims: RedisEndpointClaims) -> None:
    endpoint = limited(tokens_per_minute=1000)

    await claimed(claims, endpoint, "1", 5000)
    await refused(claims, endpoint, 1)


async def test_a_refusal_takes_nothing(claims: RedisEndpointClaims) -> None:
    endpoint = limited(max_concurrency=5, requests_per_minute=2, tokens_per_minute=100)
    await claimed(claims, endpoint, "1", 100)
    for _ in range(5):
        assert (await refused(claims, endpoint, 50)).by is LimitName.TOKENS

    await claimed(claims, endpoint, "2", 0)
