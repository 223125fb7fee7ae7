"""One client connection of HTTP/1.1: a request is written, its answer comes back as it arrives. Bytes in, bytes out.

The parser is httptools (llhttp, in C), the one that reads our own callers' requests. What is here is what a relay needs and no more:
no redirects, no cookies, no decompression, no pipelining. See `app.providers.transport` for pools and deadlines.

1. `begin` writes a request. From then on one waiter at a time is woken when something has come: the head, bytes, the end, a break.
2. What was not taken yet is bounded: past `PAUSE_BYTES` the socket is not read, and the upstream is made to wait.
3. A connection may be used again only if the answer ended as its framing said, with not a byte behind it, and both sides keep it alive.
"""

from __future__ import annotations

import asyncio
import fcntl
import select
import struct
import termios
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, cast

import httptools

PAUSE_BYTES = 64 << 10
"""Waiting unread, from here on the socket is left alone. One read brings at most what the kernel held."""
MAX_HEAD_BYTES = 64 << 10
"""No server that means well sends more headers than this, nor as much framing (chunk sizes, trailers) between two bytes of a body."""


class Headers(Mapping[str, str]):
    """Headers by name in any case. Of one that came several times, the first."""

    __slots__ = ("_fields",)

    def __init__(self) -> None:
        self._fields: dict[str, str] = {}

    def note(self, name: bytes, value: bytes) -> None:
        self._fields.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))

    def __getitem__(self, name: str) -> str:
        return self._fields[name.lower()]

    def get(self, name: str, default: Any = None) -> Any:
        """As of any mapping. Its own would raise and catch a KeyError for each header that is absent, which most are."""
        return self._fields.get(name.lower(), default)

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


class BadHttp(Exception):
    """What came is no HTTP/1.1, or none that we take."""


class Connection(asyncio.Protocol):
    """See the module. One request at a time; `is_reusable` says whether there may be another."""

    __slots__ = (
        "_ends_with_connection",
        "_framing_bytes",
        "_head_bytes",
        "_is_informational",
        "_is_paused",
        "_parser",
        "_poll",
        "_transport",
        "_unread",
        "_unread_bytes",
        "_waiter",
        "fault",
        "has_head",
        "headers",
        "idle_until_s",
        "is_complete",
        "is_reusable",
        "is_unheard",
        "status",
    )

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._poll: select.poll | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._unread: deque[bytes] = deque()
        self._unread_bytes = 0
        self._is_paused = False
        self.idle_until_s = 0.0
        self.is_reusable = False
        self.fault: BaseException | None = None
        """Why nothing more will come."""
        self.is_unheard = False
        """The upstream closed before it can have had all of the request, and without a word: nobody has acted on it."""
        self._parser = httptools.HttpResponseParser(self)
        # What clients have always forgiven servers, and nobody else reads: lines that end in LF alone, chunk sizes padded with spaces.
        self._parser.set_dangerous_leniencies(lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True)
        self._forget()

    def _forget(self) -> None:
        """Nothing of an answer is known."""
        if self._unread:
            self.taken()
        self._head_bytes = self._framing_bytes = 0
        self._is_informational = False
        self._ends_with_connection = False
        self.status = 0
        self.headers = Headers()
        self.has_head = False
        self.is_complete = True

    # ── For the exchange ──────────────────────────────────────────────────────────────────────────────────────────────

    def begin(self, request: bytes, body: bytes) -> None:
        """Write a request. What a large one leaves unsent waits here, and goes with `abort`."""
        self._forget()
        self.is_complete = self.is_reusable = False
        if self._transport is None:
            self.fault = self.fault or ConnectionResetError("closed")
            self.is_unheard = True
        elif len(body) <= PAUSE_BYTES:
            self._transport.write(request + body)
        else:
            self._transport.write(request)
            self._transport.write(body)

    def awaited(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        """A future that is done when something has come. Whoever has the connection may also fail it, and must `await` it."""
        self._waiter = loop.create_future()
        return self._waiter

    @property
    def has_something(self) -> bool:
        return bool(self._unread) or self.is_complete or self.fault is not None

    def taken(self) -> bytes:
        """All that waits unread; empty at the end of the body. Raises: the fault, once what came before it was taken."""
        if not self._unread:
            if not self.is_complete and self.fault is not None:
                raise self.fault
            return b""
        data = self._unread.popleft() if len(self._unread) == 1 else b"".join(self._unread)
        self._unread.clear()
        self._unread_bytes = 0
        if self._is_paused:
            self._is_paused = False
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()
        return data

    def abort(self) -> None:
        """Close at once, and forget what was not sent."""
        self.is_reusable = False
        if self._transport is not None:
            self._transport.abort()

    def is_stale(self) -> bool:
        """Has the upstream closed, or said something unasked? The event loop may not have seen it yet, so the kernel is asked."""
        transport = self._transport
        if not self.is_reusable or transport is None or transport.is_closing():
            return True
        if self._poll is None:
            self._poll = select.poll()
            descriptor = transport.get_extra_info("socket").fileno()
            self._poll.register(descriptor, select.POLLIN | getattr(select, "POLLRDHUP", 0))
        return bool(self._poll.poll(0))

    # ── asyncio.Protocol ──────────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one, and derives from nothing

    def data_received(self, data: bytes) -> None:
        if self.is_complete:  # unasked for: never to be taken for the next answer
            self.abort()
            return
        had_head = self.has_head
        if not had_head:
            self._head_bytes += len(data)
        self._framing_bytes += len(data)
        try:
            self._parser.feed_data(data)
            if not self.has_head and self._head_bytes > MAX_HEAD_BYTES:
                raise BadHttp("endless headers")
            if had_head and self._framing_bytes > MAX_HEAD_BYTES and not self.is_complete:
                raise BadHttp("endless framing")
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, BadHttp) as error:
            self.is_reusable = False
            if not self.is_complete:  # a surplus behind a complete answer spoils the connection, not the answer
                self._break(BadHttp(str(error)))
                self.abort()
        # A chunk's size alone is nothing to wake anybody for: who is woken and finds nothing takes it for the end.
        # The parser's callbacks have changed what was looked at above, which the type checker cannot know.
        if self._unread or self.is_complete or (self.has_head and not had_head):  # type: ignore[redundant-expr]
            self._wake()

    def eof_received(self) -> None:
        """The connection is closed by asyncio upon this; `connection_lost` tells what it means."""
        self._note_unheard()

    def connection_lost(self, exc: Exception | None) -> None:
        self._note_unheard()
        self._transport = None
        self.is_reusable = False
        if self.is_complete:
            return
        if self.has_head and self._ends_with_connection and exc is None:
            self.is_complete = True
            self._wake()
        else:
            self._break(exc or ConnectionResetError("closed before its end"))

    def pause_writing(self) -> None:
        """The body is all there already; there is nobody to tell."""

    def resume_writing(self) -> None:
        """See `pause_writing`."""

    # ── httptools ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def on_message_begin(self) -> None:
        if self.is_complete:
            raise BadHttp("an answer behind the answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.has_head:  # what follows a chunked body are trailers, which nobody asked for
            self.headers.note(name, value)

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if 100 <= self.status < 200:
            self._is_informational = True
            return
        self.has_head = True
        has_framing = "content-length" in self.headers or "transfer-encoding" in self.headers
        self._ends_with_connection = not has_framing and self.status not in (204, 304)

    def on_body(self, data: bytes) -> None:
        self._unread.append(data)
        self._unread_bytes += len(data)
        self._framing_bytes = 0
        if self._unread_bytes > PAUSE_BYTES and not self._is_paused:
            self._is_paused = True
            if self._transport is not None and not self._transport.is_closing():
                self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._is_informational:  # "100 Continue" and the like: the answer is still to come
            self._is_informational = False
            self.headers = Headers()
            return
        self.is_complete = True
        transport = self._transport
        # An answer that comes before all of the request has left (413, say) leaves bytes of it behind.
        has_sent_all = transport is not None and not transport.get_write_buffer_size()
        self.is_reusable = has_sent_all and self._parser.should_keep_alive()

    def _note_unheard(self) -> None:
        """The other side is gone. Whether it had the request only the kernel knows: what it never acknowledged nobody has read."""
        transport = self._transport
        if transport is not None and not self.is_complete and not self._head_bytes:
            self.is_unheard = self.is_unheard or bool(
                transport.get_write_buffer_size() or unacknowledged_bytes(transport)
            )

    # ── Waking ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _break(self, fault: BaseException) -> None:
        self.fault = fault
        self._wake()


def unacknowledged_bytes(transport: asyncio.Transport) -> int:
    """Of what was written, the bytes that the other side's kernel has not acknowledged; 0 where that cannot be told."""
    sock = transport.get_extra_info("socket")
    try:
        found = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
    except (OSError, ValueError, AttributeError):
        return 0
    return int(struct.unpack("i", found)[0])
