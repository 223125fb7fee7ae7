"""Answers of endpoints that speak Anthropic's Messages themselves: judged, and passed on as they are.

What becomes of an event of a stream: those the protocol names pass, in one form (`event:` and one `data:` line); `error` ends the
stream as `UpstreamSaidError`; `ping` passes and is no progress; anything that is not JSON ends it as `BadAnswer("bad_event")`.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Raw, Struct

from app.dialects.base import AnswerFacts, BadAnswer, UpstreamSaidError
from app.dialects.chat_retold import event
from app.dialects.envelope import NONE, is_given, is_utf8
from app.dialects.messages_answer import texts_of, usage_told
from app.dialects.openai_errors import raise_if_error, read_problem
from app.dialects.openai_stream import BYTES_PER_TOKEN, MAX_KEPT_BYTES
from app.dialects.sse import MAX_EVENT_BYTES, Framer
from app.domain.pricing import Usage

_Tokens = Annotated[int, Meta(ge=0, le=1 << 40)]
_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
"""In the words of the record, which are the same for all dialects."""


class _CacheCreation(Struct):
    ephemeral_5m_input_tokens: _Tokens = 0
    ephemeral_1h_input_tokens: _Tokens = 0


class _Usage(Struct):
    input_tokens: _Tokens | None = None
    output_tokens: _Tokens | None = None
    cache_creation_input_tokens: _Tokens | None = None
    cache_read_input_tokens: _Tokens | None = None
    cache_creation: _CacheCreation | None = None
    service_tier: str | None = None


class _Message(Struct):
    type: str = ""
    content: list[Raw] | None = None
    stop_reason: str | None = None
    usage: Raw = NONE
    error: Raw = NONE


class _Delta(Struct, gc=False):
    type: str = ""
    text: str = ""
    thinking: str = ""
    partial_json: str = ""
    stop_reason: str | None = None


class _Begun(Struct):
    usage: Raw = NONE


class _Block(Struct, gc=False):
    type: str = ""


class _Event(Struct):
    type: str = ""
    index: int = 0
    delta: _Delta | None = None
    message: _Begun | None = None
    content_block: _Block | None = None
    usage: Raw = NONE


_usage = msgspec.json.Decoder(_Usage)
_message = msgspec.json.Decoder(_Message)
_event = msgspec.json.Decoder(_Event)


def read_message(body: bytes) -> AnswerFacts:
    """Judge a complete message. Raises: BadAnswer, UpstreamSaidError."""
    if not body.strip():
        raise BadAnswer("empty_body")
    try:
        message = _message.decode(body)
    except msgspec.ValidationError:
        raise_if_error(body)
        raise BadAnswer("not_a_message") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadAnswer("not_json") from None
    if not is_utf8(body):
        raise BadAnswer("not_utf8")
    if message.type == "error" or is_given(message.error):
        raise UpstreamSaidError(read_problem(body))
    if message.content is None:
        raise BadAnswer("no_content")
    return AnswerFacts(
        usage=_read_usage(message.usage, _Usage()),
        finish_reason=_FINISH.get(message.stop_reason or "", message.stop_reason),
        output_bytes=sum(len(text.encode()) for text in texts_of(body)),
    )


class NativeMessagesStream:
    """See `app.dialects.base.StreamReader`."""

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._framer = Framer(max_event_bytes)
        self._failure: BadAnswer | UpstreamSaidError | None = None
        self._is_done = False
        self._has_started = False
        self._open: set[int] = set()
        self._said = bytearray()
        self._prompt = _Usage()
        """What the first event said of the prompt; the last one need not repeat it."""
        self.has_begun = False
        self.is_complete = False
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self.delivered_tokens = 0
        self.pieces = 0
        self.piece_bytes = 0

    def feed(self, data: bytes) -> bytes:
        if self._failure is not None:
            raise self._failure
        if not data or self._is_done:
            return b""
        passed: list[bytes] = []
        try:
            for name, payload in self._framer.events(data):
                passed.append(self._judged(name, payload))
        except (BadAnswer, UpstreamSaidError) as failure:
            self._failure = failure
            if not any(passed):
                raise
        return b"".join(passed)

    def end(self) -> bytes:
        if self._failure is not None:
            raise self._failure
        if not self.has_begun and not self.is_complete:
            raise BadAnswer("empty_stream")
        if not self.is_complete:
            self._failure = BadAnswer("truncated")
            raise self._failure
        if self._is_done:
            return b""
        self._is_done = True
        return event("message_stop", {})

    def cut(self, delivered_tokens: int, prompt_tokens: int) -> bytes:
        closing = [event("content_block_stop", {"index": index}) for index in sorted(self._open)]
        usage = self.usage or self.usage_so_far() or Usage(prompt_tokens, delivered_tokens)
        told = {**usage_told(usage), "output_tokens": delivered_tokens}
        ended = {"stop_reason": "max_tokens", "stop_sequence": None}
        self._is_done = True
        self.finish_reason, self.delivered_tokens = "length", delivered_tokens
        return b"".join([*closing, event("message_delta", {"delta": ended, "usage": told}), event("message_stop", {})])

    def texts(self) -> list[str]:
        return [self._said.decode("utf-8", "replace")]

    def usage_so_far(self) -> Usage | None:
        """Of a stream that broke off: the prompt as its provider counted it, and what has passed."""
        return _usage_of(self._prompt, self.delivered_tokens) if self._prompt.input_tokens is not None else None

    def _judged(self, name: bytes, payload: bytes) -> bytes:
        if self._is_done:
            return b""
        try:
            seen = _event.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            if name == b"error":
                raise UpstreamSaidError(read_problem(payload)) from None
            raise BadAnswer("bad_event") from None
        if not is_utf8(payload):
            raise BadAnswer("bad_event")
        match seen.type:
            case "error":
                raise UpstreamSaidError(read_problem(payload))
            case "message_start":
                self._start(seen)
            case "content_block_start":
                self._open.add(seen.index)
                self.has_begun = self.has_begun or (
                    seen.content_block is not None and seen.content_block.type != "text"
                )
            case "content_block_delta" if seen.delta is not None:
                self._carry(seen.delta)
            case "content_block_stop":
                self._open.discard(seen.index)
            case "message_delta":
                self._finish(seen)
            case "message_stop":
                if not self._has_started:
                    raise BadAnswer("empty_stream")
                self._is_done = self.is_complete = self.has_begun = True
                return event("message_stop", {})
            case "":
                raise_if_error(payload)
                return b""
            case _:
                pass
        return b"event: " + seen.type.encode() + b"\ndata: " + payload.replace(b"\n", b" ") + b"\n\n"

    def _start(self, seen: _Event) -> None:
        self._has_started = True
        if seen.message is not None and seen.message.usage:
            try:
                self._prompt = _usage.decode(seen.message.usage)
            except msgspec.DecodeError:
                return  # not believed; the closing event may be

    def _carry(self, delta: _Delta) -> None:
        said = (delta.text or delta.thinking or delta.partial_json).encode("utf-8", "replace")
        self.pieces += 1
        self.piece_bytes += len(said)
        if len(self._said) < MAX_KEPT_BYTES:
            self._said += said
        self.delivered_tokens = max(self.pieces, self.piece_bytes // BYTES_PER_TOKEN)
        self.has_begun = True

    def _finish(self, seen: _Event) -> None:
        if seen.usage:
            self.usage = _read_usage(seen.usage, self._prompt) or self.usage
        if seen.delta is not None and seen.delta.stop_reason:
            self.finish_reason = _FINISH.get(seen.delta.stop_reason, seen.delta.stop_reason)
            self.is_complete = self.has_begun = True


def _read_usage(raw: Raw, prompt: _Usage) -> Usage | None:
    """A usage object; None when any figure in it is negative, fractional or text, or one that is needed is missing."""
    if not raw:
        return None
    try:
        seen = _usage.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return None
    if seen.input_tokens is None:
        seen = msgspec.structs.replace(prompt, output_tokens=seen.output_tokens)
    elif seen.cache_creation is None and prompt.cache_creation is not None:
        seen = msgspec.structs.replace(seen, cache_creation=prompt.cache_creation)
    if seen.input_tokens is None or seen.output_tokens is None:
        return None
    return _usage_of(seen, seen.output_tokens)


def _usage_of(seen: _Usage, output_tokens: int) -> Usage:
    """Anthropic counts the cached parts of a prompt beside its input; here they are parts of it."""
    cached, written = seen.cache_read_input_tokens or 0, seen.cache_creation_input_tokens or 0
    for_an_hour = min(written, seen.cache_creation.ephemeral_1h_input_tokens if seen.cache_creation else 0)
    return Usage(
        prompt_tokens=(seen.input_tokens or 0) + cached + written,
        completion_tokens=output_tokens,
        cached_tokens=cached,
        cache_write_5m_tokens=written - for_an_hour,
        cache_write_1h_tokens=for_an_hour,
        service_tier=seen.service_tier,
    )
