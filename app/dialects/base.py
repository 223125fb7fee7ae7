"""What every dialect offers. One file per wire protocol implements it; routers and providers know only this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import msgspec

from app.domain.call import Call
from app.domain.catalog import ProviderKind
from app.domain.pricing import Usage
from app.exceptions import GatewayError


class AnswerFacts(msgspec.Struct, frozen=True):
    """What we act on in a complete, unary answer."""

    usage: Usage | None
    finish_reason: str | None
    output_bytes: int
    """Size of the produced text, about; the basis of an estimate where the provider sent no usage."""
    mended: bytes | None = None
    """The body to hand on, where the upstream's own holds what no client should be given."""


@dataclass(frozen=True, slots=True)
class UpstreamProblem:
    """An error object of the upstream, in one shape for all dialects; its words are raw and must be sanitised."""

    message: str | None
    code: str | None
    type: str | None
    param: str | None
    status: int | None = None
    retry_after_s: float | None = None
    """When to come back, where the object says so."""


class BadAnswer(Exception):
    """The upstream's bytes are not an answer of this dialect; `reason` is a short word for the record."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UpstreamSaidError(Exception):
    """The upstream sent an error object where an answer was expected (a 200 body, or an event of a stream)."""

    def __init__(self, problem: UpstreamProblem) -> None:
        super().__init__("the upstream sent an error object")
        self.problem = problem


class StreamReader(Protocol):
    """Judges one stream as its bytes pass. Only whole events are ever handed on, so a broken one never reaches the caller."""

    has_begun: bool
    """True once a real event of an answer was seen (comments and blank lines are not progress)."""
    is_complete: bool
    """True once a finish reason, a terminal event or the done marker was seen: judged by us, not by the connection's end."""
    usage: Usage | None
    finish_reason: str | None
    delivered_tokens: int
    """Output tokens handed on so far, about: the basis of a bill when the stream breaks before usage came."""
    pieces: int
    """Events so far that carried a part of the answer: of most upstreams one token each."""
    piece_bytes: int
    """How much they carried."""

    def feed(self, data: bytes) -> bytes:
        """Take bytes as they came and return the bytes to hand on now (may be empty).

        What goes wrong behind good events of the same bytes is raised by the next call, `feed(b"")` included: how the bytes were
        cut never decides what the caller gets.

        Raises: UpstreamSaidError on an error event, BadAnswer on bytes that are no such stream or on an event over the size cap.
        """
        ...

    def end(self) -> bytes:
        """The upstream closed the stream: return what is still to be handed on (a missing done marker, say).

        Raises: BadAnswer("truncated") when the stream just stopped, BadAnswer("empty_stream") when nothing had begun.
        """
        ...

    def cut(self, delivered_tokens: int, prompt_tokens: int) -> bytes:
        """End the stream here, as a provider does at `max_tokens`: return the events that say so for every unfinished choice, the
        usage where the caller asked for it, and the end. The reader takes `delivered_tokens` for its count from now on, its finish
        reason is `length`, it is not complete, and nothing is handed on after it.
        """
        ...

    def texts(self) -> list[str]:
        """The words of each choice so far, to be counted; long ones only up to a bound."""
        ...


class Dialect(Protocol):
    name: str
    upstream_path: str
    """Appended to an endpoint's `api_base`."""
    passes_headers: tuple[bytes, ...]
    """Of the caller's headers those that belong to the protocol and go to an upstream that speaks it."""

    def read(self, body: bytes) -> Call:
        """Read and check a caller's request body.

        Raises: InvalidJson, InvalidRequest, MissingParameter, ParamNotAllowed (never a decoder's own exception).
        """
        ...

    def towards(self, provider: ProviderKind, call: Call) -> tuple[Dialect, Call]:
        """Dialect and call as an endpoint of this kind understands them: themselves where it speaks the protocol, otherwise the call
        retold in one that it speaks, with a dialect that tells the answer back.

        Raises: InvalidRequest for what the other protocol has no words for.
        """
        ...

    def ends_stream(self, chunk: bytes) -> bool:
        """Whether a piece of a stream, as handed on, ends it."""
        ...

    def upstream_body(self, call: Call, *, upstream_model: str, max_tokens: int | None) -> bytes:
        """The body for the upstream: the caller's, with the model renamed, usage asked for, and `max_tokens` lowered if given."""
        ...

    def read_answer(self, body: bytes) -> AnswerFacts:
        """Raises: BadAnswer (not an answer), UpstreamSaidError (an error object with status 200)."""
        ...

    def texts_of(self, body: bytes) -> list[str]:
        """The words of each choice in an answer that `read_answer` accepted, to be counted where the provider did not."""
        ...

    def read_problem(self, body: bytes) -> UpstreamProblem:
        """Find the error object in the body of a failed answer; never raises, whatever the bytes."""
        ...

    def stream_reader(self, call: Call) -> StreamReader: ...

    def error_body(self, error: GatewayError, request_id: str) -> bytes:
        """An error in this dialect's shape."""
        ...

    def error_event(self, error: GatewayError, request_id: str) -> bytes:
        """The one event that ends a stream which failed after it had begun."""
        ...
