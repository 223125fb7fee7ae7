"""How long a change of one model takes to hold on three processes that have a thousand of them, and what it costs them.

    .venv/bin/python -m bench.catalog [--models 1000] [--endpoints 2] [--changes 50]

The models are registered by SQL, each endpoint with a sealed credential. Then one model at a time is given another alias, and all
processes are asked for it until each knows it. Prints the times from the administrator's request and from his answer to the last
process's first answer, the CPU that all three together spend on one change, and the same for a hundred changes at once.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import quantiles
from uuid import uuid4

import asyncpg

from app.storage.sealing import Sealer, host_of
from bench.revocation import Caller, callers_of
from tests.e2e import test_revocation as suite
from tests.e2e.house import SECRET_KEY, unique

BURST = 100
API_BASE = "http://127.0.0.1:9/v1"
"""Nobody is asked anything there."""
SETTLED_S = 3.0
"""After which the last change has been followed by everybody and whatever it set going has ended."""


async def fill(database_url: str, models: int, endpoints: int) -> list[str]:
    """Register so many models, each with so many endpoints, in one change that names none of them. Returns their names."""
    names, sealer = [f"many-{number:05}" for number in range(models)], Sealer(SECRET_KEY)
    served = [(str(uuid4()), name) for name in names for _ in range(endpoints)]
    sealed = [sealer.seal("sk-upstream-credential", endpoint_id=id, host=host_of(API_BASE)) for id, _ in served]
    connection = await asyncpg.connect(database_url.replace("+asyncpg", ""))
    try:
        async with connection.transaction():
            await connection.execute("UPDATE config_revision SET revision = revision + 2")
            await connection.execute(
                "INSERT INTO models (name, context_window) SELECT unnest($1::text[]), 128000", names
            )
            await connection.execute(
                "INSERT INTO endpoints (id, model, provider, upstream_model, api_base, credential_sealed, health_check) "
                "SELECT id, model, 'openai', 'gpt-4o-mini', $4, sealed, '{\"kind\": \"none\"}' "
                "FROM unnest($1::uuid[], $2::text[], $3::bytea[]) AS one (id, model, sealed)",
                *([id for id, _ in served], [name for _, name in served], sealed, API_BASE),
            )
            # The revision before is missing on purpose: whoever follows reads all anew.
            await connection.execute(
                "INSERT INTO config_changes (revision, kind, ref) SELECT revision, 'catalog', '' FROM config_revision"
            )
    finally:
        await connection.close()
    return names


@dataclass(frozen=True, slots=True)
class Times:
    what: str
    seconds: Sequence[float]

    def __str__(self) -> str:
        ordered = sorted(self.seconds)
        p95 = quantiles(ordered, n=20)[18] if len(ordered) > 1 else ordered[0]
        middle = ordered[len(ordered) // 2]
        return f"{self.what:<40} median {middle * 1000:6.0f} ms, p95 {p95 * 1000:6.0f} ms, slowest {ordered[-1] * 1000:6.0f} ms"


async def _known_to_all(callers: Sequence[Caller], secret: str, alias: str) -> float:
    return max(await asyncio.gather(*(caller.until(secret, 200, f"/v1/models/{alias}") for caller in callers)))


async def one_by_one(trio: suite.Trio, names: Sequence[str], secret: str) -> list[Times]:
    from_request, from_answer = list[float](), list[float]()
    async with callers_of(trio.fleet) as callers:
        for name in names:
            alias, began_s = unique("alias"), time.perf_counter()
            await trio.house.admin("PATCH", f"models/{name}", {"aliases": [alias]}, expect=200)
            answered_s = time.perf_counter()
            known_s = await _known_to_all(callers, secret, alias)
            from_request.append(known_s - began_s)
            from_answer.append(known_s - answered_s)
    return [Times("from the request", from_request), Times("from the answer", from_answer)]


async def burst(trio: suite.Trio, names: Sequence[str], secret: str) -> Times:
    aliases = [unique("alias") for _ in names]

    async def change(name: str, alias: str) -> None:
        await trio.house.admin("PATCH", f"models/{name}", {"aliases": [alias]}, expect=200)

    began_s = time.perf_counter()
    await asyncio.gather(*map(change, names, aliases))
    answered_s = time.perf_counter()
    async with callers_of(trio.fleet) as callers:
        known_s = max([await _known_to_all(callers, secret, alias) for alias in aliases])
    return Times(f"{len(names)} at once: changed, then known to all", [answered_s - began_s, known_s - began_s])


async def cpu_s(trio: suite.Trio) -> float:
    return sum(gateway.cpu_seconds() for gateway in trio.fleet.gateways)


async def cpu_of(trio: suite.Trio, names: Sequence[str]) -> float:
    """CPU that all processes spend on one change, beside what they spend anyway."""
    began_s, before_s = time.perf_counter(), await cpu_s(trio)
    for name in names:
        await trio.house.admin("PATCH", f"models/{name}", {"aliases": [unique("alias")]}, expect=200)
    await asyncio.sleep(SETTLED_S)
    taken_s, spent_s = time.perf_counter() - began_s, await cpu_s(trio) - before_s
    before_s = await cpu_s(trio)
    await asyncio.sleep(SETTLED_S)
    idle_s = (await cpu_s(trio) - before_s) / SETTLED_S * taken_s
    return (spent_s - idle_s) / len(names)


async def measure(trio: suite.Trio, models: int, endpoints: int, changes: int) -> None:
    secret = await trio.house.key()
    names = await fill(trio.house.database_url, models, endpoints)
    async with callers_of(trio.fleet) as callers:
        await _known_to_all(callers, secret, names[-1])
    await asyncio.sleep(SETTLED_S)
    for times in await one_by_one(trio, names[:changes], secret):
        print(times, flush=True)
    print(f"CPU of three processes for one change: {await cpu_of(trio, names[:changes]) * 1000:.1f} ms", flush=True)
    print(await burst(trio, names[:BURST], secret), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--endpoints", type=int, default=2)
    parser.add_argument("--changes", type=int, default=50)
    given = parser.parse_args()
    with contextmanager(suite.started_trio)() as trio:
        asyncio.run(measure(trio, given.models, given.endpoints, given.changes))


if __name__ == "__main__":
    main()
