"""The model `demo`: answers in process, without network or key, so that the first `curl` of a new gateway works.

It is labelled as what it is in every answer. Its tokens are words: counts, `max_tokens`, prices and limits all agree with what
one sees.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import msgspec

from app.clock import Clock, SystemClock
from app.dialects.base import Dialect, StreamReader
from app.dialects.openai_chat import CHAT_PATH
from app.domain.call import Call, Meter, Quality
from app.domain.catalog import Endpoint
from app.exceptions import EndpointUnfit, InvalidRequest
from app.providers import failures
from app.providers.base import Answer
from app.providers.relay import keep_answer, since_ms
from app.providers.transport import ExchangeFailed

PAUSE_S = 0.01
"""Between the words of a stream: fast, and yet one sees that it streams."""

_TEXT = (
    "This is the gateway's built-in demo model: no language model is behind it, and nothing left this machine. "
    "Your last message {said}. Register a model of your own to get real answers."
)
_ECHOED_CHARS = 80
_WORD = re.compile(r"\S+\s*")
_BYTES_PER_PROMPT_TOKEN = 4


class _Message(msgspec.Struct):
    role: str
    content: msgspec.Raw = msgspec.Raw(b"null")


class _Part(msgspec.Struct):
    text: str = ""


_messages = msgspec.json.Decoder(list[_Message])
_content = msgspec.json.Decoder(str | list[_Part] | None)


class DemoProvider:
    """See `app.providers.base.Provider`. Serves chat completions only."""

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()

    @asynccontextmanager
    async def opened(
        self,
        call: Call,
        endpoint: Endpoint,
        dialect: Dialect,
        meter: Meter,
        *,
        max_tokens: int | None,
        deadline_s: float,
    ) -> AsyncIterator[Answer]:
        """Raises: EndpointUnfit for any other dialect than chat, AttemptFailed past the deadline."""
        if dialect.upstream_path != CHAT_PATH:
            raise EndpointUnfit(InvalidRequest(f"The demo model answers chat completions only, not '{dialect.name}'."))
        words = _words_for(call)
        cap = min((each for each in (max_tokens, call.max_tokens) if each is not None), default=len(words))
        finish_reason = "length" if cap < len(words) else "stop"
        created_s = int(self._clock.now().timestamp())
        completion = _Completion(call, endpoint.model, words[:cap], finish_reason, created_s=created_s)
        if not call.is_stream:
            yield _whole(completion, dialect, meter)
            return
        reader = dialect.stream_reader(call)
        events = completion.events()
        first = next(event for event in map(reader.feed, events) if reader.has_begun)
        meter.first_token_ms = since_ms(meter.started_s)
        keep_answer(meter, first)
        try:
            chunks = self._paced(events, reader, meter, deadline_s)
            yield Answer("text/event-stream", first, chunks=chunks, reader=reader)
        finally:
            _note(reader, meter)

    async def close(self) -> None:
        """Nothing is held open."""

    async def _paced(
        self, events: Iterator[bytes], reader: StreamReader, meter: Meter, deadline_s: float
    ) -> AsyncIterator[bytes]:
        for event in events:
            await self._clock.sleep(PAUSE_S)
            if self._clock.monotonic() > deadline_s:
                late = ExchangeFailed("total_timeout", is_sent=True, is_timeout=True)
                raise failures.of_exchange(late, has_begun=True)
            passed = reader.feed(event)
            meter.delivered_tokens = reader.delivered_tokens
            if passed:
                keep_answer(meter, passed)
                yield passed
        if last := reader.end():
            keep_answer(meter, last)
            yield last


class _Completion:
    """One answer: the same words for every choice, as bytes of either kind."""

    def __init__(self, call: Call, model: str, words: list[str], finish_reason: str, *, created_s: int) -> None:
        self._words = words
        self._finish_reason = finish_reason
        self._choices = call.choices
        self._base = {"id": f"chatcmpl-demo-{uuid.uuid4().hex}", "created": created_s, "model": model}
        prompt_tokens = max(1, -(-call.prompt_bytes // _BYTES_PER_PROMPT_TOKEN))
        completion_tokens = len(words) * call.choices
        self._usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }

    def body(self) -> bytes:
        message = {"role": "assistant", "content": "".join(self._words).rstrip()}
        choices = [
            {"index": index, "message": message, "finish_reason": self._finish_reason} for index in range(self._choices)
        ]
        return msgspec.json.encode(
            {**self._base, "object": "chat.completion", "choices": choices, "usage": self._usage}
        )

    def events(self) -> Iterator[bytes]:
        """A word of every choice in turn, then how each ended, then the usage: the dialect hides that where nobody asked."""
        for number, word in enumerate(self._words):
            delta = {"role": "assistant", "content": word} if number == 0 else {"content": word}
            for index in range(self._choices):
                yield self._event([{"index": index, "delta": delta, "finish_reason": None}])
        for index in range(self._choices):
            yield self._event([{"index": index, "delta": {}, "finish_reason": self._finish_reason}])
        yield self._event([], usage=self._usage)

    def _event(self, choices: list[dict[str, object]], **more: object) -> bytes:
        chunk = {**self._base, "object": "chat.completion.chunk", "choices": choices, **more}
        return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


def _whole(completion: _Completion, dialect: Dialect, meter: Meter) -> Answer:
    facts = dialect.read_answer(completion.body())
    body = facts.mended or completion.body()
    meter.first_token_ms = since_ms(meter.started_s)
    meter.usage, meter.quality, meter.finish_reason = facts.usage, Quality.EXACT, facts.finish_reason
    meter.delivered_tokens = facts.usage.completion_tokens if facts.usage else 0
    keep_answer(meter, body)
    return Answer("application/json", body)


def _note(reader: StreamReader, meter: Meter) -> None:
    meter.delivered_tokens, meter.finish_reason = reader.delivered_tokens, reader.finish_reason
    meter.usage = reader.usage
    meter.quality = Quality.EXACT if reader.usage else Quality.PARTIAL


def _words_for(call: Call) -> list[str]:
    return _WORD.findall(_TEXT.replace("{said}", _said(call)))


def _said(call: Call) -> str:
    """A piece of the last user message, on one line."""
    users = [message for message in _messages.decode(call.fields["messages"]) if message.role == "user"]
    text = " ".join(_text_of(users[-1]).split()) if users else ""
    if not text:
        return "held no text"
    return f"began with “{text[:_ECHOED_CHARS]}…”" if len(text) > _ECHOED_CHARS else f"was “{text}”"


def _text_of(message: _Message) -> str:
    try:
        content = _content.decode(message.content)
    except msgspec.ValidationError:
        return ""
    if isinstance(content, list):
        return " ".join(part.text for part in content)
    return content or ""
