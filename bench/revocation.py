"""How long a revoked key goes on being served: 200 trials on three processes with 100 calls in flight.

    .venv/bin/python -m bench.revocation [--trials 200] [--in-flight 100]

Each trial makes a key known to all processes, revokes it through the first, and asks all of them until each answers 401. Prints the
time from the administrator's answer to the last process's first refusal: median, p99 and the slowest.
"""

from __future__ import annotations

import argparse
import asyncio
from contextlib import contextmanager
from statistics import quantiles

from tests.e2e import test_revocation as suite
from tests.kit import raw_http

HOLD_MS = 200
"""How long the upstream takes to answer: what keeps calls in flight, instead of a race of this machine's cores."""


async def measured(trio: suite.Trio, trials: int, in_flight: int) -> list[float]:
    from tests.kit.scenario import Scenario

    model, busy = await trio.house.model(Scenario(delay_ms=HOLD_MS)), await trio.house.key()
    user = await trio.house.user()
    done = asyncio.Event()

    async def serve(number: int) -> None:
        while not done.is_set():
            await raw_http.call(
                trio.fleet[number % 3].port,
                "POST",
                "/v1/chat/completions",
                headers=suite.bearer(busy),
                json_body={"model": model, "messages": [{"role": "user", "content": "Hello"}]},
                timeout_s=60,
            )

    found: list[float] = []
    async with asyncio.TaskGroup() as group:
        for number in range(in_flight):
            group.create_task(serve(number))
        for _ in range(trials):
            made = await trio.house.admin("POST", "keys", {"user_oid": user, "limits": []}, expect=201)
            await trio.known(suite.bearer(made["key"]))
            await trio.house.admin("POST", f"keys/{made['id']}/revoke", expect=200)
            found.append(await trio.slowest_s(suite.bearer(made["key"]), 401))
        done.set()
    return found


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
