"""What processes tell each other of endpoints, on a real server."""

from __future__ import annotations

from app.domain.endpoint_figures import Figures, LastFault
from app.redis_client import RedisClient
from app.storage.redis_endpoint_figures import RedisEndpointFigures
from app.storage.redis_presence import SILENT_MS, RedisPresence
from tests.calls import a_request_id

FIGURES = Figures(
    in_flight=3, calls=10, faults=2, first_token_ms=120, open_in=1, last_fault=LastFault(1, "error", "status_500", 500)
)


async def process(redis: RedisClient) -> tuple[str, RedisEndpointFigures]:
    """A process that has told that it runs."""
    process_id = f"p-{a_request_id()}"
    await RedisPresence(redis, process_id=process_id, version="1").report(1)
    return process_id, RedisEndpointFigures(redis, process_id=process_id)


async def of_others(reader: RedisEndpointFigures, *ids: str) -> list[dict[str, Figures]]:
    """What others told of these endpoints, but for processes of other tests, which know none of them."""
    return [dict(told) for told in await reader.told(ids) if told]


async def test_what_a_process_tells_the_others_read_and_it_does_not_itself(redis: RedisClient) -> None:
    (_, one), (_, two), (_, reader) = await process(redis), await process(redis), await process(redis)
    a, b, other = a_request_id(), a_request_id(), a_request_id()
    await one.tell({a: FIGURES, other: FIGURES})
    await two.tell({a: Figures(calls=1), b: FIGURES})

    told = await of_others(reader, a, b)

    assert sorted(told, key=len) == [{a: FIGURES}, {a: Figures(calls=1), b: FIGURES}]
    assert await of_others(one, a) == [{a: Figures(calls=1)}]


async def test_a_process_without_any_figures_counts_as_one_that_runs(redis: RedisClient) -> None:
    (_, reader), (_, idle) = await process(redis), await process(redis)
    before = len(await reader.told(["nobody"]))

    await idle.tell({})

    assert len(await reader.told(["nobody"])) == before + 1


async def test_what_is_told_takes_the_place_of_what_was(redis: RedisClient) -> None:
    (_, one), (_, reader) = await process(redis), await process(redis)
    a, b = a_request_id(), a_request_id()
    await one.tell({a: FIGURES})
    await one.tell({b: FIGURES})
    assert await of_others(reader, a, b) == [{b: FIGURES}]


async def test_figures_end_with_their_process(redis: RedisClient) -> None:
    (process_id, one), (_, reader) = await process(redis), await process(redis)
    a = a_request_id()
    await one.tell({a: FIGURES})
    assert 0 < await redis.redis.pttl(f"{{ag}}:e:f:{process_id}") <= SILENT_MS, "by themselves, should it be killed"

    await one.withdraw()

    assert await of_others(reader, a) == []


async def test_what_another_version_wrote_and_nobody_can_read_is_left_out(redis: RedisClient) -> None:
    (process_id, one), (_, reader) = await process(redis), await process(redis)
    a, b = a_request_id(), a_request_id()
    await one.tell({a: FIGURES, b: FIGURES})
    await redis.redis.hset(f"{{ag}}:e:f:{process_id}", a, b'{"in_flight":"many"}')
    assert await of_others(reader, a, b) == [{b: FIGURES}]
