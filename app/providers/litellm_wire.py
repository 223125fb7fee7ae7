"""What happens on the wire while LiteLLM makes a call: watched, and kept within bounds, by hooks on the session it is lent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final, NoReturn, cast

import aiohttp

from app.dialects.base import BadAnswer
from app.dialects.sse import MAX_EVENT_BYTES
from app.providers.transport import MAX_BODY_BYTES

_GOODBYE_S: Final = 0.25
"""How long a complete answer may take to close its body, which lets the connection be used again."""


@dataclass(slots=True)
class WireExchange:
    """What really happened on the wire in one attempt; written by the hooks."""

    connect_s: float
    max_body_bytes: int = MAX_BODY_BYTES
    waits_for: str = ""
    limit: asyncio.Timeout | None = None
    _limit_after_connect: tuple[float | None, str] | None = None
    is_sent: bool = False
    fault: BaseException | None = None
    status: int | None = None
    headers: Mapping[str, str] | None = None
    response: aiohttp.ClientResponse | None = None
    is_over: bool = False
    """All of the answer is here."""
    bad: BadAnswer | None = None
    """What is wrong with the answer's bytes, whatever LiteLLM makes of them."""

    @contextmanager
    def noted(self) -> Iterator[None]:
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def connecting(self) -> None:
        if self.limit is None:
            return
        due, soonest = self.limit.when(), asyncio.get_running_loop().time() + self.connect_s
        if due is None or soonest < due:
            self._limit_after_connect = (due, self.waits_for)
            self.limit.reschedule(soonest)
            self.waits_for = "connect_timeout"

    def connected(self) -> None:
        if self.limit is not None and self._limit_after_connect is not None:
            due, self.waits_for = self._limit_after_connect
            self._limit_after_connect = None
            self.limit.reschedule(due)

    def answered(self, response: aiohttp.ClientResponse) -> None:
        """Raises: aiohttp.ClientError for a redirect: followed, it would carry the credential to an address nobody chose."""
        self.response, self.status, self.headers = response, response.status, response.headers
        if 300 <= response.status < 400:
            response.close()
            raise aiohttp.ClientPayloadError("redirect")
        if response.headers.get("Content-Encoding", "identity").lower() not in ("identity", ""):
            self.bad = BadAnswer("encoded_answer")  # unpacked, it would be as large as the upstream likes
            response.close()
            raise aiohttp.ClientPayloadError("encoded")
        response.content = cast(aiohttp.StreamReader, _CappedContent(response, self))

    async def close(self) -> None:
        """Close the connection, at once unless the answer is over: then its last bytes, the end of the body, make it reusable."""
        response, self.response = self.response, None
        if response is None:
            return
        try:
            async with asyncio.timeout(_GOODBYE_S):
                while self.is_over and await response.content.readany():
                    pass
        except (TimeoutError, aiohttp.ClientError, OSError):
            pass  # the answer is complete all the same
        finally:
            response.close()


_current: ContextVar[WireExchange | None] = ContextVar("litellm_exchange", default=None)


def hooks() -> aiohttp.TraceConfig:
    """Hooks that tell the current exchange what happens; a request of no exchange passes unseen."""

    async def starting(
        session: aiohttp.ClientSession, context: SimpleNamespace, params: aiohttp.TraceRequestStartParams
    ) -> None:
        if _current.get():
            params.headers["Accept-Encoding"] = "identity"

    async def connecting(session: aiohttp.ClientSession, context: SimpleNamespace, params: object) -> None:
        if exchange := _current.get():
            exchange.connecting()

    async def connected(session: aiohttp.ClientSession, context: SimpleNamespace, params: object) -> None:
        if exchange := _current.get():
            exchange.connected()

    async def sent(session: aiohttp.ClientSession, context: SimpleNamespace, params: object) -> None:
        if exchange := _current.get():
            exchange.is_sent = True

    async def answered(
        session: aiohttp.ClientSession, context: SimpleNamespace, params: aiohttp.TraceRequestEndParams
    ) -> None:
        if exchange := _current.get():
            exchange.answered(params.response)

    async def failed(
        session: aiohttp.ClientSession, context: SimpleNamespace, params: aiohttp.TraceRequestExceptionParams
    ) -> None:
        if (exchange := _current.get()) and exchange.status is None:
            exchange.fault = params.exception

    config = aiohttp.TraceConfig()
    config.on_request_start.append(starting)
    config.on_connection_create_start.append(connecting)
    config.on_connection_create_end.append(connected)
    config.on_request_headers_sent.append(sent)
    config.on_request_end.append(answered)
    config.on_request_exception.append(failed)
    config.freeze()
    return config


class _CappedContent:
    """An answer's body that ends where no honest answer goes on: at the cap of a body, and of a line where lines are streamed."""

    def __init__(self, response: aiohttp.ClientResponse, exchange: WireExchange) -> None:
        self._content = response.content
        self._exchange = exchange
        self._is_lines = response.headers.get("Content-Type", "").startswith(_LINES)
        self._body_bytes = self._line_bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._content, name)

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        """The one way in which LiteLLM reads."""
        async for chunk in self._content.iter_chunked(size):
            self._body_bytes += len(chunk)
            if self._body_bytes > self._exchange.max_body_bytes:
                self._end("body_too_large")
            if self._is_lines:
                end = chunk.rfind(b"\n")
                self._line_bytes = len(chunk) - end - 1 + (self._line_bytes if end < 0 else 0)
                if self._line_bytes > MAX_EVENT_BYTES:
                    self._end("event_too_large")
            yield chunk

    def _end(self, reason: str) -> NoReturn:
        self._exchange.bad = BadAnswer(reason)
        raise aiohttp.ClientPayloadError(reason)


_LINES = ("text/event-stream", "application/stream+json", "application/x-ndjson", "application/json-lines")
