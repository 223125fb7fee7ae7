"""Anthropic's Messages: the request, and the two ways to an answer.

An endpoint that speaks the protocol itself gets the caller's bytes and its own pass back (`MessagesNative`); for every other one the
call is told in chat completions, and the answer is told back (`MessagesAsChat`). What limits, budgets and records see is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta, Raw, Struct

from app.dialects.base import AnswerFacts, Dialect, UpstreamProblem
from app.dialects.chat_retold import ChatRetold, is_of_reasoning
from app.dialects.envelope import NONE, RequestReader, encode
from app.dialects.messages_answer import message_of, texts_of
from app.dialects.messages_as_chat import chat_fields
from app.dialects.messages_native import NativeMessagesStream, read_message
from app.dialects.messages_stream import MESSAGE_STOP, MessagesStream
from app.dialects.openai_chat import CHAT_PATH
from app.dialects.openai_errors import read_problem
from app.dialects.openai_request import MAX_TOKENS, Stops
from app.dialects.pictures import size_in
from app.domain.call import Call
from app.domain.catalog import ProviderKind
from app.domain.media import NO_MEDIA, Media, Picture
from app.exceptions import GatewayError


class _Message(Struct, gc=False):
    role: str
    content: Raw


class _Request(Struct):
    """The fields we act on, with bounds; the rest is the upstream's to judge."""

    model: Annotated[str, Meta(min_length=1)]
    messages: Annotated[list[_Message], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
    stream: bool | None = None
    stop_sequences: Stops | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    tools: Annotated[list[Raw], Meta(max_length=512)] | None = None


class _CountRequest(Struct):
    model: Annotated[str, Meta(min_length=1)]
    messages: Annotated[list[_Message], Meta(min_length=1)]


class _Source(Struct, gc=False):
    type: str = ""
    media_type: str = ""
    data: Raw = NONE


class _Block(Struct, gc=False):
    """One block of a message's content, as far as its size is asked for."""

    type: str = ""
    source: _Source | None = None
    content: Raw = NONE


_READ_BY_MODEL = ("system", "messages", "tools")
_request = RequestReader(_Request, "model", "messages", "max_tokens")
_count_request = RequestReader(_CountRequest, "model", "messages")
_blocks = msgspec.json.Decoder(list[_Block])
_PICTURE_HEAD_BYTES = 66 << 10
_BYTES_PER_DOCUMENT_PIECE = 128 << 10
_MAX_DEPTH = 4
"""A tool's result holds blocks, and no block of those holds any."""

_TYPE_OF_STATUS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""docs.anthropic.com, "Errors"."""


class Messages:
    """`POST /v1/messages`."""

    name = "messages"
    upstream_path = "/messages"
    passes_headers: tuple[bytes, ...] = (b"anthropic-version", b"anthropic-beta")

    def read(self, body: bytes) -> Call:
        """Raises: InvalidJson, InvalidRequest, MissingParameter, ParamNotAllowed."""
        members, request = _request.read(body)
        return _call(body, members, request.messages, request.model, request.max_tokens, bool(request.stream))

    def read_to_count(self, body: bytes) -> Call:
        """A request of `/messages/count_tokens`: nothing is to be produced. Raises: as `read`."""
        members, request = _count_request.read(body)
        return _call(body, members, request.messages, request.model, None, False)

    def towards(self, provider: ProviderKind, call: Call) -> tuple[Dialect, Call]:
        """Raises: InvalidRequest for what chat completions have no words for."""
        if provider is ProviderKind.ANTHROPIC:
            return MessagesNative(), call
        retold = ChatRetold(call, chat_fields(call.fields, may_be_claude=provider is ProviderKind.LITELLM))
        return MessagesAsChat(), retold.call

    def texts_of(self, body: bytes) -> list[str]:
        return texts_of(body)

    def read_problem(self, body: bytes) -> UpstreamProblem:
        return read_problem(body)

    def error_body(self, error: GatewayError, request_id: str) -> bytes:
        kind = _TYPE_OF_STATUS.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
        inner = {"type": kind, "message": error.message, "code": error.code, "param": error.param}
        return encode({"type": "error", "error": inner, "request_id": request_id})

    def error_event(self, error: GatewayError, request_id: str) -> bytes:
        return b"event: error\ndata: " + self.error_body(error, request_id) + b"\n\n"

    def ends_stream(self, chunk: bytes) -> bool:
        return chunk.endswith(MESSAGE_STOP)

    # An endpoint never sees this class itself: it speaks one of the two below.

    def upstream_body(self, call: Call, *, upstream_model: str, max_tokens: int | None) -> bytes:
        return _native_body(call, upstream_model=upstream_model, max_tokens=max_tokens)

    def read_answer(self, body: bytes) -> AnswerFacts:
        return read_message(body)

    def stream_reader(self, call: Call) -> NativeMessagesStream | MessagesStream:
        return NativeMessagesStream()


class MessagesNative(Messages):
    """As an endpoint speaks it that knows the protocol: bytes in, bytes out."""


class MessagesAsChat(Messages):
    """As an endpoint speaks it that knows chat completions."""

    upstream_path = CHAT_PATH

    def upstream_body(self, call: Call, *, upstream_model: str, max_tokens: int | None) -> bytes:
        if "reasoning_effort" in call.fields and not is_of_reasoning(upstream_model):
            # Nobody asked for it by this name, and whoever does not know it refuses the whole call.
            fields = {name: raw for name, raw in call.fields.items() if name != "reasoning_effort"}
            call = msgspec.structs.replace(call, fields=fields)
        return ChatRetold.upstream_body(call, upstream_model=upstream_model, max_tokens=max_tokens)

    def read_answer(self, body: bytes) -> AnswerFacts:
        return ChatRetold.facts(body, message_of)

    def stream_reader(self, call: Call) -> MessagesStream:
        return MessagesStream()

    def as_stream(self, body: bytes) -> bytes:
        return ChatRetold.as_stream(body)


def _native_body(call: Call, *, upstream_model: str, max_tokens: int | None) -> bytes:
    changes: dict[str, object] = {}
    if upstream_model != call.model:
        changes["model"] = upstream_model
    if max_tokens is not None:
        changes["max_tokens"] = max_tokens
    return encode({**call.fields, **changes}) if changes else call.body


def _call(
    body: bytes,
    members: Mapping[str, Raw],
    messages: list[_Message],
    model: str,
    max_tokens: int | None,
    is_stream: bool,
) -> Call:
    payload_bytes, media = _media_in(messages)
    pieces = len(media.pictures) + (
        1 + media.document_bytes // _BYTES_PER_DOCUMENT_PIECE if media.document_bytes else 0
    )
    return Call(
        dialect=Messages.name,
        model=model,
        is_stream=is_stream,
        wants_usage=True,
        max_tokens=max_tokens,
        choices=1,
        prompt_bytes=sum(len(members[name]) for name in _READ_BY_MODEL if name in members) - payload_bytes,
        images=pieces + media.unseen,
        body=body,
        fields=members,
        media=media,
    )


def _media_in(messages: list[_Message]) -> tuple[int, Media]:
    """Pictures and documents among the messages, and how many bytes they are of what the model reads."""
    found = [block for message in messages for block in _blocks_in(message.content, 0)]
    sources = [(block.type, block.source) for block in found if block.source is not None and block.type != "text"]
    if not sources:
        return 0, NO_MEDIA
    documents = [source for kind, source in sources if kind != "image" and source.type != "text"]
    given = [len(source.data) for source in documents if source.type == "base64"]
    payload_bytes = sum(len(source.data) for _, source in sources if source.type == "base64")
    media = Media(
        pictures=tuple(_picture(source) for kind, source in sources if kind == "image"),
        document_bytes=sum(given),
        unseen=len(documents) - len(given),
    )
    return payload_bytes, media


def _blocks_in(content: Raw, depth: int) -> list[_Block]:
    if bytes(memoryview(content)[:1]) != b"[" or depth > _MAX_DEPTH:
        return []
    try:
        blocks = _blocks.decode(content)
    except msgspec.ValidationError:
        return []  # a shape of its own: the upstream judges it, its bytes stay in the estimate
    return blocks + [inner for block in blocks if block.content for inner in _blocks_in(block.content, depth + 1)]


def _picture(source: _Source) -> Picture:
    if source.type != "base64":
        return Picture()
    head = bytes(memoryview(source.data)[:_PICTURE_HEAD_BYTES]).strip(b'"').replace(b"\\/", b"/")
    width, height = size_in(b"data:image/png;base64," + head) or (None, None)
    return Picture(width=width, height=height)
