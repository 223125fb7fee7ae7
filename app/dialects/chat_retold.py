"""Another protocol's call told in chat completions, for endpoints that speak nothing else, and their answers told back.

The call keeps its own body and its dialect's name for the record; what the upstream gets are the chat fields made of it. Answers are
judged by the chat dialect first: what is no answer there is none here, for the same reasons and with the same failover.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Raw

from app.dialects.base import AnswerFacts
from app.dialects.envelope import encode
from app.dialects.openai_chat_answer import events_of, read_completion
from app.dialects.openai_request import asking_for_usage
from app.domain.call import Call

Told = Callable[[bytes], bytes]

IN_NEXT_MESSAGE = "(in the next message)"
"""Stands in a tool's result whose pictures only a user's message can carry."""

_OF_REASONING = re.compile(r"(?:.*/)?(?:o\d|gpt-[5-9])")
"""OpenAI's reasoning models refuse `max_tokens`; everybody else knows it."""


@dataclass(frozen=True, slots=True)
class ChatRetold:
    """`origin` is the call as it came, `fields` what it says in chat completions, each value as Python reads JSON."""

    origin: Call
    fields: Mapping[str, object]

    @property
    def call(self) -> Call:
        raw = {name: Raw(encode(value)) for name, value in self.fields.items()}
        return msgspec.structs.replace(self.origin, fields=raw, wants_usage=True)

    @staticmethod
    def upstream_body(call: Call, *, upstream_model: str, max_tokens: int | None) -> bytes:
        fields: dict[str, object] = {**call.fields, "model": upstream_model}
        cap = fields.pop("max_tokens", None) if max_tokens is None else max_tokens
        fields.pop("max_tokens", None)
        if cap is not None:
            fields["max_completion_tokens" if is_of_reasoning(upstream_model) else "max_tokens"] = cap
        if call.is_stream:
            fields |= {"stream": True, "stream_options": asking_for_usage(None)}
        return encode(fields)

    @staticmethod
    def facts(body: bytes, told: Told) -> AnswerFacts:
        """Raises: BadAnswer, UpstreamSaidError."""
        facts = read_completion(body)
        return msgspec.structs.replace(facts, mended=told(facts.mended or body))

    @staticmethod
    def as_stream(body: bytes) -> bytes:
        read_completion(body)
        return events_of(body)


def is_of_reasoning(upstream_model: str) -> bool:
    return _OF_REASONING.match(upstream_model) is not None


def payloads_of(framed: bytes) -> Iterator[bytes]:
    """The data of each event of what a chat stream's reader hands on: whole events, one line each."""
    for event in framed.split(b"\n\n"):
        if event:
            yield event[6:]


def event(name: str, data: Mapping[str, object]) -> bytes:
    """One named event; `type` in its data repeats the name, as both Anthropic and OpenAI write it."""
    return b"event: " + name.encode() + b"\ndata: " + encode({"type": name, **data}) + b"\n\n"


def text_in(value: object) -> str:
    """What should be text, and from some upstreams is null or something else: then nothing was said."""
    return value if isinstance(value, str) else ""


def arguments_in(function: Mapping[str, Any]) -> str:
    """What a tool is called with, as text. Some upstreams write the object itself."""
    arguments = function.get("arguments")
    return arguments if isinstance(arguments, str) else encode(arguments).decode() if arguments else ""


def object_in(arguments: str) -> object:
    """What a tool is called with, as an object; text that is no JSON (a model's slip) is kept as text."""
    try:
        found: object = msgspec.json.decode(arguments or "{}")
    except msgspec.DecodeError:
        return {"arguments": arguments}
    return found if isinstance(found, dict) else {"arguments": found}
