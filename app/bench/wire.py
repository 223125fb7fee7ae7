"""The one request that every target is asked, and how a whole answer is told from half of one."""

from __future__ import annotations

import json
from typing import Final

PACED: Final = b"[paced]"
"""In the prompt: the upstream takes its time. Gateways pass prompts on as they are, so this needs nothing of theirs."""
PROMPT_BYTES: Final = 900
"""With what surrounds it about 1 KB, the reference's request."""
STREAM_CHUNKS: Final = 64


def request(*, host: str, key: str, model: str, is_stream: bool, is_paced: bool) -> bytes:
    """A whole HTTP/1.1 request."""
    mark = PACED.decode() if is_paced else "[now]"
    prompt = f"{mark} {'All that is measured is measured twice. ' * 40}"[:PROMPT_BYTES]
    asked = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 128}
    body = json.dumps({**asked, "stream": True} if is_stream else asked).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nAccept: */*\r\nUser-Agent: bench\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Answer:
    """One answer as its bytes come. Reads no more of HTTP than it needs: it must cost less than what it measures."""

    __slots__ = ("_is_chunked", "_left", "_tail", "has_body", "is_over", "status")

    def __init__(self) -> None:
        self.status = 0
        self.has_body = False
        """The first byte after the headers is here: of a stream, the first token."""
        self.is_over = False
        self._left = 0
        self._is_chunked = False
        self._tail = b""

    def feed(self, data: bytes) -> None:
        if not self.status:
            data = self._tail + data
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._tail = data
                return
            self._read_head(data[:end].lower())
            data = data[end + 4 :]
            self._tail = b""
        if not data and (self._is_chunked or self._left):
            return
        self.has_body = True
        if self._is_chunked:
            # The last chunk. An event cannot look like it: JSON holds no line of a single 0.
            self._tail = (self._tail + data)[-7:]
            self.is_over = self._tail == b"\r\n0\r\n\r\n" or data == b"0\r\n\r\n"
        else:
            self._left -= len(data)
            self.is_over = self._left <= 0

    def _read_head(self, head: bytes) -> None:
        self.status = int(head[9:12])
        at = head.find(b"\r\ncontent-length:")
        if at >= 0:
            self._left = int(head[at + 17 :].split(b"\r\n", 1)[0])
        else:
            self._is_chunked = b"\r\ntransfer-encoding: chunked" in head
