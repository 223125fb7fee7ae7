"""Who waits for a table's lock, looked at all the time: the longest wait that was seen of anybody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg

LOOK_EVERY_S = 0.02
LONGEST_WAIT = """
SELECT coalesce(max(extract(epoch FROM clock_timestamp() - waitstart)), 0)::float8 FROM pg_locks
WHERE NOT granted AND locktype = 'relation' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


@dataclass(slots=True)
class Waits:
    longest_s: float = 0.0


@asynccontextmanager
async def watched_locks(url: str) -> AsyncIterator[Waits]:
    """Of the database at this `postgresql://…`."""
    waits = Waits()
    connection = await asyncpg.connect(url)

    async def look() -> None:
        while True:
            waits.longest_s = max(waits.longest_s, await connection.fetchval(LONGEST_WAIT))
            await asyncio.sleep(LOOK_EVERY_S)

    looking = asyncio.create_task(look())
    try:
        yield waits
        if looking.done():
            looking.result()
    finally:
        looking.cancel()
        await asyncio.wait([looking])
        await connection.close()
