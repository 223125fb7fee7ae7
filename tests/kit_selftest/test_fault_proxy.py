"""The proxy passes bytes unharmed until told otherwise, and then does exactly what it was told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
import redis.asyncio

from app.embedded import Servers
from tests.kit.fault_proxy import Direction, FaultProxy, Target
from tests.kit.raw_http import RawConnection
from tests.kit.stalls import stalled_s


@asynccontextmanager
async def echo_server(path: Path | None = None) -> AsyncIterator[int]:
    """Sends back what it gets; ends when the client does. Yields the port."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    if path is not None:
        server: asyncio.Server = await asyncio.start_unix_server(echo, path)
    else:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server:
        yield 0 if path is not None else server.sockets[0].getsockname()[1]


async def receive_exactly(connection: RawConnection, count: int) -> bytes:
    got = b""
    while len(got) < count:
        data = await connection.receive(count - len(got))
        assert data, f"ended after {len(got)} of {count} bytes"
        got += data
    return got


async def is_silent(connection: RawConnection) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await connection.receive()


async def test_bytes_pass_unharmed_both_ways() -> None:
    payload = bytes(range(256)) * 8_000
    async with echo_server() as port, FaultProxy(port) as proxy, RawConnection(proxy.port) as connection:
        send = asyncio.create_task(connection.send(payload))
        assert await receive_exactly(connection, len(payload)) == payload
        await send
        assert proxy.bytes_seen == {"to_target": len(payload), "to_client": len(payload)}
        connection.finish_sending()
        assert await connection.receive() == b"", "the end is passed on too"
    assert proxy.accepted == 1


async def test_a_delay_holds_each_way() -> None:
    async with echo_server() as port, FaultProxy(port) as proxy, RawConnection(proxy.port) as connection:
        proxy.delay_ms = 60
        started = time.monotonic()
        await connection.send(b"ping")
        assert await receive_exactly(connection, 4) == b"ping"
        assert 0.12 <= time.monotonic() - started < 1 + stalled_s(started)


async def test_frozen_is_silent_and_thawed_is_whole() -> None:
    async with echo_server() as port, FaultProxy(port) as proxy, RawConnection(proxy.port) as connection:
        await connection.send(b"before")
        assert await receive_exactly(connection, 6) == b"before"
        proxy.freeze()
        await connection.send(b"during")
        await is_silent(connection)
        async with RawConnection(proxy.port) as second:
            await second.send(b"new")
            await is_silent(second)
            proxy.thaw()
            assert await receive_exactly(connection, 6) == b"during"
            assert await receive_exactly(second, 3) == b"new"


async def test_refused_is_refused_and_existing_connections_live() -> None:
    async with echo_server() as port, FaultProxy(port) as proxy, RawConnection(proxy.port) as connection:
        await connection.send(b"1")
        await receive_exactly(connection, 1)
        where = proxy.port
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await RawConnection(where).__aenter__()
        await connection.send(b"2")
        assert await receive_exactly(connection, 1) == b"2"
        proxy.accept()
        assert proxy.port == where
        async with RawConnection(where) as again:
            await again.send(b"3")
            assert await receive_exactly(again, 1) == b"3"


async def test_reset_all_resets_both_sides() -> None:
    ended = asyncio.Event()
    how: list[str] = []

    async def watch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        try:
            how.append("eof" if await reader.read() == b"" else "bytes")
        except ConnectionResetError:
            how.append("reset")
        writer.close()
        ended.set()

    server = await asyncio.start_server(watch, "127.0.0.1", 0)
    async with server, FaultProxy(server.sockets[0].getsockname()[1]) as proxy, RawConnection(proxy.port) as connection:
        await receive_exactly(connection, 5)
        proxy.reset_all()
        with pytest.raises(ConnectionResetError):
            await connection.receive()
        await asyncio.wait_for(ended.wait(), 10)
        assert proxy.connections == 0
    assert how == ["reset"]


async def test_close_all_is_a_polite_end() -> None:
    async with echo_server() as port, FaultProxy(port) as proxy, RawConnection(proxy.port) as connection:
        await connection.send(b"x")
        await receive_exactly(connection, 1)
        proxy.close_all()
        assert await connection.receive() == b""


@pytest.mark.parametrize("direction", ["to_target", "to_client"])
async def test_a_cut_lets_exactly_so_many_bytes_through(direction: Direction) -> None:
    async with echo_server() as port, FaultProxy(port) as proxy, RawConnection(proxy.port) as connection:
        await connection.send(b"12345")
        await receive_exactly(connection, 5)
        proxy.cut_after(3, direction)
        await connection.send(b"abcdef")
        got = bytearray()
        with pytest.raises(ConnectionResetError):
            await connection.receive_rest(into=got)
        assert proxy.bytes_seen[direction] == 5 + 3
        assert bytes(got) == (b"abc" if direction == "to_client" else bytes(got))
        async with RawConnection(proxy.port) as again:
            await again.send(b"after")
            assert await receive_exactly(again, 5) == b"after", "a cut happens once"


async def test_a_cut_can_be_a_close() -> None:
    async with echo_server() as port, FaultProxy(port) as proxy, RawConnection(proxy.port) as connection:
        proxy.cut_after(2, "to_client", how="close")
        await connection.send(b"abcdef")
        assert await connection.receive_rest() == b"ab"


async def test_a_unix_socket_can_be_the_target(tmp_path: Path) -> None:
    path = tmp_path / "echo.sock"
    async with echo_server(path), FaultProxy(path) as proxy, RawConnection(proxy.port) as connection:
        await connection.send(b"hello")
        assert await receive_exactly(connection, 5) == b"hello"


async def test_a_target_that_is_down_ends_the_connection() -> None:
    async with echo_server() as port:
        pass
    async with FaultProxy(port) as proxy, RawConnection(proxy.port) as connection:
        assert await connection.receive() == b""


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("postgresql+asyncpg://u:p@db.test:6000/x", Target("db.test", 6000)),
        ("postgresql://u:p@/x?host=/run/pg&port=5433", Target(socket_path="/run/pg/.s.PGSQL.5433")),
        ("redis://:p@127.0.0.1/2", Target("127.0.0.1", 6379)),
        ("unix://:p@/run/valkey.sock?db=1", Target(socket_path="/run/valkey.sock")),
    ],
)
def test_the_target_is_read_from_a_url(url: str, target: Target) -> None:
    assert Target.of_url(url) == target


async def test_real_servers_work_through_it(servers: Servers) -> None:
    async with FaultProxy(servers.database_url) as pg_proxy, FaultProxy(servers.redis_url) as redis_proxy:
        connection = await asyncpg.connect(pg_proxy.url(servers.database_url))
        assert await connection.fetchval("select 41 + 1") == 42
        pg_proxy.reset_all()
        with pytest.raises((asyncpg.PostgresConnectionError, ConnectionError)):
            await connection.fetchval("select 1")
        client = redis.asyncio.Redis.from_url(redis_proxy.url(servers.redis_url), socket_timeout=10)
        try:
            assert await client.ping()
            redis_proxy.freeze()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await client.get("x")
        finally:
            redis_proxy.thaw()
            await client.aclose()
