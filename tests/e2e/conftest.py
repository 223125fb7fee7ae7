"""One gateway with its stores and the scripted upstream per test process; tests take what they need of it by unique names."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.embedded import PostgresServer, ValkeyServer
from tests.e2e.house import ADMIN_TOKEN, SECRET_KEY, SHARED_SECRET, House
from tests.kit.processes import GatewayProcess, UpstreamProcess


@pytest.fixture(scope="session")
def stores() -> Iterator[tuple[PostgresServer, ValkeyServer]]:
    with tempfile.TemporaryDirectory(prefix="gateway-house-") as home:
        postgres = PostgresServer(Path(home) / "postgres", durable=False, on_progress=lambda _: None)
        valkey = ValkeyServer(Path(home) / "valkey", durable=False, on_progress=lambda _: None)
        postgres.start()
        valkey.start()
        yield postgres, valkey
        postgres.stop()
        valkey.stop()


def environment(database_url: str, redis_url: str) -> dict[str, str]:
    return {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "SECRET_KEY": SECRET_KEY,
        "ADMIN_TOKEN": ADMIN_TOKEN,
        "GATEWAY_SHARED_SECRET": SHARED_SECRET,
        "UPSTREAM_PRIVATE_HOSTS": "loopback",
        # These machines stall for longer than a production network does; what is tested here is not the time-out.
        "REDIS_TIMEOUT_MS": "3000",
    }


@pytest.fixture(scope="session")
def house(stores: tuple[PostgresServer, ValkeyServer]) -> Iterator[House]:
    postgres, valkey = stores
    env = environment(postgres.url, valkey.url)
    gateway, upstream = GatewayProcess(env), UpstreamProcess()

    async def start() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(gateway.start())
            group.create_task(upstream.start())

    try:
        asyncio.run(start())
        yield House(gateway, upstream, postgres.url, valkey.url, env)
    finally:
        gateway.destroy()
        upstream.destroy()
