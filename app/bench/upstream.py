"""The upstream: answers at once or at a pace, as the prompt says. Run as `python -m app.bench.upstream PORT`.

A protocol on the bare event loop, its answers prepared: it must cost next to nothing beside what stands before it. It prints the
port that it listens on and ends with its standard input.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Final, cast

import uvloop

from app.bench.wire import PACED, STREAM_CHUNKS

FIRST_AFTER_S: Final = 0.05
CHUNK_EVERY_S: Final = 0.02


def _chunked(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(body), body)


def _event(fields: dict[str, object]) -> bytes:
    head = {"id": "chatcmpl-bench", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "bench"}
    return _chunked(b"data: " + json.dumps({**head, **fields}, separators=(",", ":")).encode() + b"\n\n")


def _unary() -> bytes:
    message = {"role": "assistant", "content": "A word of the answer. " * 16}
    body = json.dumps(
        {
            "id": "chatcmpl-bench",
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": "bench",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": USAGE,
        }
    ).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


USAGE: Final = {"prompt_tokens": 230, "completion_tokens": STREAM_CHUNKS, "total_tokens": 230 + STREAM_CHUNKS}
UNARY: Final = _unary()
STREAM_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKS: Final = [
    _event({"choices": [{"index": 0, "delta": {"content": f"word{number:02d} "}, "finish_reason": None}]})
    for number in range(STREAM_CHUNKS)
]
STREAM_END: Final = (
    _event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    + _event({"choices": [], "usage": USAGE})
    + _chunked(b"data: [DONE]\n\n")
    + b"0\r\n\r\n"
)


class Upstream(asyncio.Protocol):
    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.WriteTransport | None = None
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is one, and derives from nothing

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        received = self._received = self._received + data
        head_end = received.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = received[:head_end].lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(received) < head_end + 4 + length:
            return
        self._received = b""
        is_stream = received.find(b'"stream": true', head_end) > 0 or received.find(b'"stream":true', head_end) > 0
        if received.find(PACED, head_end) > 0:
            self._loop.call_later(FIRST_AFTER_S, self._begin, is_stream, CHUNK_EVERY_S)
        else:
            self._begin(is_stream, 0.0)

    def _begin(self, is_stream: bool, pace_s: float) -> None:
        if self._transport is None:
            return
        if not is_stream:
            self._transport.write(UNARY)
            return
        self._transport.write(STREAM_HEAD)
        self._chunk(0, pace_s)

    def _chunk(self, number: int, pace_s: float) -> None:
        """One write each, so that back to back means 64 segments, not one."""
        if self._transport is None:
            return
        if number == STREAM_CHUNKS:
            self._transport.write(STREAM_END)
            return
        self._transport.write(CHUNKS[number])
        if pace_s:
            self._loop.call_later(pace_s, self._chunk, number + 1, pace_s)
        else:
            self._loop.call_soon(self._chunk, number + 1, pace_s)


async def _serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Upstream, "127.0.0.1", port, backlog=1024)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.read)  # until whoever started it is gone
    server.close()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
