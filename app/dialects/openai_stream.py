"""Streams of OpenAI's older dialects: chunks with choices, ended by `data: [DONE]`. What a choice holds is each dialect's own.

A stream is judged event by event, each one decoded into the few fields of its chunk: measured, that is five times cheaper than
searching the bytes by regular expression for what might be worth decoding, and it proves every event to be JSON on the way.

What becomes of an upstream's event:

* a chunk passes byte for byte (`data: ` before it, a blank line after it); white space that broke it into several `data` lines
  becomes a space; `id`, `retry`, comments and the name of the event are not handed on;
* a name in it (`id`, `object`, `model`, `system_fingerprint`) that is no text, or longer than any name, is mended first;
* the chunk that holds nothing but usage is hidden from a caller who did not ask for it;
* an error object, with or without `event: error`, ends the stream as `UpstreamSaidError`;
* an event of an unknown name, and an object that is neither chunk nor error, is dropped;
* data that is not JSON ends the stream as `BadAnswer("bad_event")`: after a gap nobody knows what is missing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import msgspec
from msgspec import Raw

from app.dialects.base import BadAnswer, UpstreamSaidError
from app.dialects.envelope import as_members, encode, is_given, is_utf8
from app.dialects.openai_errors import NO_PROBLEM, raise_if_error, read_problem
from app.dialects.openai_names import with_plain_names
from app.dialects.openai_usage import read_usage, usage_shown, without_nan
from app.dialects.sse import MAX_EVENT_BYTES, Framer
from app.domain.pricing import Usage

DONE = b"data: [DONE]\n\n"
MAX_KEPT_BYTES = 1 << 20
"""Of one choice's text; an answer beyond that is counted by its bytes."""
BYTES_PER_TOKEN = 5
"""Below the average of every common tokenizer for prose, so that text in large pieces is not billed for less than it is."""
FAILED = "error"
"""A finish reason that is none: how OpenRouter and others say that the provider behind them broke off."""
_SHARED_BY_CHUNKS = ("id", "object", "created", "model", "system_fingerprint", "service_tier")


class _Choice(Protocol):
    @property
    def index(self) -> int | None: ...
    @property
    def finish_reason(self) -> str | None: ...


C = TypeVar("C", bound=_Choice)


class OpenAIStream(ABC, Generic[C]):
    """Judges one stream; see `app.dialects.base.StreamReader`.

    A failure that is found behind good events of the same segment is raised by the next call, `feed(b"")` included, so that how
    the bytes were cut never decides what the caller gets.
    """

    __slots__ = (
        "_choices",
        "_failure",
        "_finished",
        "_framer",
        "_head",
        "_is_done",
        "_said",
        "_shows_usage",
        "delivered_tokens",
        "finish_reason",
        "has_begun",
        "is_complete",
        "piece_bytes",
        "pieces",
        "usage",
    )

    _chunk: ClassVar[Any]
    """Decodes an event's data into a struct with `choices`, `usage`, `service_tier` and `error`."""

    def __init__(self, *, choices: int = 1, shows_usage: bool = True, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._framer = Framer(max_event_bytes)
        self._choices = choices
        self._shows_usage = shows_usage
        self._finished: set[int] = set()
        self._is_done = False
        self._failure: BadAnswer | UpstreamSaidError | None = None
        self.pieces = 0
        self.piece_bytes = 0
        self._head = b""
        """The first chunk with choices: what its stream calls itself."""
        self._said: dict[int, bytearray] = {}
        """The text of each choice, as the inside of a JSON string."""
        self.has_begun = False
        self.is_complete = False
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self.delivered_tokens = 0

    @abstractmethod
    def _count(self, choices: Sequence[C], payload: bytes) -> None:
        """Note what the choices of one chunk carried."""

    @abstractmethod
    def _ended(self, index: int) -> dict[str, object]:
        """What ends an unfinished choice at `max_tokens`."""

    def feed(self, data: bytes) -> bytes:
        if self._failure is not None:
            raise self._failure
        if not data or self._is_done:
            return b""
        payloads = self._framer.plain(data)
        if payloads is None:
            return self._feed_odd(data)
        if len(payloads) == 1:
            passed = self._judged(b"", payloads[0])
            if passed is payloads[0]:
                return data
            return b"" if passed is None else framed([passed])
        return self._feed_all(data, payloads)

    def _feed_all(self, data: bytes, payloads: list[bytes]) -> bytes:
        """Whole plain events: if all pass, the segment passes as it is."""
        kept: list[bytes] = []
        is_same = True
        try:
            for payload in payloads:
                passed = self._judged(b"", payload)
                is_same = is_same and passed is payload
                if passed is not None:
                    kept.append(passed)
        except (BadAnswer, UpstreamSaidError) as failure:
            return self._kept_before(failure, kept)
        return data if is_same else framed(kept)

    def _feed_odd(self, data: bytes) -> bytes:
        kept: list[bytes] = []
        try:
            for name, payload in self._framer.events(data):
                if (passed := self._judged(name, payload)) is not None:
                    kept.append(passed)
        except (BadAnswer, UpstreamSaidError) as failure:
            return self._kept_before(failure, kept)
        return framed(kept)

    def _kept_before(self, failure: BadAnswer | UpstreamSaidError, kept: list[bytes]) -> bytes:
        self._failure = failure
        if not kept:
            raise failure
        return framed(kept)

    def end(self) -> bytes:
        if self._failure is not None:
            raise self._failure
        last = b"" if self._is_done else self._rest()
        if not self.has_begun:
            raise BadAnswer("empty_stream")
        if not self.is_complete:
            self._failure = BadAnswer("truncated")
            raise self._failure
        return last if self._is_done else last + DONE

    def cut(self, delivered_tokens: int, prompt_tokens: int) -> bytes:
        ended: list[object] = [
            self._ended(index)
            for index in range(max([self._choices, *(index + 1 for index in self._said)]))
            if index not in self._finished
        ]
        base = {name: value for name, value in as_members(self._head or b"{}").items() if name in _SHARED_BY_CHUNKS}
        events = [encode({**base, "choices": ended})]
        if self._shows_usage:
            usage = usage_shown(self.usage or Usage(prompt_tokens, delivered_tokens))
            events.append(encode({**base, "choices": [], "usage": usage}))
        self._is_done = True
        self.finish_reason, self.delivered_tokens = "length", delivered_tokens
        return framed([*events, b"[DONE]"])

    def texts(self) -> list[str]:
        return [_text_in(b'"' + bytes(said) + b'"') for said in self._said.values()]

    def _rest(self) -> bytes:
        """Of an event without its closing blank line only what is whole beyond doubt: half a JSON object never is."""
        event = self._framer.rest()
        if event is None:
            return b""
        try:
            passed = self._judged(*event)
        except BadAnswer:
            return b""
        return b"" if passed is None else framed([passed])

    def _judged(self, name: bytes, payload: bytes) -> bytes | None:
        """The data to hand on: the very same where it needs no change, None for what is not handed on."""
        if self._is_done:
            return None
        try:
            chunk = self._chunk(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self._judged_odd(name, payload)
        if name and name != b"message" and (name == b"error" or not chunk.choices):
            if name == b"error":
                raise UpstreamSaidError(read_problem(payload))
            return None
        if chunk.error and is_given(chunk.error):
            raise UpstreamSaidError(read_problem(payload))
        if not payload.isascii() and not is_utf8(payload):
            raise BadAnswer("bad_event")
        has_usage = len(chunk.usage) > 4
        if has_usage:
            self._note_usage(chunk.usage, chunk.service_tier)
        if chunk.choices:
            if not self._head:
                self._head = payload
            self._count(chunk.choices, payload)
        elif chunk.choices is None:
            raise_if_error(payload)
            return None
        elif has_usage and not self._shows_usage:
            return None
        return payload if b"\n" not in payload else payload.replace(b"\n", b" ")

    def _note_usage(self, raw: Raw, service_tier: Raw) -> None:
        """The last one is the whole, unless it is nothing but zeros behind one that is not."""
        usage = read_usage(raw, service_tier)
        if self.usage is None or usage is None or not usage.is_nothing:
            self.usage = usage

    def _carried(self, size: int) -> None:
        """One more piece of the answer, of so many bytes."""
        self.pieces += 1
        self.piece_bytes += size
        self.delivered_tokens = max(self.pieces, self.piece_bytes // BYTES_PER_TOKEN)
        self.has_begun = True

    def _keep(self, index: int, quoted: bytes) -> None:
        """Note text, given as a JSON string, for a count of it."""
        if quoted[:1] != b'"':
            return
        said = self._said.get(index)
        if said is None:
            said = self._said[index] = bytearray()
        if len(said) < MAX_KEPT_BYTES:
            said += quoted[1:-1]

    def _finish(self, choice: C) -> None:
        if choice.finish_reason == FAILED:
            raise UpstreamSaidError(NO_PROBLEM)
        self.has_begun = True
        self.finish_reason = choice.finish_reason
        self._finished.add(choice.index or 0)
        self.is_complete = self.is_complete or len(self._finished) >= self._choices

    def _judged_odd(self, name: bytes, payload: bytes) -> bytes | None:
        """What is no chunk: the done marker, blank data, a named event in a format of its own, an error without a JSON shape; or a
        chunk that can be mended."""
        if name == b"error":
            raise UpstreamSaidError(read_problem(payload))
        if name and name != b"message":
            return None
        marker = payload.strip()
        if marker == b"[DONE]":
            return self._done(payload)
        if marker in (b"", b"null"):  # llama.cpp says null where one of several prompts has nothing to say yet
            return None
        mended = without_nan(payload) or with_plain_names(payload)
        if mended is not None:
            return self._judged(name, mended)
        raise_if_error(payload)
        if self.is_complete:
            return None  # all of the answer is here, whatever its provider likes to end with
        raise BadAnswer("bad_event")

    def _done(self, payload: bytes) -> bytes:
        """Raises: BadAnswer when the stream is over before it began."""
        if not self.has_begun:
            raise BadAnswer("empty_stream")
        self._is_done = self.is_complete = True
        return payload if payload == b"[DONE]" else b"[DONE]"


def _text_in(quoted: bytes) -> str:
    """What a JSON string says; pieces of one that do not fit together are taken as they are."""
    try:
        return _as_text(quoted)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return quoted.decode("utf-8", "replace")


_as_text = msgspec.json.Decoder(str).decode


def framed(payloads: list[bytes]) -> bytes:
    return b"".join([b"data: " + payload + b"\n\n" for payload in payloads])
