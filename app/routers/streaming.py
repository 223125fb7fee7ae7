"""The sending of one call's answer, with the call as its context: the call lives exactly as long as the sending.

1. `CallResponse` enters the call, which waits until an answer has begun; only then is a status sent, so failures before that keep
   their true one.
2. Once a call has lasted a moment, a watcher waits for the client to hang up. When it does, the call is cancelled: the upstream is
   closed, what passed is billed.
3. The last bytes are held back until the call was left. Whoever has his whole answer finds his slot free and his money settled:
   a client that calls again at once is never refused because of the call it has just finished.
4. A stream that breaks after it had begun ends with one error event, also after the settlement.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from types import TracebackType

from starlette.types import Receive

from app.dialects.base import Dialect
from app.domain.call import Meter
from app.domain.catalog import Catalog
from app.exceptions import AttemptFailed, GatewayError, InternalError
from app.middleware.exchange import Exchange
from app.providers.base import Answer
from app.routers.call_headers import call_headers
from app.services.budget import bill
from app.services.chat import Chat
from app.services.running import RunningCalls
from app.telemetry import error_answered, logger

KEEP_ALIVE_S = 15.0
"""An idle stream is given a comment this often, well under the minute after which most proxies cut a silent connection."""
WATCH_AFTER_S = 0.25
"""A call that is over sooner is over before its upstream could have been spared anything: watching it would cost more than it saves."""
KEEP_ALIVE = b": keep-alive\n\n"

STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class ClientLeft(Exception):
    """The client hung up; nobody is left to be told."""


class CallEnded(Exception):
    """This process has ended the call (its lease is lost, or the process must stop); `why` is what the caller is told."""

    def __init__(self, why: GatewayError) -> None:
        super().__init__(why.message)
        self.why = why


class CallResponse:
    def __init__(self, chat: Chat, dialect: Dialect, catalog: Catalog, meter: Meter) -> None:
        self._chat = chat
        self._dialect = dialect
        self._catalog = catalog
        self._meter = meter
        self._headers: list[tuple[bytes, bytes]] = []
        """Of a whole answer, sent once the call was left."""
        self._last = b""
        """Of the answer, sent once the call was left."""

    async def send(self, exchange: Exchange) -> None:
        """Make the call and send its answer. Raises: GatewayError while no answer has begun."""
        take = partial(self._take, exchange)
        try:
            async with Watched(exchange, self._meter, self._chat.running):
                await self._chat.answered(self._meter, self._dialect, self._catalog, take)
        except ClientLeft:
            return
        except CallEnded as ended:
            if not exchange.started:
                raise ended.why from ended
            await exchange.send_last(self._dialect.error_event(ended.why, exchange.request_id))
            return
        except AttemptFailed as failure:
            await exchange.send_last(self._dialect.error_event(failure.error, exchange.request_id))
            return
        except Exception:
            if not exchange.started:
                raise
            logger.exception("unexpected_error", request_id=exchange.request_id, path=exchange.path)
            internal = InternalError()
            error_answered(internal)
            await exchange.send_last(self._dialect.error_event(internal, exchange.request_id))
            return
        if exchange.started:
            await exchange.send_last(self._last)
        else:
            await exchange.send(200, self._headers, self._last)

    async def _take(self, exchange: Exchange, answer: Answer) -> None:
        """An answer that has begun: keep it if it is whole, send it as it comes if it is a stream."""
        if answer.chunks is None:
            bill(self._meter)  # the cost goes into the headers
            self._headers = [(b"content-type", answer.content_type.encode()), *call_headers(self._meter)]
            self._last = answer.body
        else:
            await exchange.start(200, [*STREAM_HEADERS, *call_headers(self._meter)])
            self._last = await self._send_stream(exchange, answer.body, answer.chunks)

    async def _send_stream(self, exchange: Exchange, first: bytes, chunks: AsyncIterator[bytes]) -> bytes:
        """Send what comes as it comes; return the bytes that end the stream, which are sent once the call was left."""
        last = await self._passed_on(exchange, first)
        async for chunk in chunks:
            if last and chunk:  # it was not the end after all
                await exchange.send_part(last)
            last = await self._passed_on(exchange, chunk) or (b"" if chunk else last)
        return last

    async def _passed_on(self, exchange: Exchange, chunk: bytes) -> bytes:
        if self._dialect.ends_stream(chunk):
            return chunk
        if chunk:
            await exchange.send_part(chunk)
        return b""


class Watched:
    """A context that is cancelled when the client hangs up; that cancellation leaves it as ClientLeft.

    Raises: CallEnded when this process has ended the call.
    """

    __slots__ = ("_call", "_exchange", "_meter", "_running", "_timer", "_watcher")

    def __init__(self, exchange: Exchange, meter: Meter, running: RunningCalls) -> None:
        call = asyncio.current_task()
        if call is None:
            raise RuntimeError("a call is made inside a task")
        self._call = call
        self._exchange = exchange
        self._meter = meter
        self._running = running
        self._watcher: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> None:
        self._timer = self._call.get_loop().call_later(WATCH_AFTER_S, self._begin)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if isinstance(error, asyncio.CancelledError):
                self._explain()
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if self._watcher is not None:
                await _ended(self._watcher)

    def _begin(self) -> None:
        self._watcher = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        await _until_hung_up(self._exchange, self._meter)
        self._meter.has_client_left = True
        self._call.cancel()

    def _explain(self) -> None:
        """Raises: ClientLeft, CallEnded; returns where the cancellation came from elsewhere."""
        if self._meter.has_client_left and self._call.uncancel() == 0:
            raise ClientLeft from None
        why = self._running.why_ended(self._meter.request_id)
        if why is not None and self._call.uncancel() == 0:
            raise CallEnded(why) from None


async def _ended(watcher: asyncio.Task[None]) -> None:
    """The watcher is the call's: it has ended before the call is left. It only waits, so it ends in the loop's next round, which
    `sleep(0)` gives it for a third of what `wait` costs; `wait` is for the one that was just sending a comment."""
    watcher.cancel()
    await asyncio.sleep(0)
    if not watcher.done():
        await asyncio.wait([watcher])


async def _until_hung_up(exchange: Exchange, meter: Meter) -> None:
    """Return when the client is gone, or takes nothing any more; meanwhile keep a stream that stays silent alive with comments."""
    receive: Receive = exchange.receive
    stall_s = exchange.write_stall_s
    tick_s = min(KEEP_ALIVE_S, stall_s / 4)
    stuck, stuck_s, silent_s = 0, 0.0, 0.0
    while True:
        try:
            async with asyncio.timeout(tick_s):
                message = await receive()
            if message["type"] == "http.disconnect":
                return
            continue
        except TimeoutError:
            pass
        part = exchange.sending()
        stuck_s = stuck_s + tick_s if part and part == stuck else 0.0
        stuck = part
        silent_s = silent_s + tick_s if exchange.has_been_silent() and not part else 0.0
        if stuck_s >= stall_s or (silent_s >= KEEP_ALIVE_S and not await _kept_alive(exchange)):
            meter.error_reason = "write_stalled"
            exchange.cut_off()
            return


async def _kept_alive(exchange: Exchange) -> bool:
    """Send a comment. False when the client does not even take that."""
    try:
        async with asyncio.timeout(exchange.write_stall_s):
            await exchange.send_part(KEEP_ALIVE)
    except TimeoutError:
        return False
    return True
