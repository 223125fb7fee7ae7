"""Redis and PostgreSQL restarted under load: `python -m bench.restarts --times 4`.

Three gateways behind the shipped nginx, on durable stores of their own; calls of two keys all the time, a third of them streams, one
key with a limit and a soft budget, one with none. Then each store is stopped and started again, and killed and started again, so many
times. What is told: how many calls failed (none may), how long the slowest took, whether each call is in the ledger once and the
ledger's sum is what the upstream charged.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from app.embedded import PostgresServer, ValkeyServer
from tests.e2e.conftest import environment
from tests.e2e.house import House
from tests.e2e.site import PRICE, nanousd
from tests.kit import raw_http
from tests.kit.front import Front
from tests.kit.load import percentile
from tests.kit.mixed_load import STREAMED, UNARY, MixedLoad
from tests.kit.processes import GatewayFleet, UpstreamProcess

GATEWAYS = 3
AWAY_S = 1.0
"""Between its end and its start: a restart as an upgrade makes it."""
BETWEEN_S = 6.0
BOOKED_WITHIN_S = 90.0


@dataclass(slots=True)
class Outcome:
    calls: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    restarts: list[str] = field(default_factory=list)
    slowest_s: list[float] = field(default_factory=list)
    """Of the unary calls around each restart."""
    p99_s: float = 0.0
    recorded: int = 0
    charged: int = 0
    """Calls that the upstream has on its invoice."""
    cost_nanousd: int = 0
    due_nanousd: int = 0

    @property
    def lines(self) -> list[str]:
        slowest = ", ".join(
            f"{name} {slow * 1000:.0f}" for name, slow in zip(self.restarts, self.slowest_s, strict=True)
        )
        return [
            f"{self.calls:,} calls, {self.faults.total()} failed: {dict(self.faults) or 'none'}",
            f"p99 of all that are not streamed {self.p99_s * 1000:.0f} ms; the slowest around each restart, in ms: {slowest}",
            f"{self.recorded:,} records of {self.charged:,} calls of the upstream; "
            f"cost {self.cost_nanousd:,} of {self.due_nanousd:,} nanodollars",
        ]


async def restarted(
    postgres: PostgresServer, valkey: ValkeyServer, home: Path, *, times: int, rate: float, between_s: float
) -> Outcome:
    env = environment(postgres.url, valkey.url) | {
        "DATA_DIR": str(home / "data"),
        "REDIS_TIMEOUT_MS": "200",
        "TRUSTED_PROXIES": "127.0.0.1",
    }
    fleet, upstream = GatewayFleet(GATEWAYS, env), UpstreamProcess()
    try:
        await asyncio.gather(upstream.start(), *(gateway.start() for gateway in fleet.gateways))
        house = House(fleet[0], upstream, postgres.url, valkey.url, env)
        async with Front([gateway.port for gateway in fleet.gateways]) as front:
            return await _loaded(house, fleet, front, postgres, valkey, times, rate, between_s)
    finally:
        for gateway in fleet.gateways:
            gateway.destroy()
        upstream.destroy()


async def _loaded(
    house: House,
    fleet: GatewayFleet,
    front: Front,
    postgres: PostgresServer,
    valkey: ValkeyServer,
    times: int,
    rate: float,
    between_s: float,
) -> Outcome:
    outcome = Outcome()
    unary, streamed = await house.model(UNARY), await house.model(STREAMED)
    await house.upstream.script(by_model={unary: UNARY, streamed: STREAMED})
    limits = [{"kind": "requests", "limit": 1_000_000, "window_seconds": 60}]
    budgets = [{"period": "monthly", "soft_limit_usd": "1000"}]
    keys = [await house.key(), await house.key(limits=limits, budgets=budgets)]
    await house.known_to(fleet.gateways)
    load = MixedLoad(front.port, keys, unary, streamed, per_second=rate)
    for gateway in fleet.gateways:  # a key is known to whom it has called
        for key in keys:
            await _known(gateway.port, key, unary)
    async with asyncio.TaskGroup() as group:
        group.create_task(load.run())
        await asyncio.sleep(between_s / 2)
        for server, how in [(valkey, "stop"), (postgres, "stop"), (valkey, "kill"), (postgres, "kill")] * times:
            before = len(load.took_s)
            await _away(server.stop if how == "stop" else server.kill, server.start)
            await asyncio.sleep(between_s)
            outcome.restarts.append(f"{server.label} {how}")
            outcome.slowest_s.append(max(load.took_s[before:], default=0.0))
        load.is_over.set()
    outcome.calls, outcome.faults = load.calls, Counter(load.faults)
    outcome.p99_s = percentile(load.took_s, 99)
    await _book(house, (unary, streamed), outcome)
    return outcome


async def _away(end: Callable[[], object], start: Callable[[], object]) -> None:
    await asyncio.to_thread(end)
    await asyncio.sleep(AWAY_S)
    await asyncio.to_thread(start)


async def _known(port: int, key: str, model: str) -> None:
    async with asyncio.timeout(10):
        while True:
            answer = await raw_http.call(
                port,
                "POST",
                "/v1/chat/completions",
                headers={"Authorization": f"Bearer {key}"},
                json_body={"model": model, "messages": [{"role": "user", "content": "Say hello."}]},
            )
            if answer.status == 200:
                return
            await asyncio.sleep(0.1)


async def _book(house: House, models: tuple[str, ...], outcome: Outcome) -> None:
    """Once the ledger has as many as the upstream's invoice, or at the latest after `BOOKED_WITHIN_S`."""
    invoice = await house.upstream.settled(timeout_s=30)
    dues = [invoice.of_model(model) for model in models]
    outcome.charged = sum(len(due.lines) for due in dues)
    outcome.due_nanousd = sum(due.cost_nanousd(dict.fromkeys(models, PRICE)) for due in dues)
    deadline = time.monotonic() + BOOKED_WITHIN_S
    while True:
        summary = await house.admin("GET", "usage/summary?group_by=model")
        rows = [item for item in summary.get("items", ()) if item["model"] in models]
        outcome.recorded = sum(row["requests"] for row in rows)
        outcome.cost_nanousd = sum(nanousd(row["cost_usd"]) for row in rows)
        if outcome.recorded >= outcome.charged or time.monotonic() > deadline:
            return
        await asyncio.sleep(0.5)


def measured(*, times: int, rate: float = 80.0, between_s: float = BETWEEN_S) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="bench-restarts-") as folder:
        home = Path(folder)
        postgres = PostgresServer(home / "postgres", durable=True, on_progress=lambda _: None)
        valkey = ValkeyServer(home / "valkey", durable=True, on_progress=lambda _: None)
        postgres.start()
        valkey.start()
        try:
            return asyncio.run(restarted(postgres, valkey, home, times=times, rate=rate, between_s=between_s))
        finally:
            valkey.stop()
            postgres.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=4, help="each store is stopped so often, and killed so often")
    parser.add_argument("--rate", type=float, default=80.0, help="calls a second")
    asked = parser.parse_args()
    outcome = measured(times=asked.times, rate=asked.rate)
    for line in outcome.lines:
        print(line, flush=True)
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    sys.exit(main())
