"""What uvicorn's HTTP protocol leaves to be wished for by those who speak to the gateway without a proxy between.

1. What cannot be read as HTTP is answered in the gateway's error shape, like everything else.
2. A head must arrive in time and end somewhere: the parser would gather it for ever, and the server wait.
3. A client that offers another protocol beside a whole request (Java's own does so with `Upgrade: h2c`) is served in HTTP/1.1, as HTTP asks
   for. The parser would take the body for the other protocol and hand on none.
4. A client of HTTP/1.0 knows no chunks: its answer ends with the connection.

A request whose head comes in one piece, as nearly all do, pays two look-ups for this and no timer.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from typing import Any

from app.dialects.openai_errors import error_body
from app.domain.ids import RANDOM_BYTES, uuid7
from app.exceptions import GatewayError, HeadersTooLarge, InvalidRequest
from app.http_server import HttpServer

HEAD_BYTES = 256 * 1024
"""Far above what the application lets pass, which then says what was too large; this bounds what is gathered until it can."""
REASONS = {400: b"Bad Request", 431: b"Request Header Fields Too Large"}

_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)
_METHOD = re.compile(rb"[A-Z]{3,7} ")


class _Unbounded(int):
    """The length of a body that ends with the connection: never exceeded, and never fallen short of."""

    def __lt__(self, other: object) -> bool:
        return False

    def __sub__(self, other: object) -> _Unbounded:
        return self

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = int.__hash__


class HttpProtocol(HttpServer):
    head_s = 20.0
    """For a head to be whole, and for the first one of a connection to begin."""
    _head_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(self.head_s, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if b"pgrade:" in data and _METHOD.match(data):
            head, end, rest = data.partition(b"\r\n\r\n")
            data = _UPGRADE.sub(b"\r\nx-offers:", head) + end + rest
        super().data_received(data)
        scope: Any = self.scope
        if scope is None or "path" not in scope:
            self._wait_for_head(len(data))
            return
        if self._head_timer is not None:
            self._disarm()
        if scope["http_version"] == "1.0" and not self.cycle.response_started:
            self.cycle.chunked_encoding = False
            self.cycle.expected_content_length = _Unbounded()

    def send_400_response(self, msg: str) -> None:
        self._refuse(InvalidRequest("This cannot be read as an HTTP request."))

    def _wait_for_head(self, received: int) -> None:
        self._head_bytes += received
        if self._head_bytes > HEAD_BYTES:
            self._refuse(HeadersTooLarge())
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_s, self._head_is_late)

    def _head_is_late(self) -> None:
        """Whoever sends so slowly is not told: there is nothing yet that an answer would be to."""
        self._head_timer = None
        self.transport.close()

    def _disarm(self) -> None:
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, error: GatewayError) -> None:
        """Answer, unless another answer is under way on this connection, and close."""
        if self.transport.is_closing():
            return
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            request_id = uuid7(time.time_ns() // 1_000_000, os.urandom(RANDOM_BYTES))
            body = error_body(error, request_id)
            self.transport.write(
                b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nx-request-id: %b\r\nrequest-id: %b\r\n"
                b"x-should-retry: false\r\nconnection: close\r\n\r\n%b"
                % (error.status, REASONS[error.status], len(body), request_id.encode(), request_id.encode(), body)
            )
        self.transport.close()
