"""What a client notes of one call: the third witness, beside the ledger and the invoice."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Ending(StrEnum):
    ANSWERED = "answered"  # a whole answer with status 200
    REFUSED = "refused"  # a whole answer with another status
    BROKEN = "broken"  # an answer with status 200 that ended with an error event
    SILENT = "silent"  # a stream that was properly closed, without an end and without an error
    HUNG_UP = "hung_up"  # the client left on purpose
    UNANSWERED = "unanswered"  # no connection, a reset, or an answer that broke off


@dataclass(slots=True)
class CallNote:
    """One call as its client saw it. Times are Unix seconds."""

    marker: str
    """Sent as X-Request-Id and as the body's `user`: it names the call in the ledger and in the invoice."""
    gateway: int
    key_id: str
    user_oid: str
    model: str
    is_stream: bool
    max_tokens: int | None
    began_at: float
    ended_at: float = 0.0
    ending: Ending = Ending.UNANSWERED
    status: int | None = None
    error_code: str | None = None
    request_id: str | None = None
    received_words: int = 0
    """Words of the answer that arrived, in order; each is one token of the invoice."""
    is_garbled: bool = False
    """A word was missing or came twice."""
