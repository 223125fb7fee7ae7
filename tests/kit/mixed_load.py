"""So many calls a second, a third of them streams, each on a connection of its own, until it is told to end. What went wrong is kept."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field

from tests.kit import raw_http
from tests.kit.pace import paced
from tests.kit.raw_http import request_bytes
from tests.kit.scenario import Scenario

STREAM_CHUNKS = 20
UNARY = Scenario(delay_ms=20)
STREAMED = Scenario(chunks=STREAM_CHUNKS, completion_tokens=STREAM_CHUNKS, gap_ms=50)
"""A stream of a second."""
MESSAGES = [{"role": "user", "content": "Say hello."}]


@dataclass(slots=True)
class MixedLoad:
    port: int
    keys: list[str]
    """In turns."""
    unary: str
    streamed: str
    per_second: float = 50.0
    faults: list[str] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)
    """Of calls that are not streamed."""
    calls: int = 0
    is_over: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        await paced(self._one, per_second=self.per_second, until=self.is_over)

    async def _one(self, number: int) -> None:
        is_stream = number % 3 == 0
        key = self.keys[number // 3 % len(self.keys)]  # each has its part of the streams
        raw = request_bytes(
            "POST",
            "/v1/chat/completions",
            headers={"Authorization": f"Bearer {key}", "Connection": "close"},
            json_body={
                "model": self.streamed if is_stream else self.unary,
                "messages": MESSAGES,
                **({"stream": True} if is_stream else {}),
            },
        )
        began_s = time.monotonic()
        try:
            answer = await raw_http.exchange(self.port, raw, timeout_s=30)
        except OSError as error:
            self.faults.append(repr(error))
            return
        self.calls += 1
        if not answer.startswith(b"HTTP/1.1 200"):
            self.faults.append(_said(answer))
        elif is_stream and not (b"data: [DONE]" in answer and answer.count(b'"content"') >= STREAM_CHUNKS):
            self.faults.append(f"cut: {answer[-300:].decode('latin-1')}")
        elif not is_stream:
            self.took_s.append(time.monotonic() - began_s)


def _said(answer: bytes) -> str:
    head, _, body = answer.partition(b"\r\n\r\n")
    try:
        return f"{head[9:12].decode()} {json.loads(body[body.index(b'{') : body.rindex(b'}') + 1])['error']['code']}"
    except (ValueError, KeyError, TypeError):
        return answer[:400].decode("latin-1")
