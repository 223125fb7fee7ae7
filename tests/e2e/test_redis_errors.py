"""T097: a Redis that answers, but with errors, is a Redis that is away: calls go on, it is said aloud, and no record is lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest
import pytest_asyncio

from tests.e2e.house import House, Json, error_of, request_id_of
from tests.kit import raw_http
from tests.kit.canaries import Canary, assert_absent
from tests.kit.erring_redis import ErringRedis
from tests.kit.processes import GatewayProcess

pytestmark = [pytest.mark.timeout(90), pytest.mark.asyncio(loop_scope="module")]

BACK_WITHIN_S = 10.0


@dataclass(frozen=True, slots=True)
class Place:
    """A gateway of its own between the house's PostgreSQL and a Redis that can be made to answer with errors."""

    house: House
    redis: ErringRedis

    async def health(self) -> Json:
        health: Json = json.loads((await raw_http.call(self.house.gateway.port, "GET", "/health")).body)
        return health

    async def health_until(self, **wanted: str) -> Json:
        health: Json = {}
        async with asyncio.timeout(BACK_WITHIN_S):
            while not health.items() >= wanted.items():
                await asyncio.sleep(0.02)
                health = await self.health()
        return health

    async def metric(self, name: str) -> str:
        text = (await raw_http.call(self.house.gateway.port, "GET", "/metrics")).text
        (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
        return line.removeprefix(f"{name} ")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def standing(house: House) -> AsyncIterator[Place]:
    async with ErringRedis(house.redis_url) as redis:
        env = house.env | {"REDIS_URL": redis.url, "ON_REDIS_DOWN": "local"}
        async with GatewayProcess(env, name="erring") as gateway:
            yield Place(replace(house, gateway=gateway, env=env), redis)


@pytest_asyncio.fixture(loop_scope="module")
async def place(standing: Place) -> AsyncIterator[Place]:
    await standing.health_until(status="ok")
    yield standing
    standing.redis.error, standing.redis.commands = "", frozenset()
    await standing.health_until(status="ok")


SCRIPTS = frozenset({b"EVALSHA", b"EVAL", b"SCRIPT"})


@pytest.mark.parametrize(
    ("error", "commands"),
    [
        ("READONLY You can't write against a read only replica.", SCRIPTS),
        ("NOSCRIPT No matching script. Please use EVAL.", frozenset({b"EVALSHA"})),
        ("MOVED 3999 127.0.0.1:6381", frozenset()),
        ("ASK 3999 127.0.0.1:6381", SCRIPTS),
        ("ERR unknown command 'SCRIPT', with args beginning with: 'LOAD'", frozenset({b"SCRIPT", b"EVALSHA"})),
        ("LOADING Valkey is loading the dataset in memory", frozenset()),
        ("NOAUTH Authentication required.", frozenset()),
        ("OOM command not allowed when used memory > 'maxmemory'.", SCRIPTS),
        ("CLUSTERDOWN The cluster is down", SCRIPTS),
        ("BUSY Valkey is busy running a script.", frozenset()),
        ("MISCONF Errors writing to the append only file: No space left on device", SCRIPTS),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)
async def test_an_error_is_a_failure_that_is_got_over_and_told(
    place: Place, error: str, commands: frozenset[bytes]
) -> None:
    """T097."""
    house = place.house
    key, model = await house.key(), await house.model()
    hard = await house.key(budgets=[{"period": "total", "hard_limit_usd": "5"}])
    first = await house.chat(key, model)
    assert (first.status, (await house.chat(hard, model)).status) == (200, 200)
    told_before = house.gateway.log_text().count('"counters_away"')

    place.redis.error, place.redis.commands = error, commands
    answers = [await house.chat(key, model) for _ in range(5)]
    health = await place.health_until(redis="down")
    is_up = await place.metric("gateway_redis_up")
    refused = await house.chat(hard, model)
    place.redis.error = ""
    await place.health_until(status="ok")

    assert {answer.status for answer in answers} == {200}
    assert (refused.status, error_of(refused)["code"]) == (503, "dependency_unavailable")
    assert (health["status"], is_up) == ("degraded", "0.0")
    assert house.gateway.log_text().count('"counters_away"') == told_before + 1, "told once, not for every call"
    for answer in (first, *answers):
        assert (await house.record(request_id_of(answer), within_s=20))["outcome"] == "ok"
    assert (await house.chat(hard, model)).status == 200


async def test_what_redis_says_reaches_nobody(place: Place) -> None:
    """T104: neither its words, which may quote commands, nor its password, in any answer or in the log."""
    house = place.house
    quoted, password = Canary.fresh("prompt"), Canary.of("password", house.redis_url.split(":")[2].split("@")[0])
    key, model = await house.key(), await house.model()
    hard = await house.key(budgets=[{"period": "total", "hard_limit_usd": "5"}])
    assert ((await house.chat(key, model)).status, (await house.chat(hard, model)).status) == (200, 200)

    place.redis.error = f"ERR wrong number of arguments for {quoted.value}"
    answers = [await house.chat(key, model), await house.chat(hard, model), await house.chat(await house.key(), model)]
    answers += [await house.ask_admin("GET", "overview"), await raw_http.call(house.gateway.port, "GET", "/health")]

    texts = [answer.body for answer in answers] + [str(answer.headers).encode() for answer in answers]
    await assert_absent([quoted, password], texts=texts)
    await assert_absent([password], texts=[house.gateway.log_text()])
