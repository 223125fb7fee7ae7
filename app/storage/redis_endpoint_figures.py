"""EndpointFigures on Redis: a hash per process, a field per endpoint, all of which ends with the process that wrote it.

By process and endpoint, not in one piece: whoever looks at one endpoint of a thousand reads that one of each process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from app.domain.endpoint_figures import Figures
from app.redis_client import NAMESPACE, RedisClient
from app.storage.redis_presence import REPLICAS, SILENT_MS

SIGN = ""
"""No endpoint's id: a field that is always there, so that a process without any figures counts as one that told."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Figures).decode


class RedisEndpointFigures:
    def __init__(self, redis: RedisClient, *, process_id: str) -> None:
        self._redis = redis
        self._process_id = process_id

    async def tell(self, figures: Mapping[str, Figures]) -> None:
        name = _name(self._process_id)
        fields = {SIGN: b"1", **{endpoint_id: _encode(each) for endpoint_id, each in figures.items()}}
        async with self._redis.bounded() as redis:
            pipeline = redis.pipeline(transaction=True)
            pipeline.delete(name)
            pipeline.hset(name, mapping=fields)  # type: ignore[arg-type]
            pipeline.pexpire(name, SILENT_MS)
            await pipeline.execute()

    async def withdraw(self) -> None:
        async with self._redis.bounded() as redis:
            await redis.delete(_name(self._process_id))

    async def told(self, endpoint_ids: Sequence[str]) -> list[Mapping[str, Figures]]:
        async with self._redis.bounded() as redis:
            names = [text for name in await redis.hkeys(REPLICAS) if (text := _text(name)) != self._process_id]
            if not names:
                return []
            pipeline = redis.pipeline(transaction=False)
            for name in names:
                pipeline.hmget(_name(name), [SIGN, *endpoint_ids])
            found = await pipeline.execute()
        return [_read(endpoint_ids, values) for sign, *values in found if sign is not None]


def _read(endpoint_ids: Sequence[str], values: Sequence[bytes | None]) -> Mapping[str, Figures]:
    """What another version wrote and this one cannot read counts as nothing told."""
    figures: dict[str, Figures] = {}
    for endpoint_id, value in zip(endpoint_ids, values, strict=True):
        if value is None:
            continue
        try:
            figures[endpoint_id] = _decode(value)
        except msgspec.DecodeError:
            continue
    return figures


def _name(process_id: str) -> str:
    return f"{NAMESPACE}e:f:{process_id}"


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name
