"""What the scripted upstream shall do with a request: one frozen value, JSON both ways.

A chunk is a *content* event of a stream. The role-only, `message_start` and `response.created` events that go before
the first one are its preamble: `…_after_chunks=0` means headers and not a single event, `=1` preamble and one chunk.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import msgspec

UsageMode = Literal[
    "exact",  # OpenAI: in the body, or in a last chunk of its own when the request asks for it
    "missing",
    "negative",
    "strings",
    "floats",
    "nulls",
    "nan",  # the literal NaN, which is not JSON
    "huge",
    "mismatched",  # the total is not the sum of its parts
    "in_content_chunk",  # on the last chunk that carries content, asked for or not
    "on_finish_chunk",  # on the chunk with the finish reason, asked for or not
    "every_chunk",  # running figures on every chunk, the last one on a chunk of its own
]
Framing = Literal["chunked", "close"]


@dataclass(frozen=True, slots=True)
class RawPiece:
    """Bytes to be sent as they are, after a pause."""

    data: bytes
    pause_ms: float = 0


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call the model makes instead of speaking; its arguments are streamed in `chunks` pieces."""

    name: str
    arguments: str
    call_id: str = "call_1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """The default answers at once, correctly, with exact usage: 10 prompt and 8 completion tokens in 8 chunks."""

    # --- the answer ---
    status: int = 200
    text: str | None = None
    """Cut into `chunks` pieces when streamed. `None`: one short word per chunk."""
    reasoning_text: str | None = None
    """Sent before the text: `reasoning_content` (chat), a thinking block (Anthropic)."""
    tool_call: ToolCall | None = None
    refusal: str | None = None
    chunks: int = 8
    completion_tokens: int = 8
    """Generated evenly over the chunks; times `n` of the request."""
    prompt_tokens: int = 10
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    obey_max_tokens: bool = False
    """Stop at the request's max_tokens with finish reason `length`, as a provider does. Off: run past it."""
    usage: UsageMode = "exact"
    finish_reason: str | None = "stop"
    """In OpenAI's words, translated for Anthropic. `None`: the stream ends without one."""
    done_marker: bool = True
    """`data: [DONE]`; for Anthropic `message_stop`, for Responses `response.completed`."""
    headers: tuple[tuple[str, str], ...] = ()
    """Added to the answer exactly as given, CR and LF included."""
    content_type: str | None = None
    raw_body: str | None = None
    """Sent instead of the body, with `status`, also to a request for a stream: HTML, nothing, truncated JSON."""
    raw_stream: tuple[RawPiece, ...] = ()
    """Body bytes sent instead of the stream (recorded vectors). Tokens are billed as scripted once all of it is out."""
    raw_whole: bool = False
    """`raw_stream` is the whole answer, status line included; the connection is closed after it."""
    unary_despite_stream: bool = False
    """Answer a request for a stream with a plain JSON completion."""
    framing: Framing = "chunked"
    """How a stream is framed; `close` ends it by closing the connection, as HTTP/1.0 does."""

    # --- errors ---
    error_body: str | None = None
    """Body of an error status and payload of an error event. `None`: a well-formed error of the protocol."""
    error_code: str | None = None
    error_message: str = "The server had an error while processing your request"
    echo_credentials: bool = False
    """Put the key we received, a URL with `?key=` and a stack trace into the error message."""
    echo_prompt: bool = False
    """Put the request body into the error message."""
    retry_after: str | None = None
    redirect_location: str | None = None
    """Answer with `Location`; status 307 unless `status` is itself a redirect."""

    # --- pace ---
    delay_ms: float = 0
    """Before the status line."""
    first_token_delay_ms: float = 0
    """After the headers, before the first event (or before the body)."""
    gap_ms: float = 0
    """Between chunks. 0: back to back, still one write each."""

    # --- faults of the connection ---
    accept_and_close: bool = False
    """Read the request, close without a byte."""
    accept_and_reset: bool = False
    hang_before_headers: bool = False
    hang_after_headers: bool = False
    close_after_chunks: int | None = None
    """FIN. With chunked framing an aborted body, with `close` framing a stream that looks complete."""
    reset_after_chunks: int | None = None
    """RST, after what was sent has reached the peer's kernel."""
    stall_after_chunks: int | None = None
    """Silence with the connection open, until the peer gives up."""
    half_event: bool = False
    """Half of the next event goes out before the cut or the stall."""
    close_after_answer: bool = False
    """Close after a complete answer without having announced it: the peer's pooled connection is stale."""
    lying_content_length: int | None = None
    """Added to the true length. Positive: the body ends early by FIN. Negative: surplus bytes follow it."""

    # --- faults of the stream ---
    endless: bool = False
    """Chunks for ever, one per `gap_ms`, each worth completion_tokens / chunks."""
    comments_every_ms: float | None = None
    """Only SSE comments, no event; see `comments_count`."""
    comments_count: int | None = None
    """`None`: comments until the peer gives up. Else that many, then the end of the body."""
    error_event_after_chunks: int | None = None
    """An error event, then the end of the body."""
    garbage_after_chunks: tuple[int, ...] = ()
    """`data: {not json}` after each of these numbers of chunks."""
    unknown_event_after_chunks: int | None = None
    """A named event of a type nobody knows."""

    # --- odd but legal streams ---
    crlf: bool = False
    no_space_after_data: bool = False
    multiline_data: bool = False
    bom: bool = False
    role_only_first: bool = True
    events_per_segment: int = 1
    one_byte_segments: bool = False
    """Every byte of the body is an HTTP chunk and a write of its own."""
    utf8_split: bool = False
    """Segments end inside every multi-byte character."""

    # --- size ---
    giant_line_bytes: int | None = None
    """The first chunk's text has this many bytes, on one SSE line."""
    giant_body_bytes: int | None = None
    """The text of a unary answer has this many bytes."""
    gzip_bomb_bytes: int | None = None
    """A gzip-encoded body of this decoded size, sent whether or not the request accepts gzip."""

    def __post_init__(self) -> None:
        cuts = (self.close_after_chunks, self.reset_after_chunks, self.stall_after_chunks)
        if self.half_event and all(cut is None for cut in cuts):
            raise ValueError("half_event needs close_after_chunks, reset_after_chunks or stall_after_chunks")
        if self.chunks < 0 or self.events_per_segment < 1 or self.completion_tokens < 0:
            raise ValueError("chunks and completion_tokens must not be negative, events_per_segment must be positive")
        if self.raw_whole and not self.raw_stream:
            raise ValueError("raw_whole needs raw_stream")

    def to_json(self) -> dict[str, object]:
        """Only what differs from the default, so that scripts read well in logs."""
        encoded = msgspec.to_builtins(self)
        defaults = msgspec.to_builtins(Scenario())
        return {name: value for name, value in encoded.items() if value != defaults[name]}

    @classmethod
    def from_json(cls, encoded: object) -> Scenario:
        """The reverse of `to_json`; bytes are base64.

        Raises:
            ValueError: a field is unknown or of the wrong type. A misspelt fault must not pass as a healthy answer.
        """
        if not isinstance(encoded, dict):
            raise ValueError("a scenario is a JSON object")
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := set(encoded) - known:
            raise ValueError(f"unknown fields: {sorted(map(str, unknown))}")
        return msgspec.convert(encoded, cls)

    @property
    def is_immediate(self) -> bool:
        """A unary answer of this scenario is one write without a pause."""
        return not (
            self.delay_ms
            or self.first_token_delay_ms
            or self.accept_and_close
            or self.accept_and_reset
            or self.hang_before_headers
            or self.hang_after_headers
            or self.one_byte_segments
            or self.raw_stream
            or self.giant_body_bytes
            or self.gzip_bomb_bytes
            or self.close_after_answer
            or self.lying_content_length
            or self.echo_credentials
            or self.echo_prompt
        )
