"""How long a revoked key goes on being served: 200 trials on three processes with 100 calls in flight.

    .venv/bin/python -m bench.revocation [--trials 200] [--in-flight 100]

Each trial makes a key known to all processes, revokes it through the first, and asks all of them until each answers 401. Prints the
time from the administrator's answer to the last process's first refusal: median, p99 and the slowest. The calls in flight are slow
streams, and whoever asks keeps its connection: what is measured is the gateway, not a race for this machine's cores.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from statistics import quantiles

from tests.e2e import test_revocation as suite
from tests.kit import raw_http
from tests.kit.processes import GatewayFleet
from tests.kit.scenario import Scenario

CHUNKS, GAP_MS = 20, 500
"""Of each call in flight: a stream of ten seconds."""
PAUSE_S = 0.002
GIVE_UP_S = 15.0
BODY = {"messages": [{"role": "user", "content": "Hello"}], "stream": True}


@dataclass(frozen=True, slots=True)
class Caller:
    """Asks one process who may call, over one connection that is kept."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def status(self, secret: str, path: str = "/v1/models") -> int:
        self.writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n\r\n".encode())
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = int(head.partition("content-length:")[2].partition("\r\n")[0])
        await self.reader.readexactly(length)
        return int(head.split(" ", 2)[1])

    async def until(self, secret: str, expected: int, path: str = "/v1/models") -> float:
        """When it was first answered so."""
        gives_up_s = time.perf_counter() + GIVE_UP_S
        while await self.status(secret, path) != expected:
            assert time.perf_counter() < gives_up_s, f"still not {expected}"
            await asyncio.sleep(PAUSE_S)
        return time.perf_counter()


@asynccontextmanager
async def callers_of(fleet: GatewayFleet) -> AsyncIterator[list[Caller]]:
    async with AsyncExitStack() as stack:
        callers = []
        for gateway in fleet.gateways:
            caller = Caller(*await asyncio.open_connection("127.0.0.1", gateway.port))
            stack.callback(caller.writer.close)
            callers.append(caller)
        yield callers


@asynccontextmanager
async def in_flight(trio: suite.Trio, count: int) -> AsyncIterator[None]:

    model, secret = await trio.house.model(Scenario(chunks=CHUNKS, gap_ms=GAP_MS)), await trio.house.key()

    async def serve(number: int) -> None:
        port = trio.fleet[number % 3].port
        await asyncio.sleep(number / count * CHUNKS * GAP_MS / 1000)  # not all of them at once, then or ever
        while True:
            answer = await raw_http.call(
                *(port, "POST", "/v1/chat/completions"),
                headers=suite.bearer(secret),
                json_body=BODY | {"model": model},
                timeout_s=60,
            )
            assert answer.status == 200, answer.text

    tasks = [asyncio.create_task(serve(number)) for number in range(count)]
    await asyncio.sleep(CHUNKS * GAP_MS / 1000)
    try:
        yield
        assert not any(task.done() for task in tasks)
    finally:
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)


async def measured(trio: suite.Trio, trials: int, calls: int) -> list[float]:
    """Seconds until the last process refused, by trial."""
    user, found = await trio.house.user(), list[float]()
    async with in_flight(trio, calls), callers_of(trio.fleet) as callers:
        for _ in range(trials):
            made = await trio.house.admin("POST", "keys", {"user_oid": user, "limits": []}, expect=201)
            await _all(callers, made["key"], 200)
            await trio.house.admin("POST", f"keys/{made['id']}/revoke", expect=200)
            began_s = time.perf_counter()
            found.append(max(await _all(callers, made["key"], 401)) - began_s)
    return found


async def _all(callers: Sequence[Caller], secret: str, expected: int) -> list[float]:
    return await asyncio.gather(*(caller.until(secret, expected) for caller in callers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--in-flight", type=int, default=100)
    given = parser.parse_args()
    with contextmanager(suite.started_trio)() as trio:
        seconds = sorted(asyncio.run(measured(trio, given.trials, given.in_flight)))
    p99 = quantiles(seconds, n=100)[98]
    print(
        f"median {seconds[len(seconds) // 2] * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms, slowest {seconds[-1] * 1000:.0f} ms"
    )


if __name__ == "__main__":
    main()
