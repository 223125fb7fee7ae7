"""A server that hears: it keeps every request byte for byte as it came, and answers each with 200."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


class Ear:
    """`heard` holds (head, body) of each request. With `answer=None` it hangs up after it has heard one."""

    def __init__(self, answer: bytes | None = ANSWER) -> None:
        self._answer = answer
        self._server: asyncio.Server | None = None
        self.heard: list[tuple[bytes, bytes]] = []
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()

    def headers(self, number: int = -1) -> dict[str, str]:
        """Of one request; a name that came twice fails."""
        lines = self.heard[number][0].decode("latin-1").split("\r\n")[1:]
        pairs = [line.split(": ", 1) for line in lines if line]
        found = {name.lower(): value for name, value in pairs}
        assert len(found) == len(pairs), pairs
        return found

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n"))[:-4]
                body = await _body(head, reader)
                self.heard.append((head, body))
                if self._answer is None:
                    break
                writer.write(self._answer)
                await writer.drain()
        writer.close()


async def _body(head: bytes, reader: asyncio.StreamReader) -> bytes:
    lower = head.lower()
    if b"transfer-encoding: chunked" in lower:
        body = b""
        while size := int((await reader.readline()).split(b";")[0], 16):
            body += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
        return body
    for line in lower.split(b"\r\n"):
        if line.startswith(b"content-length: "):
            return await reader.readexactly(int(line.split(b": ")[1]))
    return b""
