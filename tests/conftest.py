"""Servers that every test may ask for: real ones, started once per test process, empty for each test."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from app.embedded import ValkeyServer
from app.redis_client import RedisClient, open_redis
from tests.kit.stalls import watch_stalls

# How long an example takes says how busy this machine is, and nothing about the code.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")
watch_stalls()


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    """A Valkey of this test process's own, which a test may pause, kill and start again."""
    with tempfile.TemporaryDirectory(prefix="gateway-valkey-") as home:
        server = ValkeyServer(Path(home) / "valkey", durable=False, on_progress=lambda _: None)
        server.start()
        yield server
        server.stop()


@pytest.fixture
async def redis_url(valkey: ValkeyServer) -> str:
    """The URL of an empty Valkey."""
    client = open_redis(valkey.url, timeout_ms=2_000)
    async with client.bounded() as redis:
        await redis.flushall()
    await client.redis.aclose()
    return valkey.url


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[RedisClient]:
    client = open_redis(redis_url, timeout_ms=2_000)
    async with client.pumping():
        yield client


EARLY = ("test_processes.py", "test_failed_attempts.py", "test_metrics.py", "test_killed.py")
"""Tests that time how fast processes follow, or count what a process has seen. The gateway that end-to-end tests share gathers hundreds
of models, and each change is then followed more slowly than anybody's ever would be: these come while it is young."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in EARLY)
