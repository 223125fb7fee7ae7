"""`CounterProof` on Redis: what stands there, read without changing it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from app.domain.limits import LimitKind
from app.domain.record import CallRecord, decode_record
from app.redis_client import RedisClient
from app.storage.redis_counters import BUDGET_PREFIX, CALL_PREFIX, LEASES, LEDGER, LIMIT_PREFIX
from app.storage.verify_ports import Counter, OpenCall, Slot, Waiting

AT_ONCE = 500
WITHIN_S = 10.0
"""For one round of questions; each takes the server well under a millisecond."""

_claims = msgspec.msgpack.Decoder()


class RedisCounterProof:
    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis

    async def names(self) -> list[str]:
        return [name.removeprefix(BUDGET_PREFIX) for name in await self._keys(f"{BUDGET_PREFIX}*")]

    async def counters(self, names: Sequence[str]) -> list[Counter | None]:
        rows = await self._of_each([f"{BUDGET_PREFIX}{name}" for name in names], "hmget", ["s", "r", "v"])
        return [
            None
            if spent is reserved is None
            else Counter(
                None if spent is None else _number(spent),
                _number(reserved),
                None if opened is None else int(opened),
            )
            for spent, reserved, opened in rows
        ]

    async def open_calls(self) -> list[OpenCall]:
        names = await self._keys(f"{CALL_PREFIX}*")
        packed = await self._of_each(names, "hget", "c")
        lives = await self._of_each(names, "pttl")
        async with self._redis.bounded(WITHIN_S) as redis:
            leased: Any = await redis.zrange(LEASES, 0, -1, withscores=True)
        leases = {call_id.decode(): int(ends_ms) for call_id, ends_ms in leased}
        found = []
        for name, claims, life_ms in zip(names, packed, lives, strict=True):
            call_id = name.removeprefix(CALL_PREFIX)
            # What has ended leaves, at most, a note that goes away by itself.
            if claims is not None and (call_id in leases or life_ms == -1):
                found.append(OpenCall(call_id, _held(claims), leases.get(call_id)))
        return found

    async def slots(self) -> list[Slot]:
        names = await self._keys(f"{LIMIT_PREFIX}*:{LimitKind.CONCURRENCY}:0")
        now_ms = await self.now_ms()
        taken = await self._of_each(names, "zrangebyscore", f"({now_ms}", "+inf")
        return [
            Slot(name.removeprefix(LIMIT_PREFIX), call_id.decode())
            for name, call_ids in zip(names, taken, strict=True)
            for call_id in call_ids
        ]

    async def waiting(self) -> Waiting:
        records: list[CallRecord] = []
        unreadable: list[str] = []
        start = "-"
        while True:
            async with self._redis.bounded(WITHIN_S) as redis:
                entries: Any = await redis.xrange(LEDGER, min=start, count=AT_ONCE)
            for position, fields in entries:
                try:
                    record = decode_record(fields[b"r"])
                    charged = int(fields.get(b"k", record.cost_nanousd))
                    records.append(msgspec.structs.replace(record, cost_nanousd=charged))
                except (msgspec.MsgspecError, KeyError):
                    unreadable.append(position.decode())
            if len(entries) < AT_ONCE:
                return Waiting(records, unreadable)
            start = f"({entries[-1][0].decode()}"

    async def now_ms(self) -> int:
        async with self._redis.bounded(WITHIN_S) as redis:
            seconds, microseconds = await redis.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def _keys(self, pattern: str) -> list[str]:
        """SCAN gives all that stand there from the beginning to the end of it, some of them twice."""
        found: set[str] = set()
        cursor: Any = 0
        while True:
            async with self._redis.bounded(WITHIN_S) as redis:
                names: Any
                cursor, names = await redis.scan(cursor, match=pattern, count=AT_ONCE)
            found.update(name.decode() for name in names)
            if cursor == 0:
                return sorted(found)

    async def _of_each(self, names: Sequence[str], command: str, *arguments: Any) -> list[Any]:
        answers: list[Any] = []
        for start in range(0, len(names), AT_ONCE):
            async with self._redis.bounded(WITHIN_S) as redis:
                pipeline = redis.pipeline(transaction=False)
                for name in names[start : start + AT_ONCE]:
                    getattr(pipeline, command)(name, *arguments)
                answers += await pipeline.execute()
        return answers


def _held(packed: bytes) -> dict[str, int]:
    """What a reservation holds of each budget: the third figure of its claims, see `admit.lua`."""
    held: dict[str, int] = {}
    for claim in _claims.decode(packed)[1]:
        name = claim[0].decode() if isinstance(claim[0], bytes) else str(claim[0])
        counter = name.removeprefix(BUDGET_PREFIX)
        held[counter] = held.get(counter, 0) + int(claim[2])
    return held


def _number(raw: bytes | None) -> int | str:
    try:
        return int(raw or 0)
    except ValueError:
        return (raw or b"").decode(errors="replace")[:100]
