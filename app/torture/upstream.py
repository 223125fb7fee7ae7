"""A scripted upstream: OpenAI's chat, unary and streamed, on a loopback port, with faults on order and an invoice.

It answers under two addresses (`/0/v1`, `/1/v1`): the two endpoints of a model, so that one can fail while the other is well. How
long an answer is follows from the call's marker, so a run can be repeated. It obeys max_tokens, as providers do, and always reports
its usage when an answer is complete.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import msgspec
from aiohttp import web

from app.torture.invoice import InvoiceLine

PROMPT_TOKENS_PER_MESSAGE: Final = 3
BYTES_PER_TOKEN: Final = 6
"""A little fewer tokens than any gateway that counts four bytes to a token will have reserved."""
LONGEST_TOKENS: Final = 48
CHUNK_TOKENS: Final = 2
GAPS_S: Final = (0.0, 0.005, 0.02, 0.06)
DELAYS_S: Final = (0.0, 0.02, 0.15, 0.6)
SLOW_S: Final = 2.0
HIT_SHARE: Final = 0.6
"""Of the calls that come while an address is told to fail."""


class _Asked(msgspec.Struct):
    """What of a request matters here."""

    model: str
    messages: list[dict[str, str]]
    user: str = ""
    stream: bool = False
    max_tokens: int | None = None
    max_completion_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class _Script:
    """How one call is answered."""

    tokens: int
    finish: str
    gap_s: float
    delay_s: float
    fault: str | None
    cut_after_tokens: int


class Upstream:
    """Started and stopped by its context; `lines` is the invoice."""

    def __init__(self) -> None:
        self.lines: list[InvoiceLine] = []
        self.fails: dict[int, str] = {}
        """Which address (0 or 1) fails now, and how: 500, reset, cut or slow."""
        self.port = 0
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=1 << 20)
        app.router.add_post("/{address:[01]}/v1/chat/completions", self._answer)
        # Without cancellation a caller that hung up would be noticed at the next write only.
        # Broken connections are the script's own doing and nothing to complain about.
        logger = logging.getLogger("torture.upstream")
        logger.addHandler(logging.NullHandler())
        logger.propagate = False
        self._runner = web.AppRunner(
            app, access_log=None, logger=logger, handler_cancellation=True, shutdown_timeout=1.0
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, backlog=512)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def api_base(self, address: int) -> str:
        return f"http://127.0.0.1:{self.port}/{address}/v1"

    @property
    def in_flight(self) -> int:
        return sum(line.ending == "in_flight" for line in self.lines[-5000:])

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        asked = msgspec.json.decode(await request.read(), type=_Asked)
        line = InvoiceLine(asked.user, asked.model, arrived_at=time.time())
        self.lines.append(line)
        script = self._script(asked, int(request.match_info["address"]))
        try:
            return await self._played(request, asked, script, line)
        except (asyncio.CancelledError, ConnectionError):
            self._end(line, "hung_up")
            raise

    async def _played(
        self, request: web.Request, asked: _Asked, script: _Script, line: InvoiceLine
    ) -> web.StreamResponse:
        if script.fault == "500":
            self._end(line, "error")
            return web.json_response({"error": {"message": "scripted failure", "type": "server_error"}}, status=500)
        if script.fault == "reset":
            self._end(line, "error")
            return _aborted(request)
        line.prompt_tokens = prompt_tokens(asked.messages)
        await asyncio.sleep(script.delay_s)
        if asked.stream:
            return await self._streamed(request, asked, script, line)
        if script.fault == "cut":
            self._end(line, "error")  # nothing of it was handed over: nobody pays for that
            return _aborted(request)
        # Noted before the bytes go: from here on the gateway may have them.
        line.completion_tokens, line.written, line.is_reported = script.tokens, [(time.time(), script.tokens)], True
        answer = web.Response(body=_unary(asked, script, line), content_type="application/json")
        await answer.prepare(request)
        await answer.write_eof()
        self._end(line, "ok")
        return answer

    async def _streamed(
        self, request: web.Request, asked: _Asked, script: _Script, line: InvoiceLine
    ) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        await answer.write(_chunk(asked, {"role": "assistant", "content": ""}))
        line.written = []
        while line.completion_tokens < script.tokens:
            if script.fault == "cut" and line.completion_tokens >= script.cut_after_tokens:
                self._end(line, "cut")
                _aborted(request)
                return answer
            first = line.completion_tokens
            count = min(CHUNK_TOKENS, script.tokens - first)
            line.completion_tokens += count
            await answer.write(_chunk(asked, {"content": words(first, count)}))
            line.written.append((time.time(), line.completion_tokens))
            if script.gap_s:
                await asyncio.sleep(script.gap_s)
        await answer.write(_chunk(asked, {}, finish=script.finish))
        line.is_reported = True
        await answer.write(_usage_chunk(asked, line) + b"data: [DONE]\n\n")
        await answer.write_eof()
        self._end(line, "ok")
        return answer

    def _script(self, asked: _Asked, address: int) -> _Script:
        """Drawn from the call's marker, so that a second attempt at the same call is answered alike."""
        rng = random.Random(asked.user)  # noqa: S311 - a script, not a secret
        wanted = rng.randint(1, LONGEST_TOKENS)
        most = asked.max_tokens or asked.max_completion_tokens or LONGEST_TOKENS
        fault = self.fails.get(address)
        is_hit = fault is not None and rng.random() < HIT_SHARE
        return _Script(
            tokens=min(wanted, most),
            finish="length" if wanted > most else "stop",
            gap_s=rng.choice(GAPS_S),
            delay_s=rng.choice(DELAYS_S) + (SLOW_S if is_hit and fault == "slow" else 0.0),
            fault=fault if is_hit else None,
            cut_after_tokens=rng.randint(0, wanted),
        )

    def _end(self, line: InvoiceLine, ending: str) -> None:
        if line.ending == "in_flight":
            line.ending, line.ended_at = ending, time.time()  # type: ignore[assignment]


def prompt_tokens(messages: list[dict[str, str]]) -> int:
    """What this upstream counts for a prompt."""
    return sum(PROMPT_TOKENS_PER_MESSAGE + len(item["content"].encode()) // BYTES_PER_TOKEN for item in messages)


def words(first: int, count: int) -> str:
    """The numbered words of an answer: a reader sees at once whether one is missing or came twice."""
    return "".join(f"w{number} " for number in range(first, first + count))


def _aborted(request: web.Request) -> web.Response:
    """Break the connection off without a goodbye. What is returned goes nowhere."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def _unary(asked: _Asked, script: _Script, line: InvoiceLine) -> bytes:
    message = {"role": "assistant", "content": words(0, script.tokens)}
    choice = {"index": 0, "message": message, "finish_reason": script.finish}
    body = {"id": "chatcmpl-torture", "object": "chat.completion", "created": 0, "model": asked.model}
    return _json({**body, "choices": [choice], "usage": _usage(line)})


def _chunk(asked: _Asked, delta: dict[str, str], *, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return _event({"model": asked.model, "choices": [choice]})


def _usage_chunk(asked: _Asked, line: InvoiceLine) -> bytes:
    return _event({"model": asked.model, "choices": [], "usage": _usage(line)})


def _usage(line: InvoiceLine) -> dict[str, int]:
    total = line.prompt_tokens + line.completion_tokens
    return {
        "prompt_tokens": line.prompt_tokens,
        "completion_tokens": line.completion_tokens,
        "total_tokens": total,
    }


def _event(fields: dict[str, object]) -> bytes:
    head = {"id": "chatcmpl-torture", "object": "chat.completion.chunk", "created": 0}
    return b"data: " + _json({**head, **fields}) + b"\n\n"


def _json(body: dict[str, object]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()
