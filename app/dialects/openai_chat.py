"""OpenAI's chat completions: the request, and where the rest of the dialect is.

Requests and answers pass as the bytes they are; only the fields that limits, budgets and routing act on are decoded.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta, Raw, Struct

from app.dialects.base import AnswerFacts, UpstreamProblem
from app.dialects.envelope import NONE, RequestReader
from app.dialects.openai_chat_answer import events_of, read_completion
from app.dialects.openai_chat_stream import ChatStream, texts_of
from app.dialects.openai_errors import error_body, read_problem
from app.dialects.openai_request import Choices, Penalty, Stops, StreamOptions, TokenCap, redirected
from app.dialects.openai_stream import DONE
from app.dialects.pictures import size_in
from app.domain.call import Call
from app.domain.catalog import ProviderKind
from app.domain.media import NO_MEDIA, Media, Picture
from app.exceptions import GatewayError


class _Message(Struct, gc=False):
    role: str
    content: Raw = NONE


class _Request(Struct):
    """The fields we act on, and bounds for those whose absurd values cost somebody something. OpenAI's own bounds are tighter in
    places (`stop` ≤ 4, `temperature` ≤ 2), other upstreams' are not; they answer for themselves."""

    model: Annotated[str, Meta(min_length=1)]
    messages: Annotated[list[_Message], Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: TokenCap = None
    max_completion_tokens: TokenCap = None
    n: Choices = None
    best_of: Choices = None
    stop: str | Stops | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    frequency_penalty: Penalty = None
    presence_penalty: Penalty = None
    logit_bias: Annotated[dict[str, float], Meta(max_length=1024)] | None = None
    tools: Annotated[list[Raw], Meta(max_length=512)] | None = None
    functions: Annotated[list[Raw], Meta(max_length=512)] | None = None


CHAT_PATH = "/chat/completions"
"""What an upstream is asked for a call of this dialect, and for those of others that are told in it."""
_READ_BY_MODEL = ("messages", "tools", "functions", "response_format")
_request = RequestReader(_Request, "model", "messages")


class _Image(Struct, gc=False):
    url: Raw = NONE
    detail: str | None = None


class _Part(Struct, gc=False):
    """One part of a message's content; those that are not text are counted as pieces, not as bytes."""

    image_url: Raw = NONE
    input_audio: Raw = NONE
    file: Raw = NONE
    video_url: Raw = NONE


_parts = msgspec.json.Decoder(list[_Part])
_image = msgspec.json.Decoder(_Image | str)
_BYTES_PER_AUDIO_PIECE = 1 << 20
_BYTES_PER_FILE_PIECE = 128 << 10
"""How much base64 a price per image counts as one more: a minute or so of audio, a few pages of a document."""
_PICTURE_HEAD_BYTES = 66 << 10
_LEAST_PAYLOAD_BYTES = 512
"""A file or film in fewer bytes than this is only named, by address or id."""


class OpenAIChat:
    """`POST /v1/chat/completions`."""

    name = "chat"
    upstream_path = CHAT_PATH
    passes_headers: tuple[bytes, ...] = ()

    def read(self, body: bytes) -> Call:
        """Raises: InvalidJson, InvalidRequest, MissingParameter, ParamNotAllowed."""
        members, request = _request.read(body)
        found = _media_in(request.messages)
        caps = [cap for cap in (request.max_tokens, request.max_completion_tokens) if cap is not None]
        return Call(
            dialect=self.name,
            model=request.model,
            is_stream=bool(request.stream),
            wants_usage=request.stream_options is not None and bool(request.stream_options.include_usage),
            max_tokens=max(caps, default=None),
            choices=max(request.n or 1, request.best_of or 1),
            prompt_bytes=sum(len(members[name]) for name in _READ_BY_MODEL if name in members) - found.payload_bytes,
            images=found.pieces,
            body=body,
            fields=members,
            media=found.media,
        )

    def towards(self, provider: ProviderKind, call: Call) -> tuple[OpenAIChat, Call]:
        return self, call

    def ends_stream(self, chunk: bytes) -> bool:
        return chunk.endswith(DONE)

    def upstream_body(self, call: Call, *, upstream_model: str, max_tokens: int | None) -> bytes:
        return redirected(call, upstream_model=upstream_model, max_tokens=max_tokens)

    def read_answer(self, body: bytes) -> AnswerFacts:
        return read_completion(body)

    def texts_of(self, body: bytes) -> list[str]:
        return texts_of(body)

    def read_problem(self, body: bytes) -> UpstreamProblem:
        return read_problem(body)

    def stream_reader(self, call: Call) -> ChatStream:
        return ChatStream(choices=call.choices, shows_usage=call.wants_usage)

    def as_stream(self, body: bytes) -> bytes:
        """The events that would have carried this complete answer, for an upstream that sent one where a stream was asked for.

        Raises: BadAnswer, UpstreamSaidError.
        """
        return events_of(read_completion(body).mended or body)

    def error_body(self, error: GatewayError, request_id: str) -> bytes:
        return error_body(error, request_id)

    def error_event(self, error: GatewayError, request_id: str) -> bytes:
        return b"data: " + error_body(error, request_id) + b"\n\n"


class _Found(NamedTuple):
    pieces: int = 0
    payload_bytes: int = 0
    media: Media = NO_MEDIA


_NOTHING_FOUND = _Found()


def _media_in(messages: list[_Message]) -> _Found:
    """Images, sounds and files among the messages: how many, and how many bytes they are of what the model reads."""
    lists = [message.content for message in messages if bytes(memoryview(message.content)[:1]) == b"["]
    if not lists:
        return _NOTHING_FOUND
    parts = [part for content in lists for part in _parts_of(content)]
    if not any(part.image_url or part.input_audio or part.file or part.video_url for part in parts):
        return _NOTHING_FOUND
    images = [part.image_url for part in parts if part.image_url]
    sounds = [len(part.input_audio) for part in parts if part.input_audio]
    files = [len(raw) for part in parts for raw in (part.file, part.video_url) if raw]
    return _Found(
        pieces=len(images)
        + sum(1 + size // _BYTES_PER_AUDIO_PIECE for size in sounds)
        + sum(1 + size // _BYTES_PER_FILE_PIECE for size in files),
        payload_bytes=sum(map(len, images)) + sum(sounds) + sum(files),
        media=Media(
            pictures=tuple(map(_picture, images)),
            audio_bytes=sum(sounds),
            document_bytes=sum(size for size in files if size >= _LEAST_PAYLOAD_BYTES),
            unseen=sum(size < _LEAST_PAYLOAD_BYTES for size in files),
        ),
    )


def _parts_of(content: Raw) -> list[_Part]:
    try:
        return _parts.decode(content)
    except msgspec.ValidationError:
        return []  # A shape of its own: the upstream judges it, its bytes stay in the estimate.


def _picture(raw: Raw) -> Picture:
    try:
        image = _image.decode(raw)
    except msgspec.ValidationError:
        return Picture()
    url, detail = (raw, None) if isinstance(image, str) else (image.url, image.detail)
    head = bytes(memoryview(url)[:_PICTURE_HEAD_BYTES]).strip(b'"').replace(b"\\/", b"/")
    width, height = size_in(head) or (None, None)
    return Picture(detail if detail in ("low", "high") else "auto", width, height)
