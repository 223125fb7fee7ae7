"""How far running streams have come, so that a process which dies leaves a bill for what it delivered.

1. Twice a second the streams that have begun are looked at: a new one is noted at once, one that goes on every two seconds. The notes
   of all of them travel in one command; nothing is done for each chunk.
2. A note is the record that the reaper writes if the lease runs out: outcome `interrupted`, charged by what had been handed on.
3. Under a hard budget that is not enough, for what was handed on since the last note would be charged to nobody. Such a stream is noted
   *ahead*: charged for about as many tokens as it delivers between two notes, and not let past them before the next note is written
   (see `app.services.stream_cap`). A process that dies has then charged what it delivered, and at most one interval more.
4. While the counter store is away nothing is noted and nobody waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from app.clock import Clock
from app.domain.call import Meter
from app.domain.money import NanoUsd
from app.domain.pricing import Cost, Usage, cost_of
from app.domain.record import encode_record
from app.exceptions import DependencyUnavailable
from app.services.budget import FIRST_AHEAD_TOKENS
from app.services.recording import record_if_interrupted
from app.storage.ports import Checkpoint, Counters

LOOK_EVERY_S = 0.5
CHECKPOINT_EVERY_S = 2.0
LEAST_AHEAD_TOKENS = 16


class Checkpoints:
    def __init__(self, *, counters: Counters, clock: Clock) -> None:
        self._counters = counters
        self._clock = clock
        self._streams: dict[str, _Stream] = {}

    def add(self, meter: Meter) -> None:
        """A stream was admitted. Where a hard budget pays for it, it is noted ahead."""
        stream = self._streams[meter.request_id] = _Stream(meter)
        meter.book_ahead = None
        if meter.granted_tokens is not None:
            meter.booked_tokens = first_ahead(meter)
            meter.book_ahead = lambda: self._book_ahead(stream)

    def discard(self, meter: Meter) -> None:
        self._streams.pop(meter.request_id, None)

    async def write(self) -> None:
        """Note the streams that are due. A chore. Raises: DependencyUnavailable."""
        if not self._streams:
            return
        now_s = self._clock.monotonic()
        due = [stream for stream in self._streams.values() if stream.is_due(now_s)]
        if due:
            await self._note(due, now_s)

    async def _book_ahead(self, stream: _Stream) -> None:
        try:
            await self._note([stream], self._clock.monotonic())
        except DependencyUnavailable:
            stream.meter.booked_tokens = stream.ahead()  # it would be asked again for every chunk

    async def _note(self, streams: Sequence[_Stream], now_s: float) -> None:
        booked = [stream.ahead() for stream in streams]
        await self._counters.checkpoint(
            [stream.checkpoint(tokens, now_s) for stream, tokens in zip(streams, booked, strict=True)]
        )
        for stream, tokens in zip(streams, booked, strict=True):
            stream.meter.booked_tokens = tokens


class _Stream:
    __slots__ = ("meter", "noted_at_s", "noted_tokens")

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.noted_at_s: float | None = None
        self.noted_tokens = 0
        """Delivered at the last note."""

    def is_due(self, now_s: float) -> bool:
        meter = self.meter
        if meter.first_token_ms is None or meter.endpoint is None:
            return False
        if self.noted_at_s is None:
            return True
        return now_s - self.noted_at_s >= CHECKPOINT_EVERY_S and meter.delivered_tokens != self.noted_tokens

    def ahead(self) -> int:
        """Up to where it may be delivered once this is charged: as far again as since the last note."""
        meter = self.meter
        delivered = meter.delivered_tokens
        if meter.book_ahead is None:
            return delivered
        ahead = delivered + max(LEAST_AHEAD_TOKENS, delivered - self.noted_tokens)
        return max(delivered, min(ahead, meter.granted_tokens or 0))

    def checkpoint(self, tokens: int, now_s: float) -> Checkpoint:
        meter = self.meter
        self.noted_at_s, self.noted_tokens = now_s, meter.delivered_tokens
        prompt = meter.estimate.prompt_tokens if meter.estimate else 0
        usage = Usage(prompt, tokens, images=meter.call.images)
        price = meter.model.price_at(meter.endpoint) if meter.model and meter.endpoint else None
        cost = cost_of(usage, price) if price else Cost(NanoUsd(0))
        duration_ms = round((now_s - meter.started_s) * 1000)
        record = record_if_interrupted(meter, usage=usage, price=price, cost=cost, duration_ms=duration_ms)
        return Checkpoint(meter.request_id, NanoUsd(record.cost_nanousd), encode_record(record))


def first_ahead(meter: Meter) -> int:
    return min(FIRST_AHEAD_TOKENS * meter.call.choices, meter.granted_tokens or 0)
