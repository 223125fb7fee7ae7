"""The HTTP server is uvicorn's, but for how an answer is written: that was the largest single part of a call's CPU.

uvicorn looks at every header with two regular expressions and up to six comparisons, and hands head and body to the socket one after the
other: two system calls, for uvloop writes at once. Here:

1. A header's name is looked at once, and remembered as it is written; there are some fifty. The values are checked all together: a head
   with a control character in it beyond the ends of its own lines holds a value that could pass for a header of its own.
2. The head waits for the first part of the body and leaves with it. ASGI asks servers to do so anyway.
3. An event is made when somebody waits for it. Of a request that came in one piece nobody does.

What an application may send and what is written for it, byte for byte, is uvicorn's (tests/test_http_server.py holds them together), and
so are parsing, pipelining, keep-alive and the way out. Under another server the application serves the same for more CPU.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote

import httptools
from starlette.types import Message
from uvicorn.protocols.http.httptools_impl import HEADER_RE, STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

CONTROLS: Final = bytes([*range(0x09), *range(0x0A, 0x20), 0x7F])
"""All but the tab, which a value may hold."""
FRAMING: Final = frozenset({b"content-length", b"transfer-encoding", b"connection"})
"""What says where an answer ends, and what becomes of its connection."""
MAX_NAMES: Final = 1024
"""Names are ours and few. Were a caller ever able to choose one, this bounds what is remembered of them."""


class _Names(dict[bytes, bytes]):
    """By name as it was given: as it is written, behind the end of the line before it."""

    def __init__(self) -> None:
        super().__init__()
        self.framing: dict[bytes, bytes] = {}
        """Of those that say something of the framing: in lower case."""

    def __missing__(self, name: bytes) -> bytes:
        """Look at a name. Raises: RuntimeError where it is none."""
        if HEADER_RE.search(name):
            raise RuntimeError("Invalid HTTP header name.")
        lower = name.lower()
        shown = b"\r\n" + lower + b": "
        if lower in FRAMING:
            self.framing[name] = lower
        if lower in FRAMING or len(self) < MAX_NAMES:
            self[name] = shown
        return shown


_names = _Names()


class LateEvent:
    """An `asyncio.Event` that costs nothing until somebody waits for it."""

    __slots__ = ("_event", "_is_set")

    def __init__(self) -> None:
        self._is_set = False
        self._event: asyncio.Event | None = None

    def set(self) -> None:
        self._is_set = True
        if self._event is not None:
            self._event.set()

    def clear(self) -> None:
        self._is_set = False
        if self._event is not None:
            self._event.clear()

    async def wait(self) -> None:
        if self._is_set:
            return
        if self._event is None:
            self._event = asyncio.Event()
        await self._event.wait()


class Answering(RequestResponseCycle):
    """One request and its answer. What is inherited reads the request."""

    head = b""
    """Of the answer, while it waits for the first part of the body."""

    async def send(self, message: Message) -> None:  # type: ignore[override] # uvicorn has a type of its own for the same
        """ASGI's. Raises: RuntimeError where the messages make no answer."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if not self.response_started:
            if kind != "http.response.start":
                raise RuntimeError(f"Expected ASGI message 'http.response.start', but got '{kind}'.")
            self.response_started = True
            self.waiting_for_100_continue = False
            self.head = self._head_of(message["status"], message.get("headers", ()))
        elif self.response_complete:
            raise RuntimeError(f"Unexpected ASGI message '{kind}' sent, after response already completed.")
        elif kind != "http.response.body":
            raise RuntimeError(f"Expected ASGI message 'http.response.body', but got '{kind}'.")
        else:
            self._write(message.get("body", b""), more_body=message.get("more_body", False))

    def _head_of(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        names, framing = _names, _names.framing
        pairs = [*self.default_headers, *headers]
        lines = [names[name] + value for name, value in pairs]
        says_close = False
        for name, value in pairs:
            if name in framing:
                says_close |= self._says_close(framing[name], value)
        if not (self.keep_alive or says_close):
            lines.append(b"\r\nconnection: close")
        if self.chunked_encoding is None and self.scope["method"] != "HEAD" and status not in (204, 304):
            self.chunked_encoding = True
            lines.append(b"\r\ntransfer-encoding: chunked")
        fields = b"".join(lines)
        if len(fields) - len(fields.translate(None, CONTROLS)) != 2 * len(lines):
            raise RuntimeError("Invalid HTTP header value.")
        return b"".join((STATUS_LINE[status][:-2], fields, b"\r\n\r\n"))

    def _says_close(self, name: bytes, value: bytes) -> bool:
        """Note what a header says of the framing. Returns whether it is the one that closes the connection."""
        if name == b"content-length":
            if self.chunked_encoding is None:
                self.expected_content_length = int(value)
                self.chunked_encoding = False
        elif name == b"transfer-encoding":
            if value.lower() == b"chunked":
                self.expected_content_length = 0
                self.chunked_encoding = True
        elif b"close" in [token.lower().strip() for token in value.split(b",")]:
            self.keep_alive = False
            return True
        return False

    def _write(self, body: bytes, *, more_body: bool) -> None:
        """Write a part of the body, with the head if it is the first. Raises: RuntimeError, ere the client would read a lie."""
        if self.scope["method"] == "HEAD":
            self.expected_content_length, body = 0, b""
        elif self.chunked_encoding:
            body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + (b"" if more_body else b"0\r\n\r\n")
        else:
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0:
                raise RuntimeError("Response content longer than Content-Length")
        head, self.head = self.head, b""
        self.transport.write(head + body)
        if more_body:
            return
        if self.expected_content_length:
            raise RuntimeError("Response content shorter than Content-Length")
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()


class HttpServer(HttpToolsProtocol):
    """One connection. Only the answers are ours: uvicorn's own way to begin one, without what this process never switches on."""

    def on_headers_complete(self) -> None:
        parser, scope = self.parser, self.scope
        version = parser.get_http_version()
        scope["method"] = parser.get_method().decode("ascii")
        if version != "1.1":
            scope["http_version"] = version
        if parser.should_upgrade() and self._should_upgrade():
            return
        url = httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        scope["path"] = self.root_path + (unquote(path) if "%" in path else path)
        scope["raw_path"] = self.root_path.encode("ascii") + url.path
        scope["query_string"] = url.query or b""
        before = self.cycle
        self.cycle = Answering(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=LateEvent(),  # type: ignore[arg-type] # what is asked of one is all here
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        if before is None or before.response_complete:  # type: ignore[redundant-expr] # None before the first one
            self._start_asgi_task(self.cycle, self.app)
        else:  # sent without waiting for the answer before it: waits for its turn
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))
