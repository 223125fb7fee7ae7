"""The answer as it may be handed on: a stream that runs past what was reserved for it is ended, properly, at that point.

1. Only an upstream that ignores `max_tokens`, or a call whose budget reserves what such calls are *expected* to need, gets here. At four
   fifths of the grant more is asked for, where the budget lets a reservation grow.
2. What has passed is counted by the dialect's reader: one token per event at least, or the bytes at a rate below any text's. That is
   quick and may be wrong. When it reaches the grant, the provider's own running figures decide if it sends any, else a tokenizer, off
   the event loop. An upstream that keeps to its limit is not cut because of how it slices its text.
3. The event that would go beyond is not handed on. In its place comes what a provider sends at `max_tokens`: a finish reason
   `length` for every unfinished choice, the usage if it was asked for, the end. The upstream is closed by whoever leaves the call, and
   what was handed on is billed.
4. An answer that ended without any usage is counted here as well, once its provider was left.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from msgspec.structs import replace

from app.dialects.base import Dialect, StreamReader
from app.domain.call import Meter, Quality
from app.providers.base import Answer
from app.services.context_validation import MOST_BYTES_PER_TOKEN
from app.services.estimation import FOREIGN_MARGIN_PERCENT, Estimation

ASK_AHEAD_PERCENT = 80
LEAST_GROWTH_TOKENS = 256
"""What is asked for at least, so that a stream does not ask for every few tokens."""


class StreamCap:
    def __init__(self, estimation: Estimation) -> None:
        self._estimation = estimation

    async def begun(self, answer: Answer, dialect: Dialect, meter: Meter) -> Answer:
        """An answer as it may be handed on: a unary one with its usage known, a stream that ends where its grant ends."""
        if answer.chunks is None and meter.usage is None:
            await self._estimation.counted(meter, dialect.texts_of(answer.body))
        return self.capped(answer, meter)

    async def ended(self, answer: Answer, meter: Meter) -> None:
        """Its provider was left, after a whole answer."""
        if answer.reader is not None and meter.usage is None and meter.quality is Quality.ESTIMATED:
            await self._estimation.counted(meter, answer.reader.texts())

    def capped(self, answer: Answer, meter: Meter) -> Answer:
        """The same answer; its stream, where a grant limits it, ends there at the latest."""
        if answer.chunks is None or answer.reader is None or meter.granted_tokens is None:
            return answer
        return replace(answer, chunks=CappedChunks(answer.chunks, answer.reader, meter, self._estimation))


class CappedChunks:
    """`Answer.chunks` up to the grant."""

    __slots__ = ("_ask_at", "_chunks", "_count_at", "_estimation", "_is_over", "_meter", "_reader")

    def __init__(
        self, chunks: AsyncIterator[bytes], reader: StreamReader, meter: Meter, estimation: Estimation
    ) -> None:
        self._chunks = chunks
        self._reader = reader
        self._meter = meter
        self._estimation = estimation
        self._is_over = False
        self._ask_at = self._next_ask()
        self._count_at = 0
        """By the reader's count: below this a better count is known to be within the grant."""

    def __aiter__(self) -> CappedChunks:
        return self

    async def __anext__(self) -> bytes:
        if self._is_over:
            raise StopAsyncIteration
        reader, meter = self._reader, self._meter
        before = reader.delivered_tokens
        chunk = await anext(self._chunks)
        granted = meter.granted_tokens or 0
        if meter.grow is not None and reader.delivered_tokens >= self._ask_at:
            granted = await self._grown(granted, reader.delivered_tokens)
        if reader.delivered_tokens > meter.booked_tokens and meter.book_ahead is not None:
            await meter.book_ahead()  # before it is handed on: a process that dies has charged for it
        if reader.delivered_tokens <= max(granted, self._count_at) or reader.delivered_tokens == before:
            return chunk
        if reader.is_complete or await self._is_within(granted):
            return chunk
        return self._cut(before)

    async def _grown(self, granted: int, delivered: int) -> int:
        """Ask for more: twice as much, up to the most there can be. Where there is no more, it is asked for once again at the end."""
        grow, most = self._meter.grow, self._most()
        if grow is None or granted >= most:
            self._ask_at = most + 1
            return granted
        wanted = min(most, max(2 * granted, granted + LEAST_GROWTH_TOKENS, delivered))
        now = max(granted, await grow(wanted))
        self._meter.granted_tokens = now
        self._ask_at = self._next_ask() if now > granted else max(granted + 1, delivered + 1)
        return now

    def _next_ask(self) -> int:
        return (self._meter.granted_tokens or 0) * ASK_AHEAD_PERCENT // 100

    def _most(self) -> int:
        estimate = self._meter.estimate
        return estimate.completion_tokens if estimate else 0

    async def _is_within(self, granted: int) -> bool:
        """Whether what has passed is within the grant after all, counted better than the reader does."""
        reader, model = self._reader, self._meter.model
        if reader.usage is not None:
            return self._until(reader.usage.completion_tokens, granted)
        if model is None:
            return False
        counted = await self._estimation.output_tokens(reader.texts(), model)
        if reader.pieces <= granted:
            # Only its bytes speak against it, and an upstream may put many tokens into an event: it must surely be past.
            return self._until(reader.piece_bytes // MOST_BYTES_PER_TOKEN if counted is None else counted, granted)
        # More events than tokens were granted, and few events hold less than a token: it must surely be within.
        return counted is not None and self._until(-(-counted * FOREIGN_MARGIN_PERCENT // 100), granted)

    def _until(self, counted: int, granted: int) -> bool:
        """Note up to where no new count is needed, if so much is within the grant."""
        if counted > granted:
            return False
        delivered = self._reader.delivered_tokens
        self._count_at = delivered + (delivered * (granted - counted)) // max(1, counted)
        return True

    def _cut(self, delivered: int) -> bytes:
        meter, reader = self._meter, self._reader
        self._is_over = True
        if meter.capped_max_tokens is None:
            meter.capped_max_tokens = max(1, (meter.granted_tokens or 0) // meter.call.choices)
        ending = reader.cut(delivered, meter.estimate.prompt_tokens if meter.estimate else 0)
        meter.delivered_tokens, meter.finish_reason, meter.quality = delivered, reader.finish_reason, Quality.PARTIAL
        if meter.answer_body is not None:
            meter.answer_body += ending
        return ending
