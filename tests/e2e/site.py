"""Two gateways on stores of their own, which a test may hurt."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from app.embedded import PostgresServer, ValkeyServer
from tests.e2e.conftest import environment
from tests.e2e.house import HELLO, House, Json, request_id_of
from tests.kit import raw_http
from tests.kit.invoice import Price
from tests.kit.processes import GatewayFleet, GatewayProcess, UpstreamProcess
from tests.kit.raw_http import RawResponse
from tests.kit.stalls import stalled_s

PRICE = Price(input_picousd=2_500_000, output_picousd=10_000_000)
BACK_WITHIN_S = 10.0


@dataclass(slots=True)
class Site:
    """Two gateways, and stores that may be hurt."""

    fleet: GatewayFleet
    house: House
    postgres: PostgresServer
    valkey: ValkeyServer
    env: dict[str, str]

    async def call(self, gateway: GatewayProcess, key: str, model: str, **fields: object) -> RawResponse:
        return await raw_http.call(
            gateway.port,
            "POST",
            "/v1/chat/completions",
            headers={"Authorization": f"Bearer {key}"},
            json_body={"model": model, "messages": HELLO, **fields},
        )

    async def timed(self, key: str, model: str, number: int = 0) -> tuple[RawResponse, float]:
        began = time.monotonic()
        answer = await self.call(self.fleet[number % 2], key, model)
        return answer, time.monotonic() - began - stalled_s(began)

    async def known(self, key: str, model: str) -> list[RawResponse]:
        """Make every gateway know the key and the model. Returns the answers that prove it."""
        answers = []
        for gateway in self.fleet.gateways:
            async with asyncio.timeout(20):
                while (answer := await self.call(gateway, key, model)).status != 200:
                    await asyncio.sleep(0.02)
            answers.append(answer)
        return answers

    @property
    def journaled_bytes(self) -> int:
        """What waits in journals for the counter store, or for somebody who adopts it."""
        size = 0
        for journal in (Path(self.env["DATA_DIR"]) / "journal").glob("*.journal"):
            with suppress(FileNotFoundError):  # it was adopted meanwhile
                size += journal.stat().st_size
        return size

    async def is_back(self) -> None:
        """Until every gateway counts on Redis again."""
        for gateway in self.fleet.gateways:
            async with asyncio.timeout(BACK_WITHIN_S):
                while (await health_of(gateway))["redis"] != "ok" or is_away(gateway):
                    await asyncio.sleep(0.02)


def is_away(gateway: GatewayProcess) -> bool:
    log = gateway.log_text()
    return log.rfind('"counters_away"') > log.rfind('"counters_back"')


def switches(gateway: GatewayProcess) -> tuple[int, int]:
    """How often its log says that the counters went away, and that they came back."""
    log = gateway.log_text()
    return log.count('"counters_away"'), log.count('"counters_back"')


async def health_of(gateway: GatewayProcess) -> Json:
    health: Json = (await raw_http.call(gateway.port, "GET", "/health")).json()  # type: ignore[assignment]
    return health


@contextmanager
def standing_site() -> Iterator[Site]:
    """Durable stores: a kill loses nothing that they had acknowledged, but what Redis said in the last second."""
    with tempfile.TemporaryDirectory(prefix="gw-away-") as home:
        postgres = PostgresServer(Path(home) / "postgres", durable=True, on_progress=lambda _: None)
        valkey = ValkeyServer(Path(home) / "valkey", durable=True, on_progress=lambda _: None)
        postgres.start()
        valkey.start()
        env = environment(postgres.url, valkey.url) | {
            "DATA_DIR": f"{home}/data",
            "REDIS_TIMEOUT_MS": "100",
            "RESERVATION_LEASE_SECONDS": "30",
        }
        fleet, upstream = GatewayFleet(2, env), UpstreamProcess()
        try:
            asyncio.run(_started(fleet, upstream))
            house = House(fleet[0], upstream, postgres.url, valkey.url, env)
            yield Site(fleet, house, postgres, valkey, env)
        finally:
            for gateway in fleet.gateways:
                gateway.destroy()
            upstream.destroy()
            valkey.stop()
            postgres.stop()


async def _started(fleet: GatewayFleet, upstream: UpstreamProcess) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(upstream.start())
        for gateway in fleet.gateways:
            group.create_task(gateway.start())


@asynccontextmanager
async def well(site: Site) -> AsyncIterator[Site]:
    """The site, well at the beginning and mended at the end."""
    await site.is_back()
    yield site
    await asyncio.to_thread(site.postgres.start)
    await asyncio.to_thread(site.valkey.start)
    await site.is_back()


async def hurt(site: Site, how: str) -> None:
    await asyncio.to_thread(site.valkey.kill if how == "killed" else site.valkey.pause)


async def mend(site: Site, how: str) -> None:
    await asyncio.to_thread(site.valkey.start if how == "killed" else site.valkey.resume)
    await site.is_back()


async def assert_one_record_each(site: Site, model: str, answers: list[RawResponse]) -> None:
    """Every answered call has its record, none has two, and the ledger's sum is the upstream's invoice."""
    ids = [request_id_of(answer) for answer in answers if answer.status == 200]
    for request_id in ids:
        await site.house.record(request_id, within_s=20)
    due = (await site.house.upstream.settled()).of_model(model)
    summary = await site.house.admin("GET", "usage/summary?group_by=model", expect=200)
    (row,) = [item for item in summary["items"] if item["model"] == model]
    assert row["requests"] == len(due.lines) == len(set(ids))
    assert nanousd(row["cost_usd"]) == due.cost_nanousd({model: PRICE})


def nanousd(usd: str) -> int:
    whole, _, part = usd.partition(".")
    return int(whole) * 10**9 + int(part.ljust(9, "0"))
