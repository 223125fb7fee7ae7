"""What every provider offers: `opened`, one attempt at one endpoint as an async context.

Entering waits until the answer has begun: a unary answer is complete and checked, a stream has shown its first real event. Until
then any failure is an `AttemptFailed` that another endpoint may cure. Leaving, however it happens, closes the upstream's
connection unless the answer was read to its end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import msgspec

from app.dialects.base import Dialect, StreamReader
from app.domain.call import Call, Meter
from app.domain.catalog import Endpoint


class Answer(msgspec.Struct, frozen=True):
    """An answer that has begun.

    Unary: `body` is all of it and `chunks` is None. Stream: `body` is what is to be sent at once and `chunks` yields the rest as it
    comes, whole events only; it raises AttemptFailed(kind=ANSWER_BEGUN) when the upstream breaks off.
    """

    content_type: str
    body: bytes
    chunks: AsyncIterator[bytes] | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()
    """Of the upstream's headers those that a caller may see."""
    reader: StreamReader | None = None
    """Of a stream: what has judged its events so far. Where the meter says what was granted, `chunks` yields one event at a time
    once the grant is near, so that whoever reads them can end the stream after any of them."""

    @property
    def is_stream(self) -> bool:
        return self.chunks is not None

    def __repr__(self) -> str:
        """Without the words of the model's."""
        return f"Answer({self.content_type}, is_stream={self.is_stream})"


class Provider(Protocol):
    def opened(
        self,
        call: Call,
        endpoint: Endpoint,
        dialect: Dialect,
        meter: Meter,
        *,
        max_tokens: int | None,
        deadline_s: float,
    ) -> AbstractAsyncContextManager[Answer]:
        """One attempt. `deadline_s` is the monotonic time at which the whole call must have ended; `max_tokens`, where given,
        replaces the caller's. The provider writes usage, quality, finish reason and delivered tokens into `meter` as they
        become known, and never touches its outcome or cost.

        Raises: AttemptFailed. Cancellation closes the upstream's connection and passes on.
        """
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look at an endpoint showed; `reason` is a short word, also where nothing is wrong with it."""

    is_ok: bool
    reason: str | None
    upstream_status: int | None
    took_ms: int


class Prober(Protocol):
    """A free look at an endpoint."""

    def can_look_at(self, endpoint: Endpoint) -> bool: ...

    async def look_at(self, endpoint: Endpoint) -> Seen:
        """Never raises for what the endpoint or the network does."""
        ...
