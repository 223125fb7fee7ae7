"""HTTP over a bare socket: for requests no client library would send, and for callers who read slowly or leave early.

`RawConnection` sends any bytes and reads answers as they come, with the time of arrival. `exchange` is one throw of raw
bytes and all that came back. `SseStream` reads events. Nothing here repairs anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import ssl
import struct
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final

READ_BYTES: Final = 65_536
TIMEOUT_S: Final = 10.0
_LINE_ENDS: Final = re.compile(r"\r\n|\r|\n")
HeaderPairs = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class RawResponse:
    """An answer as it came: header names in lower case, duplicates kept; the body without its framing."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    is_complete: bool
    """False when the connection ended before the framing said so."""
    first_byte_at: float
    """Unix seconds."""
    finished_at: float

    def header(self, name: str) -> str | None:
        """The first value."""
        return next((value for key, value in self.headers if key == name.lower()), None)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name.lower()]

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    def json(self) -> object:
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class SseEvent:
    """One event: `data` lines joined by newlines, as the standard says. A comment block has `comment` and nothing else."""

    name: str
    data: str
    comment: str | None
    raw: bytes
    at: float
    """When its last byte was read, in Unix seconds."""

    def json(self) -> object:
        return json.loads(self.data)

    @property
    def is_done_marker(self) -> bool:
        return self.data == "[DONE]"


def request_bytes(
    method: str,
    target: str,
    *,
    headers: Mapping[str, str] | HeaderPairs = (),
    body: bytes | None = None,
    json_body: object = None,
    host: str | None = "127.0.0.1",
    version: str = "HTTP/1.1",
) -> bytes:
    """A request, byte for byte: headers in the given order, no value checked. `host=None` leaves Host out.

    Content-Length is added to a body unless the headers have one or a Transfer-Encoding.
    """
    pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
    names = {name.lower() for name, _ in pairs}
    if json_body is not None:
        body = json.dumps(json_body).encode()
        if "content-type" not in names:
            pairs.append(("Content-Type", "application/json"))
    if body is not None and not names & {"content-length", "transfer-encoding"}:
        pairs.append(("Content-Length", str(len(body))))
    if host is not None and "host" not in names:
        pairs.insert(0, ("Host", host))
    head = f"{method} {target} {version}\r\n" + "".join(f"{name}: {value}\r\n" for name, value in pairs) + "\r\n"
    return head.encode("latin-1") + (body or b"")


def chunked(*chunks: bytes) -> bytes:
    """The chunks in chunked framing, with the end."""
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


class RawConnection:
    """One TCP (or TLS) connection. Every read has a deadline; leaving the context closes it, rudely if it must."""

    def __init__(
        self,
        port: int,
        host: str = "127.0.0.1",
        *,
        tls: ssl.SSLContext | None = None,
        receive_buffer_bytes: int | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._host, self._port, self._tls = host, port, tls
        self._receive_buffer_bytes = receive_buffer_bytes
        self._timeout_s = timeout_s
        self._sock: socket.socket | None = None
        # Only for TLS. Without it we read the socket itself: asyncio's streams read ahead of a slow reader, and forget
        # what they have read when a reset follows it.
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._pending = b""
        self.bytes_received = 0

    async def __aenter__(self) -> RawConnection:
        self._sock = sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            if self._receive_buffer_bytes is not None:
                # Before connect, or the window is already open wide.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer_bytes)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setblocking(False)
            async with asyncio.timeout(self._timeout_s):
                await asyncio.get_running_loop().sock_connect(sock, (self._host, self._port))
                if self._tls is not None:
                    self._reader, self._writer = await asyncio.open_connection(
                        sock=sock, ssl=self._tls, server_hostname=self._host
                    )
        except BaseException:
            sock.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # --- sending

    async def send(self, data: bytes) -> None:
        """Raises `ConnectionError` when the peer is gone, `TimeoutError` when it does not read."""
        async with asyncio.timeout(self._timeout_s):
            if self._writer is None:
                await asyncio.get_running_loop().sock_sendall(self._open_socket(), data)
            else:
                self._writer.write(data)
                await self._writer.drain()

    async def send_slowly(self, data: bytes, *, piece_bytes: int, pause_s: float) -> None:
        for start in range(0, len(data), piece_bytes):
            await self.send(data[start : start + piece_bytes])
            await asyncio.sleep(pause_s)

    def finish_sending(self) -> None:
        """FIN on our side, still reading. Not over TLS, which has no half-closed connections."""
        assert self._writer is None
        self._open_socket().shutdown(socket.SHUT_WR)

    async def close(self) -> None:
        """FIN, or RST by the kernel when unread bytes are left."""
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError, TimeoutError, ssl.SSLError):
                async with asyncio.timeout(1):
                    await self._writer.wait_closed()
        self._open_socket().close()

    def reset(self) -> None:
        """RST at once."""
        sock = self._open_socket() if self._writer is None else self._writer.get_extra_info("socket")
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if self._writer is not None:
            self._writer.transport.abort()
        else:
            self._open_socket().close()

    # --- receiving

    async def receive(self, limit_bytes: int = READ_BYTES) -> bytes:
        """The next bytes; empty at the end. Raises `ConnectionResetError` on RST, `TimeoutError`."""
        if self._pending:
            data, self._pending = self._pending[:limit_bytes], self._pending[limit_bytes:]
            return data
        async with asyncio.timeout(self._timeout_s):
            if self._reader is None:
                data = await asyncio.get_running_loop().sock_recv(self._open_socket(), limit_bytes)
            else:
                data = await self._reader.read(limit_bytes)
        self.bytes_received += len(data)
        return data

    async def receive_slowly(self, total_bytes: int, *, bytes_per_second: float) -> bytes:
        """Reads at a fixed rate, ten times a second; ends early at the end of the connection."""
        step = max(1, int(bytes_per_second / 10))
        parts: list[bytes] = []
        received = 0
        while received < total_bytes:
            data = await self.receive(min(step, total_bytes - received))
            if not data:
                break
            parts.append(data)
            received += len(data)
            await asyncio.sleep(len(data) / bytes_per_second)
        return b"".join(parts)

    async def receive_rest(self, into: bytearray | None = None) -> bytes:
        """All until the peer closes. `into` keeps what came before a failure.

        Raises:
            ConnectionResetError: the connection ended by RST.
            TimeoutError: the peer is silent and does not close.
        """
        got = bytearray() if into is None else into
        while data := await self.receive():
            got += data
        return bytes(got)

    async def receive_until(self, mark: bytes) -> bytes:
        """Everything up to and with the mark; what came after it is kept for the next read. Raises `EOFError`."""
        got = b""
        while mark not in got:
            data = await self.receive()
            if not data:
                self._pending = got
                raise EOFError(f"the connection ended after {len(got)} bytes, before {mark!r}")
            got += data
        end = got.index(mark) + len(mark)
        self._pending = got[end:] + self._pending
        return got[:end]

    async def response(self, *, is_head: bool = False) -> RawResponse:
        """The next answer on this connection, its body unframed. Informational (1xx) answers are skipped.

        Raises:
            EOFError: the connection ended before a whole head.
        """
        head = await self.response_head()
        parts: list[bytes] = []
        is_complete = True
        try:
            if not is_head:
                async for data in self.body(head):
                    parts.append(data)
        except (EOFError, ConnectionError):
            is_complete = False
        return RawResponse(head.status, head.headers, b"".join(parts), is_complete, head.at, time.time())

    async def response_head(self) -> ResponseHead:
        while True:
            raw = await self.receive_until(b"\r\n\r\n")
            head = ResponseHead.parse(raw, time.time())
            if head.status >= 200 or head.status == 101:
                return head

    async def body(self, head: ResponseHead) -> AsyncIterator[bytes]:
        """Body bytes as they arrive. Raises `EOFError` when the framing promised more."""
        if head.status in (204, 304):
            return
        if "chunked" in (head.header("transfer-encoding") or ""):
            async for chunk in self._chunks():
                yield chunk
        elif (length := head.header("content-length")) is not None:
            async for data in self._counted(int(length)):
                yield data
        else:
            while data := await self.receive():
                yield data

    async def _chunks(self) -> AsyncIterator[bytes]:
        while True:
            line = await self.receive_until(b"\r\n")
            size = int(line.partition(b";")[0], 16)
            if size == 0:
                while await self.receive_until(b"\r\n") != b"\r\n":
                    pass
                return
            async for data in self._counted(size):
                yield data
            await self.receive_until(b"\r\n")

    async def _counted(self, size: int) -> AsyncIterator[bytes]:
        while size > 0:
            data = await self.receive(min(size, READ_BYTES))
            if not data:
                raise EOFError(f"{size} bytes of the body are missing")
            size -= len(data)
            yield data

    def _open_socket(self) -> socket.socket:
        assert self._sock is not None, "the connection was not opened"
        return self._sock


@dataclass(frozen=True, slots=True)
class ResponseHead:
    status: int
    headers: tuple[tuple[str, str], ...]
    raw: bytes
    at: float

    @classmethod
    def parse(cls, raw: bytes, at: float) -> ResponseHead:
        lines = raw.decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines[1:] if line)
        headers = tuple((name.lower(), value.strip()) for name, _, value in pairs)
        return cls(int(lines[0].split(" ")[1]), headers, raw, at)

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name.lower()), None)


class SseStream:
    """A streamed answer: `async with SseStream.opened(port, request) as stream: async for event in stream: …`.

    Ends when the body does. `is_complete` then says whether the framing was honoured; a broken connection does not raise,
    it makes the stream incomplete. To leave early: `hang_up()` (FIN) or `reset()`.
    """

    def __init__(self, connection: RawConnection, head: ResponseHead) -> None:
        self.connection = connection
        self.head = head
        self.events: list[SseEvent] = []
        """All events read so far, comments included."""
        self.is_complete: bool | None = None
        self._source = self._parse()

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(cls, port: int, request: bytes, *, timeout_s: float = TIMEOUT_S) -> AsyncIterator[SseStream]:
        async with RawConnection(port, timeout_s=timeout_s) as connection:
            await connection.send(request)
            stream = cls(connection, await connection.response_head())
            try:
                yield stream
            finally:
                await stream._source.aclose()

    @property
    def status(self) -> int:
        return self.head.status

    def __aiter__(self) -> SseStream:
        return self

    async def __anext__(self) -> SseEvent:
        return await self._source.__anext__()

    async def take(self, count: int) -> list[SseEvent]:
        """The next so many data events; fewer at the end."""
        taken: list[SseEvent] = []
        while len(taken) < count:
            try:
                event = await self.__anext__()
            except StopAsyncIteration:
                break
            if event.comment is None:
                taken.append(event)
        return taken

    async def rest(self) -> list[SseEvent]:
        """All remaining data events."""
        return [event async for event in self if event.comment is None]

    async def hang_up(self) -> None:
        await self.connection.close()

    def reset(self) -> None:
        self.connection.reset()

    async def _parse(self) -> AsyncGenerator[SseEvent, None]:
        buffer = b""
        body = self.connection.body(self.head)
        self.is_complete = None
        try:
            async for data in body:
                buffer += data
                *blocks, buffer = _blocks(buffer)
                for block in blocks:
                    event = _event(block, time.time())
                    self.events.append(event)
                    yield event
            self.is_complete = not buffer.strip()
        except (EOFError, ConnectionError):
            self.is_complete = False


def _blocks(buffer: bytes) -> list[bytes]:
    """Cuts at empty lines, whichever line ends are used; the last element is what is not finished yet."""
    found: list[bytes] = []
    while True:
        ends = [(at, mark) for mark in (b"\n\n", b"\r\n\r\n", b"\r\r") if (at := buffer.find(mark)) >= 0]
        if not ends:
            return [*found, buffer]
        at, mark = min(ends)
        found.append(buffer[: at + len(mark)])
        buffer = buffer[at + len(mark) :]


def _event(block: bytes, at: float) -> SseEvent:
    name, data, comments = "", [], []
    # Not splitlines(): to SSE, U+2028 and its like are text.
    for line in _LINE_ENDS.split(block.decode("utf-8", "replace").removeprefix("\ufeff")):
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match field:
            case "data":
                data.append(value)
            case "event":
                name = value
            case "" if line.startswith(":"):
                comments.append(value)
            case _:
                pass
    is_comment = not data and not name and bool(comments)
    return SseEvent(name, "\n".join(data), "\n".join(comments) if is_comment else None, block, at)


async def exchange(port: int, data: bytes, *, host: str = "127.0.0.1", timeout_s: float = TIMEOUT_S) -> bytes:
    """Sends raw bytes, reads until the peer closes or is silent for `timeout_s`; a reset ends the reading too."""
    parts: list[bytes] = []
    async with RawConnection(port, host, timeout_s=timeout_s) as connection:
        await connection.send(data)
        with contextlib.suppress(ConnectionError, TimeoutError):
            while received := await connection.receive():
                parts.append(received)
    return b"".join(parts)


async def call(
    port: int,
    method: str,
    target: str,
    *,
    headers: Mapping[str, str] | HeaderPairs = (),
    json_body: object = None,
    body: bytes | None = None,
    timeout_s: float = TIMEOUT_S,
) -> RawResponse:
    """One well-formed request on a connection of its own."""
    async with RawConnection(port, timeout_s=timeout_s) as connection:
        await connection.send(request_bytes(method, target, headers=headers, json_body=json_body, body=body))
        return await connection.response(is_head=method == "HEAD")


async def pipelined(port: int, requests: Sequence[bytes], *, timeout_s: float = TIMEOUT_S) -> list[RawResponse]:
    """All requests in one write; the answers that came, in order, until the connection ended or all are answered."""
    answers: list[RawResponse] = []
    async with RawConnection(port, timeout_s=timeout_s) as connection:
        await connection.send(b"".join(requests))
        with contextlib.suppress(EOFError, ConnectionError, TimeoutError):
            for _ in requests:
                answers.append(await connection.response())
    return answers
