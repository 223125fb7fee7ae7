"""A webhook's receiver: keeps what was posted, and answers as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType


@dataclass(frozen=True, slots=True)
class Posted:
    """One request as it came; header names in lower case."""

    path: str
    headers: dict[str, str] = field(repr=False)
    body: bytes


class WebhookReceiver:
    """`async with WebhookReceiver(status_of) as receiver:` then post to `receiver.url`.

    `status_of(posted, before)` says what to answer; `before` counts the requests with the same event id that came earlier.
    """

    def __init__(self, status_of: Callable[[Posted, int], int] = lambda posted, before: 200) -> None:
        self._status_of = status_of
        self._server: asyncio.Server | None = None
        self.received: list[Posted] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    async def __aenter__(self) -> WebhookReceiver:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Listen no more: who posts now is refused the connection. Safe to repeat."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            pairs = (line.split(": ", 1) for line in head[1:] if line)
            headers = {name.lower(): value for name, value in pairs}
            body = await reader.readexactly(int(headers["content-length"]))
            posted = Posted(head[0].split(" ")[1], headers, body)
            status = self._status_of(posted, self._seen(posted))
            self.received.append(posted)
            # A body that must never be repeated by the gateway.
            answer = b"internal words of the receiver"
            writer.write(b"HTTP/1.1 %d Said\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % (status, len(answer)))
            writer.write(answer)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _seen(self, posted: Posted) -> int:
        event_id = posted.headers.get("x-antigravity-event-id")
        return sum(each.headers.get("x-antigravity-event-id") == event_id for each in self.received)
