"""A TCP proxy that can be slow, frozen, refusing or cut: stands before PostgreSQL, Redis or an upstream.

It lives on the event loop of the test that opened it; all switches are plain methods and take effect at once for new bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from tests.kit.upstream import unacknowledged_bytes

Direction = Literal["to_target", "to_client"]
CutHow = Literal["reset", "close"]
Lost = Literal["question", "answer"]

CHUNK_BYTES: Final = 65_536
QUEUED_CHUNKS: Final = 64
"""Per direction and connection; a full queue stops reading, as a full network would."""
ACKNOWLEDGE_S: Final = 2.0
DEFAULT_PORTS: Final = {"postgresql": 5432, "redis": 6379, "http": 80}


@dataclass(frozen=True, slots=True)
class Target:
    """Where the proxy leads: a TCP address or the path of a Unix socket."""

    host: str = "127.0.0.1"
    port: int = 0
    socket_path: str | None = None

    @classmethod
    def of_url(cls, url: str) -> Target:
        """The server behind a `postgresql://`, `redis://`, `unix://` or `http://` URL, sockets of PostgreSQL included."""
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query))
        scheme = parts.scheme.partition("+")[0]
        if scheme == "unix":
            return cls(socket_path=unquote(parts.path))
        port = parts.port or DEFAULT_PORTS.get(scheme, 0)
        if (folder := query.get("host")) and folder.startswith("/"):
            return cls(socket_path=f"{folder}/.s.PGSQL.{query.get('port', port)}")
        return cls(host=parts.hostname or "127.0.0.1", port=port)

    async def connect(self) -> socket.socket:
        """A connected, non-blocking socket. Raises `OSError`."""
        loop = asyncio.get_running_loop()
        if self.socket_path is not None:
            family, address = socket.AF_UNIX, self.socket_path
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setblocking(False)
            await _connected(loop, sock, address)
            return sock
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await _connected(loop, sock, (self.host, self.port))
        return sock


async def _connected(loop: asyncio.AbstractEventLoop, sock: socket.socket, address: str | tuple[str, int]) -> None:
    try:
        await loop.sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise


class FaultProxy:
    """`async with FaultProxy(target) as proxy:` then connect to `proxy.port` on 127.0.0.1, or use `proxy.url(original)`.

    `target` is a port on 127.0.0.1, a `(host, port)`, the path of a Unix socket, or a URL.
    """

    def __init__(self, target: int | tuple[str, int] | Path | str | Target) -> None:
        self._target = _as_target(target)
        self.port = 0
        self.delay_ms: float = 0
        """Added to every chunk of bytes, each way. Throughput is not reduced."""
        self.accepted = 0
        """Connections accepted since the start."""
        self.bytes_seen: dict[Direction, int] = {"to_target": 0, "to_client": 0}
        """Bytes passed on since the start."""
        self._listener: socket.socket | None = None
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._cuts: dict[Direction, tuple[int, CutHow]] = {}
        self._traps: list[tuple[bytes, Lost]] = []

    async def __aenter__(self) -> FaultProxy:
        self.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refuse()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def url(self, original: str) -> str:
        """The same URL with the proxy in the server's place."""
        parts = urlsplit(original)
        query = {name: value for name, value in parse_qsl(parts.query) if name not in ("host", "port")}
        credentials, _, _ = parts.netloc.rpartition("@")
        scheme, path = parts.scheme, parts.path
        if scheme == "unix":  # redis-py's name for a Redis on a Unix socket; the database number is in the query
            scheme, path = "redis", "/" + query.pop("db", "0")
        netloc = f"{credentials}@127.0.0.1:{self.port}" if credentials else f"127.0.0.1:{self.port}"
        return urlunsplit((scheme, netloc, path, urlencode(query), parts.fragment))

    # --- switches

    def freeze(self) -> None:
        """Nothing passes and nothing is accepted, connects succeed: what a stopped (SIGSTOP) server looks like."""
        self._thawed.clear()
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)

    def thaw(self) -> None:
        """Everything held back goes on."""
        self._thawed.set()
        if self._listener is not None:
            asyncio.get_running_loop().add_reader(self._listener, self._take)

    def refuse(self) -> None:
        """New connections get ECONNREFUSED; existing ones live (see `reset_all`)."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def accept(self) -> None:
        """Listens (again), on the same port."""
        if self._listener is not None:
            return
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(512)
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        self._listener = listener
        if self._thawed.is_set():
            asyncio.get_running_loop().add_reader(listener, self._take)

    def reset_all(self) -> None:
        """RST on every connection, both sides."""
        for link in list(self._links):
            link.end("reset")

    def close_all(self) -> None:
        """FIN on every connection, both sides: a server that was shut down politely."""
        for link in list(self._links):
            link.end("close")

    def cut_after(self, bytes_count: int, direction: Direction, how: CutHow = "reset") -> None:
        """Ends the connection that carries the byte after so many more in that direction; exactly these arrive. Once."""
        self._cuts[direction] = (bytes_count, how)

    def lose_at(self, marker: bytes, lost: Lost) -> None:
        """Resets the connection that sends `marker` (in one piece): before the target gets it, or before its answer is back. Once."""
        self._traps.append((marker, lost))

    @property
    def is_to_lose(self) -> bool:
        """Whether something that `lose_at` waits for has not come yet."""
        return bool(self._traps)

    @property
    def connections(self) -> int:
        return len(self._links)

    # --- plumbing

    def _take(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(BlockingIOError, InterruptedError):
            while True:
                client, _ = self._listener.accept()
                client.setblocking(False)
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.accepted += 1
                self._spawn(self._link(client))

    def _spawn(self, coroutine: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _link(self, client: socket.socket) -> None:
        try:
            target = await self._target.connect()
        except OSError:
            client.close()
            return
        link = _Link(client, target)
        self._links.add(link)
        try:
            await link.run(self)
        finally:
            self._links.discard(link)

    async def may_pass(self) -> None:
        await self._thawed.wait()

    def sprung(self, data: bytes) -> Lost | None:
        """What is to be lost of an exchange that begins with these bytes."""
        for trap in self._traps:
            if trap[0] in data:
                self._traps.remove(trap)
                return trap[1]
        return None

    def allowance(self, direction: Direction, size: int) -> tuple[int, CutHow | None]:
        """How many of these bytes may pass, and how the connection ends after them (`None`: it goes on)."""
        if direction not in self._cuts:
            return size, None
        left, how = self._cuts[direction]
        if size <= left:
            self._cuts[direction] = (left - size, how)
            return size, None
        del self._cuts[direction]
        return left, how


class _Link:
    """One client's connection and its twin to the target."""

    def __init__(self, client: socket.socket, target: socket.socket) -> None:
        self._sockets = (client, target)
        self._end: asyncio.Future[CutHow] = asyncio.get_running_loop().create_future()
        self._loses_answer = False

    def end(self, how: CutHow) -> None:
        if not self._end.done():
            self._end.set_result(how)

    async def run(self, proxy: FaultProxy) -> None:
        """Pumps both ways until both sides have finished, one of them breaks, or `end` is called."""
        client, target = self._sockets
        pumps: asyncio.Future[None] = asyncio.ensure_future(
            _together(self._pump(proxy, client, target, "to_target"), self._pump(proxy, target, client, "to_client"))
        )
        how: CutHow = "reset"
        try:
            ends: list[asyncio.Future[Any]] = [pumps, self._end]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if self._end.done():
                how = self._end.result()
            elif pumps.exception() is None:
                how = "close"
        finally:
            pumps.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await pumps
            for sock in self._sockets:
                _finish(sock, how)

    async def _pump(self, proxy: FaultProxy, source: socket.socket, sink: socket.socket, direction: Direction) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUED_CHUNKS)

        async def read() -> None:
            loop = asyncio.get_running_loop()
            while True:
                await proxy.may_pass()
                data = await loop.sock_recv(source, CHUNK_BYTES)
                await queue.put((time.monotonic() + proxy.delay_ms / 1000, data))
                if not data:
                    return

        async def write() -> None:
            while True:
                due, data = await queue.get()
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                await proxy.may_pass()
                if not data:
                    with contextlib.suppress(OSError):
                        sink.shutdown(socket.SHUT_WR)
                    return
                await self._pass_on(proxy, sink, data, direction)

        await _together(read(), write())

    async def _pass_on(self, proxy: FaultProxy, sink: socket.socket, data: bytes, direction: Direction) -> None:
        lost = proxy.sprung(data) if direction == "to_target" else None
        if lost == "question" or (self._loses_answer and direction == "to_client"):
            self.end("reset")
            await asyncio.get_running_loop().create_future()  # cancelled by run()
        self._loses_answer = self._loses_answer or lost == "answer"
        count, cut = proxy.allowance(direction, len(data))
        await asyncio.get_running_loop().sock_sendall(sink, data[:count])
        proxy.bytes_seen[direction] += count
        if cut is None:
            return
        if sink.family != socket.AF_UNIX:
            await _until_acknowledged(sink)
        self.end(cut)
        await asyncio.get_running_loop().create_future()  # cancelled by run()


async def _together(*coroutines: Coroutine[object, object, None]) -> None:
    """Runs them until all are done; the first failure cancels the others and is raised."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _until_acknowledged(sock: socket.socket) -> None:
    """A reset discards what the peer's kernel does not have yet: wait for it."""
    deadline = time.monotonic() + ACKNOWLEDGE_S
    while unacknowledged_bytes(sock.fileno()) and time.monotonic() < deadline:
        await asyncio.sleep(0.001)


def _finish(sock: socket.socket, how: CutHow) -> None:
    if how == "reset":
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def _as_target(target: int | tuple[str, int] | Path | str | Target) -> Target:
    match target:
        case Target():
            return target
        case int():
            return Target(port=target)
        case (host, port):
            return Target(host=host, port=port)
        case Path():
            return Target(socket_path=str(target))
        case str() if "://" in target:
            return Target.of_url(target)
        case str():
            return Target(socket_path=target)
