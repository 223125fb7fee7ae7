"""One call: what was asked (`Call`), what it is thought to need (`Estimate`), and what became of it (`Meter`)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from enum import StrEnum

import msgspec

from app.domain.budget import BudgetState
from app.domain.catalog import Endpoint, Model
from app.domain.identity import Identity
from app.domain.limits import ClaimState
from app.domain.media import NO_MEDIA, Media
from app.domain.money import NanoUsd
from app.domain.pricing import Cost, Price, Usage
from app.domain.trace import TraceContext


class Call(msgspec.Struct, frozen=True):
    """A request as its dialect read it. `fields` are the body's top-level members, each value still raw JSON."""

    dialect: str
    model: str
    is_stream: bool
    wants_usage: bool
    """The caller asked for the usage chunk of a stream; otherwise it is asked for and hidden."""
    max_tokens: int | None
    choices: int
    prompt_bytes: int
    """Bytes of everything the model reads; the first estimate of its prompt."""
    images: int
    """Pieces that are not text, as prices count them; `media` says what they are."""
    body: bytes
    fields: Mapping[str, msgspec.Raw]
    media: Media = NO_MEDIA
    inputs: int = 1
    """Separate prompts in one request (texts to embed, say): each may fill the model's window by itself."""
    form: tuple[bytes, bytes] | None = None
    """Boundary and body of a request that is a form with files; `body` then says in JSON what stood in it."""
    headers: tuple[tuple[str, str], ...] = ()
    """Of the caller's headers those that its protocol's upstream is told, see `Dialect.passes_headers`."""

    def __repr__(self) -> str:
        """Without the words of the caller's."""
        return f"Call(dialect={self.dialect!r}, model={self.model!r}, prompt_bytes={self.prompt_bytes})"


class EstimateKind(StrEnum):
    BYTES = "bytes"
    TOKENIZER = "tokenizer"


class Estimate(msgspec.Struct, frozen=True):
    """What a call is thought to need before it is made. `completion_tokens` is the most it may produce, over all choices."""

    prompt_tokens: int
    completion_tokens: int
    kind: EstimateKind = EstimateKind.BYTES
    prompt_bound: int = 0
    """No prompt of this size has more tokens: what money is reserved for, where `prompt_tokens` is what is likely."""

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Quality(StrEnum):
    """How well the usage is known: the provider's figures, what was seen before a break, or a guess."""

    EXACT = "exact"
    PARTIAL = "partial"
    ESTIMATED = "estimated"


class Outcome(StrEnum):
    OK = "ok"
    CLIENT_CANCELLED = "client_cancelled"
    TRUNCATED = "truncated"
    UPSTREAM_ERROR = "upstream_error"
    TIMEOUT = "timeout"
    REFUSED = "refused"
    INTERRUPTED = "interrupted"
    LOST = "lost"


class AttemptBill(msgspec.Struct, frozen=True):
    """What one failed attempt costs."""

    usage: Usage
    quality: Quality
    price: Price | None
    cost: Cost


class Attempt(msgspec.Struct):
    """One try at one endpoint, as the record keeps it. Times are milliseconds since the call began."""

    endpoint_id: str
    provider: str
    started_ms: int
    outcome: str = "running"
    reason: str | None = None
    upstream_status: int | None = None
    first_byte_ms: int | None = None
    ended_ms: int | None = None
    bill: AttemptBill | None = None
    """What its upstream may bill although it failed."""
    is_free: bool = False
    """The next attempt costs nothing of the retry budget: this one sent nothing, or was answered well by its own lights."""


class Candidate(msgspec.Struct, frozen=True):
    """An endpoint (or a fallback model) that was considered: taken, or why it was passed over."""

    endpoint_id: str
    verdict: str


class Meter(msgspec.Struct):
    """What became of one call; filled in as it passes, read once when the record is written."""

    request_id: str
    client_request_id: str | None
    identity: Identity
    call: Call
    created_at: datetime
    started_s: float
    """Monotonic clock; every `*_ms` counts from here."""

    identify: Callable[[], Awaitable[Identity]] | None = None
    """Who its credential is by now. None: a call that nobody made with a credential."""
    model: Model | None = None
    estimate: Estimate | None = None
    endpoint: Endpoint | None = None
    """The endpoint that answers, once one does."""
    attempts: list[Attempt] = []
    candidates: list[Candidate] = []
    limits: tuple[ClaimState, ...] = ()
    budgets: tuple[BudgetState, ...] = ()
    granted_tokens: int | None = None
    """Output tokens that a hard budget has reserved for, over all choices; a stream is ended there. None: no hard budget."""
    grow: Callable[[int], Awaitable[int]] | None = None
    """Ask for more than was granted: takes the tokens wanted in all and returns those granted in all. None: there is no more."""
    booked_tokens: int = 0
    """Output tokens that are charged already, should this process die now; a stream under a hard budget is never ahead of them."""
    book_ahead: Callable[[], Awaitable[None]] | None = None
    """Charge for more of them, before more is handed on. None: nobody is promised anything."""
    capped_max_tokens: int | None = None
    """`max_tokens` as lowered to what the budget can pay; None when it was left alone."""

    usage: Usage | None = None
    quality: Quality = Quality.ESTIMATED
    delivered_tokens: int = 0
    """Output tokens seen passing, about; the basis of a bill when the provider's own figures never came."""
    finish_reason: str | None = None
    warnings: list[str] = []
    """For the record: what was not as it should be."""
    first_token_ms: int | None = None
    outcome: Outcome | None = None
    http_status: int = 0
    error_code: str | None = None
    error_reason: str | None = None
    duration_ms: int | None = None

    price: Price | None = None
    cost: Cost | None = None
    has_client_left: bool = False
    """Set just before the call is cancelled because its client hung up: tells that from a shutdown."""
    is_admitted: bool = False
    is_settled: bool = False
    """True once the record was handed over together with the settlement."""
    trace: TraceContext | None = None
    """Where the call stands in a trace, where traces are sent or its caller has named one."""
    answer_body: bytearray | None = None
    """The answer as delivered, kept only where content is logged."""

    @property
    def created_at_ms(self) -> int:
        """The time inside `request_id`, without reading it out of there again."""
        return round(self.created_at.timestamp() * 1000)

    @property
    def failed_nanousd(self) -> NanoUsd:
        """What its failed attempts cost."""
        return NanoUsd(sum(attempt.bill.cost.nanousd for attempt in self.attempts if attempt.bill is not None))

    @property
    def cost_nanousd(self) -> NanoUsd:
        return self.cost.nanousd if self.cost else NanoUsd(0)
