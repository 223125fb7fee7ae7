"""OpenAI's Responses: the call is told in chat completions, which every endpoint speaks, and the answer is told back.

This gateway keeps no answers: what refers to one that is kept (`previous_response_id`, `conversation`, `background`, `item_reference`)
is refused by name. A client that sends the whole conversation, as agents do, misses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta, Raw, Struct

from app.dialects.base import AnswerFacts, Dialect, UpstreamProblem
from app.dialects.chat_retold import ChatRetold
from app.dialects.envelope import (
    NONE,
    RequestReader,
    encode,
    is_given,
)
from app.dialects.openai_chat import CHAT_PATH
from app.dialects.openai_errors import error_body, read_problem
from app.dialects.openai_request import MAX_TOKENS
from app.dialects.responses_answer import LAST, Echo, response_of, texts_of
from app.dialects.responses_as_chat import chat_fields
from app.dialects.responses_media import media_in
from app.dialects.responses_stream import ResponsesStream
from app.dialects.responses_tools import NO_TOOLS, Tools, tools_in
from app.domain.call import Call
from app.domain.catalog import ProviderKind
from app.exceptions import GatewayError, InvalidRequest

_Items = Annotated[list[Raw], Meta(min_length=1)]


class _Request(Struct):
    """The fields we act on, with bounds; the rest is the upstream's to judge."""

    model: Annotated[str, Meta(min_length=1)]
    input: str | _Items
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    tools: Annotated[list[Raw], Meta(max_length=512)] | None = None
    background: bool | None = None


_READ_BY_MODEL = ("input", "instructions", "tools", "text")
_KEPT_ELSEWHERE = ("previous_response_id", "conversation", "prompt")
_request = RequestReader(_Request, "model", "input")


class Responses:
    """`POST /v1/responses`."""

    name = "responses"
    upstream_path = "/responses"
    passes_headers: tuple[bytes, ...] = ()

    def read(self, body: bytes) -> Call:
        """Raises: InvalidJson, InvalidRequest, MissingParameter, ParamNotAllowed."""
        members, request = _request.read(body)
        _require_nothing_kept(members, is_in_background=bool(request.background))
        found = media_in(request.input if isinstance(request.input, list) else [])
        return Call(
            dialect=self.name,
            model=request.model,
            is_stream=bool(request.stream),
            wants_usage=True,
            max_tokens=request.max_output_tokens,
            choices=1,
            prompt_bytes=sum(len(members[name]) for name in _READ_BY_MODEL if name in members) - found.payload_bytes,
            images=found.pieces,
            body=body,
            fields=members,
            media=found.media,
        )

    def towards(self, provider: ProviderKind, call: Call) -> tuple[Dialect, Call]:
        """Raises: InvalidRequest for what chat completions have no words for."""
        fields, retold = call.fields, ChatRetold(call, chat_fields(call.fields))
        return ResponsesAsChat(Echo(fields), _tools(fields)), retold.call

    def texts_of(self, body: bytes) -> list[str]:
        return texts_of(body)

    def read_problem(self, body: bytes) -> UpstreamProblem:
        return read_problem(body)

    def error_body(self, error: GatewayError, request_id: str) -> bytes:
        return error_body(error, request_id)

    def error_event(self, error: GatewayError, request_id: str) -> bytes:
        inner = msgspec.json.decode(error_body(error, request_id), type=dict[str, Raw])
        return b"event: error\ndata: " + encode({"type": "error", **inner}) + b"\n\n"

    def ends_stream(self, chunk: bytes) -> bool:
        return chunk.endswith(LAST)

    # An endpoint never sees this class itself: what it speaks is chat, see `ResponsesAsChat`.

    def upstream_body(self, call: Call, *, upstream_model: str, max_tokens: int | None) -> bytes:
        return ChatRetold.upstream_body(call, upstream_model=upstream_model, max_tokens=max_tokens)

    def read_answer(self, body: bytes) -> AnswerFacts:
        return ChatRetold.facts(body, lambda answer: response_of(answer, Echo({}), NO_TOOLS))

    def stream_reader(self, call: Call) -> ResponsesStream:
        return ResponsesStream(Echo(call.fields), NO_TOOLS)


class ResponsesAsChat(Responses):
    """As an endpoint speaks it that knows chat completions; one for each call, for the answer repeats what was asked."""

    upstream_path = CHAT_PATH

    def __init__(self, echo: Echo, tools: Tools) -> None:
        self.echo = echo
        self.tools = tools

    def read_answer(self, body: bytes) -> AnswerFacts:
        return ChatRetold.facts(body, lambda answer: response_of(answer, self.echo, self.tools))

    def stream_reader(self, call: Call) -> ResponsesStream:
        return ResponsesStream(self.echo, self.tools)

    def as_stream(self, body: bytes) -> bytes:
        return ChatRetold.as_stream(body)


def _tools(fields: Mapping[str, Raw]) -> Tools:
    return tools_in(msgspec.json.decode(fields["tools"])) if "tools" in fields else NO_TOOLS


def _require_nothing_kept(members: Mapping[str, Raw], *, is_in_background: bool) -> None:
    for name in _KEPT_ELSEWHERE:
        if is_given(members.get(name, NONE)):
            raise InvalidRequest(f"This gateway keeps no answers and no prompts: '{name}' cannot be used.", param=name)
    if is_in_background:
        raise InvalidRequest("This gateway keeps no answers: 'background' cannot be used.", param="background")
