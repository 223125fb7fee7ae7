"""OpenAI's chat completions: the request, the answer, the stream and the errors.

Requests and answers pass as the bytes they are; only the fields that limits, budgets and routing act on are decoded. A stream is
judged event by event, each one decoded into the few fields of `_Chunk`: measured, that is five times cheaper than searching the
bytes by regular expression for what might be worth decoding, and it proves every event to be JSON on the way.

What becomes of an upstream's event:

* a chunk passes byte for byte (`data: ` before it, a blank line after it); white space that broke it into several `data` lines
  becomes a space; `id`, `retry`, comments and the name of the event are not handed on;
* the chunk that holds nothing but usage is hidden from a caller who did not ask for it;
* an error object, with or without `event: error`, ends the stream as `UpstreamSaidError`;
* an event of an unknown name, and an object that is neither chunk nor error, is dropped;
* data that is not JSON ends the stream as `BadAnswer("bad_event")`: after a gap nobody knows what is missing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta, Raw, Struct

from app.dialects.base import AnswerFacts, BadAnswer, UpstreamProblem, UpstreamSaidError
from app.dialects.envelope import (
    encode,
    is_utf8,
    read_fields,
    read_members,
    require_finite,
    require_own_business,
)
from app.dialects.pictures import size_in
from app.dialects.sse import MAX_EVENT_BYTES, Framer
from app.domain.call import Call
from app.domain.media import NO_MEDIA, Media, Picture
from app.domain.pricing import Usage
from app.exceptions import GatewayError, MissingParameter

MAX_TOKENS = 100_000_000
"""No model writes as much; a larger number is a mistake and would only inflate reservations."""

_NONE = Raw(b"")
_TRUE = Raw(b"true")

_Penalty = Annotated[float, Meta(ge=-100, le=100)] | None
_TokenCap = Annotated[int, Meta(ge=1, le=MAX_TOKENS)] | None
_Choices = Annotated[int, Meta(ge=1, le=128)] | None
_Stops = Annotated[list[str], Meta(max_length=128)]


# ── The request ───────────────────────────────────────────────────────────────────────────────────────────────────────


class _Message(Struct, gc=False):
    role: str
    content: Raw = _NONE


class _StreamOptions(Struct):
    include_usage: bool | None = None


class _Request(Struct):
    """The fields we act on, and bounds for those whose absurd values cost somebody something. OpenAI's own bounds are tighter in
    places (`stop` ≤ 4, `temperature` ≤ 2), other upstreams' are not; they answer for themselves."""

    model: Annotated[str, Meta(min_length=1)]
    messages: Annotated[list[_Message], Meta(min_length=1)]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: _TokenCap = None
    max_completion_tokens: _TokenCap = None
    n: _Choices = None
    best_of: _Choices = None
    stop: str | _Stops | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    frequency_penalty: _Penalty = None
    presence_penalty: _Penalty = None
    logit_bias: Annotated[dict[str, float], Meta(max_length=1024)] | None = None
    tools: Annotated[list[Raw], Meta(max_length=512)] | None = None
    functions: Annotated[list[Raw], Meta(max_length=512)] | None = None


_TYPED = frozenset(_Request.__struct_fields__)
_READ_BY_MODEL = ("messages", "tools", "functions", "response_format")
_request = msgspec.json.Decoder(_Request)


class _Image(Struct, gc=False):
    url: Raw = _NONE
    detail: str | None = None


class _Part(Struct, gc=False):
    """One part of a message's content; those that are not text are counted as pieces, not as bytes."""

    image_url: Raw = _NONE
    input_audio: Raw = _NONE
    file: Raw = _NONE
    video_url: Raw = _NONE


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
    upstream_path = "/chat/completions"

    def read(self, body: bytes) -> Call:
        """Raises: InvalidJson, InvalidRequest, MissingParameter, ParamNotAllowed."""
        members = read_members(body)
        untyped = members.keys() - _TYPED
        if untyped:
            require_own_business(untyped)
            require_finite(members, untyped)
        for name in ("model", "messages"):
            if name not in members:
                raise MissingParameter(name)
        request = read_fields(_request, body)
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

    def upstream_body(self, call: Call, *, upstream_model: str, max_tokens: int | None) -> bytes:
        changes: dict[str, object] = {}
        if upstream_model != call.model:
            changes["model"] = upstream_model
        if call.is_stream and not call.wants_usage:
            changes["stream_options"] = _asking_for_usage(call.fields.get("stream_options"))
        if max_tokens is not None:
            for name in _cap_names(call.fields):
                changes[name] = max_tokens
        return encode({**call.fields, **changes}) if changes else call.body

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
        read_completion(body)
        return _events_of(body)

    def error_body(self, error: GatewayError, request_id: str) -> bytes:
        return error_body(error, request_id)

    def error_event(self, error: GatewayError, request_id: str) -> bytes:
        return b"data: " + error_body(error, request_id) + b"\n\n"


def _asking_for_usage(options: Raw | None) -> object:
    if options is None or bytes(options) == b"null":
        return {"include_usage": _TRUE}
    return msgspec.json.decode(options, type=dict[str, Raw]) | {"include_usage": _TRUE}


def _cap_names(fields: Mapping[str, Raw]) -> list[str]:
    """Under which names the caller capped the answer; every upstream knows the older one."""
    given = (name for name in ("max_completion_tokens", "max_tokens") if name in fields)
    return [name for name in given if bytes(fields[name]) != b"null"] or ["max_tokens"]


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


# ── Usage ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

_Tokens = Annotated[int, Meta(ge=0, le=1 << 40)]


class _CachedDetails(Struct):
    audio_tokens: _Tokens | None = None


class _PromptDetails(Struct):
    cached_tokens: _Tokens | None = None
    cached_tokens_details: _CachedDetails | None = None
    cache_write_tokens: _Tokens | None = None
    audio_tokens: _Tokens | None = None
    image_tokens: _Tokens | None = None


class _CompletionDetails(Struct):
    reasoning_tokens: _Tokens | None = None
    audio_tokens: _Tokens | None = None
    image_tokens: _Tokens | None = None


class _Usage(Struct):
    prompt_tokens: _Tokens
    completion_tokens: _Tokens
    total_tokens: _Tokens | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    prompt_cache_hit_tokens: _Tokens | None = None  # DeepSeek's word
    cached_tokens: _Tokens | None = None  # Moonshot's place
    service_tier: Raw = _NONE  # Anthropic's place


_usage = msgspec.json.Decoder(_Usage)


_tier = msgspec.json.Decoder(str)
_MAX_TIER_CHARS = 40


def read_usage(raw: bytes, service_tier: bytes = b"") -> Usage | None:
    """A provider's usage object; None when any figure in it is negative, fractional, text or missing: then none is believed.

    `service_tier` is the member of that name beside it: how the provider says that it served the call.
    """
    try:
        seen = _usage.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return None
    prompt = seen.prompt_tokens_details or _PromptDetails()
    completion = seen.completion_tokens_details or _CompletionDetails()
    reasoning_tokens = completion.reasoning_tokens or 0
    completion_tokens = seen.completion_tokens
    if seen.total_tokens == seen.prompt_tokens + completion_tokens + reasoning_tokens:
        completion_tokens += (
            reasoning_tokens  # Some (xAI) count reasoning beside the completion; here it is a part of it.
        )
    return Usage(
        prompt_tokens=seen.prompt_tokens,
        completion_tokens=completion_tokens,
        cached_tokens=prompt.cached_tokens or seen.prompt_cache_hit_tokens or seen.cached_tokens or 0,
        cache_write_5m_tokens=prompt.cache_write_tokens or 0,
        reasoning_tokens=reasoning_tokens,
        audio_input_tokens=prompt.audio_tokens or 0,
        audio_output_tokens=completion.audio_tokens or 0,
        cached_audio_tokens=(prompt.cached_tokens_details or _CachedDetails()).audio_tokens or 0,
        image_input_tokens=prompt.image_tokens or 0,
        image_output_tokens=completion.image_tokens or 0,
        service_tier=_tier_in(service_tier) or _tier_in(seen.service_tier),
    )


def _tier_in(raw: bytes | Raw) -> str | None:
    if len(raw) < 3:
        return None
    try:
        return _tier.decode(raw)[:_MAX_TIER_CHARS]
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None  # Not a name: no reason to disbelieve the figures.


def _is_given(raw: Raw) -> bool:
    """Neither absent nor null."""
    return len(raw) > 4 or (len(raw) > 0 and bytes(raw) != b"null")


def _is_filled(raw: Raw) -> bool:
    """Neither absent, null nor an empty string, list or object."""
    return len(raw) > 2 and bytes(raw) != b"null"


# ── The whole answer ──────────────────────────────────────────────────────────────────────────────────────────────────


class _Spoken(Struct, gc=False):
    """What a model may have produced: of a message, or of a delta."""

    content: Raw = _NONE
    reasoning_content: Raw = _NONE
    reasoning: Raw = _NONE
    tool_calls: Raw = _NONE
    function_call: Raw = _NONE
    refusal: Raw = _NONE
    audio: Raw = _NONE
    images: Raw = _NONE

    def rest(self) -> int:
        """Bytes of everything but the content."""
        others = (self.reasoning_content, self.reasoning, self.tool_calls, self.function_call)
        rare = (self.refusal, self.audio, self.images)
        return sum(len(raw) for raw in others + rare if _is_filled(raw))


class _AnswerChoice(Struct, gc=False):
    message: _Spoken | None = None
    finish_reason: str | None = None


class _Completion(Struct):
    choices: list[_AnswerChoice] | None = None
    usage: Raw = _NONE
    service_tier: Raw = _NONE
    error: Raw = _NONE


_completion = msgspec.json.Decoder(_Completion)
_SILENT_FINISHES = ("length", "content_filter")
"""Reasons that explain an answer without content: all tokens went into thinking, or the filter took it."""


def read_completion(body: bytes) -> AnswerFacts:
    """Judge a complete answer. Raises: BadAnswer, UpstreamSaidError."""
    if not body.strip():
        raise BadAnswer("empty_body")
    try:
        answer = _completion.decode(body)
    except msgspec.ValidationError:
        _raise_if_error(body)
        raise BadAnswer("not_a_completion") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        repaired = _without_nan(body)
        if repaired is None:
            raise BadAnswer("not_json") from None
        return read_completion(repaired)
    if not is_utf8(body):
        raise BadAnswer("not_utf8")
    if _is_given(answer.error):
        raise UpstreamSaidError(read_problem(body))
    if not answer.choices:
        _raise_if_error(body)
        raise BadAnswer("no_choices")
    output_bytes = sum(_output_bytes(choice) for choice in answer.choices)
    return AnswerFacts(read_usage(answer.usage, answer.service_tier), answer.choices[0].finish_reason, output_bytes)


def texts_of(body: bytes) -> list[str]:
    """The words of a complete answer that was found good, all choices."""
    reader = ChatStream()
    reader.feed(_events_of(body))
    return reader.texts()


def _output_bytes(choice: _AnswerChoice) -> int:
    spoken = choice.message
    if spoken is None:
        raise BadAnswer("no_message")
    rest = spoken.rest()
    if not _is_given(spoken.content):
        if not rest and choice.finish_reason not in _SILENT_FINISHES:
            raise BadAnswer("no_content")
        return rest
    return rest + len(spoken.content) - 2


_USAGE_NAN = re.compile(rb"(?<=[:,\[ ])-?(?:NaN|Infinity)(?=[,}\] \r\n])")


def _without_nan(data: bytes) -> bytes | None:
    """The JSON with null for NaN in its usage object, which is all that some providers get wrong; None when that does not help."""
    head, mark, tail = data.rpartition(b'"usage"')
    if not mark or (b"NaN" not in tail and b"Infinity" not in tail):
        return None
    repaired = head + mark + _USAGE_NAN.sub(b"null", tail)
    try:
        msgspec.json.decode(repaired, type=Raw)
    except (msgspec.DecodeError, RecursionError):
        return None
    return repaired


# ── Errors ────────────────────────────────────────────────────────────────────────────────────────────────────────────

_Word = str | int | float | bool | None


class _Error(Struct):
    """One error object, as loosely as upstreams write them."""

    message: Raw = _NONE
    code: Raw = _NONE
    type: Raw = _NONE
    param: Raw = _NONE
    status: Raw = _NONE
    detail: Raw = _NONE


_members = msgspec.json.Decoder(dict[str, Raw])
_error = msgspec.json.Decoder(_Error)
_word = msgspec.json.Decoder(_Word)
_objects = msgspec.json.Decoder(list[Raw])

_STATUS_OF_WORD = {
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "requests": 429,
    "tokens": 429,
    "insufficient_quota": 429,
    "resource_exhausted": 429,
    "invalid_api_key": 401,
    "authentication_error": 401,
    "permission_error": 403,
    "model_not_found": 404,
    "not_found_error": 404,
    "context_length_exceeded": 400,
    "content_filter": 400,
    "content_policy_violation": 400,
    "invalid_request_error": 400,
    "invalid_request": 400,
    "invalid_argument": 400,
    "server_error": 500,
    "internal_error": 500,
    "api_error": 500,
    "overloaded": 503,
    "overloaded_error": 503,
    "service_unavailable": 503,
    "unavailable": 503,
    "timeout": 504,
    "timeout_error": 504,
}
_MAX_WORD_CHARS = 2000
NO_PROBLEM = UpstreamProblem(message=None, code=None, type=None, param=None)


def read_problem(body: bytes) -> UpstreamProblem:
    """Find the error object, wherever the upstream put it; nothing found is an empty problem, never an exception."""
    try:
        return _problem_in(body, depth=0)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return NO_PROBLEM


def _problem_in(body: bytes, *, depth: int) -> UpstreamProblem:
    start = body.lstrip()[:1]
    if start == b"[" and depth == 0:  # Google's compatible API wraps its error into a list.
        items = _objects.decode(body)
        return _problem_in(bytes(items[0]), depth=1) if items else NO_PROBLEM
    if start != b"{":
        return UpstreamProblem(message=_text(Raw(body)), code=None, type=None, param=None)
    members = _members.decode(body)
    inner = members.get("error", _NONE)
    if _is_given(inner) and depth < 2:
        return _problem_in(bytes(inner), depth=2)
    error = _error.decode(body)
    code, kind = _text(error.code), _text(error.type)
    return UpstreamProblem(
        message=_text(error.message) or _text(error.detail),
        code=code,
        type=kind,
        param=_text(error.param),
        status=_status_of(error.status, error.code, code, kind),
    )


def _text(raw: Raw) -> str | None:
    """A word of an error as text, capped; None for absent, null and what is no word."""
    if not raw:
        return None
    try:
        word = _word.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return None if word is None else str(word)[:_MAX_WORD_CHARS]


def _status_of(*words: Raw | str | None) -> int | None:
    """The HTTP status an error object names: as a number, or by a word that stands for one."""
    for word in words:
        text = _text(word) if isinstance(word, Raw) else word
        if text is None:
            continue
        if text.isdecimal() and len(text) == 3 and 400 <= int(text) <= 599:
            return int(text)
        status = _STATUS_OF_WORD.get(text.lower())
        if status is not None:
            return status
    return None


def _raise_if_error(body: bytes) -> None:
    """Raise what an object without choices says, if it is an error: `error`, or Mistral's and vLLM's `object: "error"`."""
    problem = read_problem(body)
    try:
        members = _members.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
    kinds = (_text(members.get("object", _NONE)), _text(members.get("type", _NONE)))
    if _is_given(members.get("error", _NONE)) or "error" in kinds:
        raise UpstreamSaidError(problem)


def error_body(error: GatewayError, request_id: str) -> bytes:
    """CONTRACT, section 2: OpenAI's shape, with the request's id inside."""
    return encode(
        {
            "error": {
                "message": error.message,
                "type": error.type,
                "param": error.param,
                "code": error.code,
                "request_id": request_id,
            }
        }
    )


# ── The stream ────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Choice(Struct, gc=False):
    delta: _Spoken | None = None
    finish_reason: str | None = None
    index: int | None = None


class _Chunk(Struct):
    choices: list[_Choice] | None = None
    usage: Raw = _NONE
    service_tier: Raw = _NONE
    error: Raw = _NONE


class _BareChoice(Struct):
    delta: dict[str, Raw] | None = None


class _BareChunk(Struct):
    choices: list[_BareChoice]


_chunk = msgspec.json.Decoder(_Chunk).decode
_bare_chunk = msgspec.json.Decoder(_BareChunk).decode
_DONE = b"data: [DONE]\n\n"
_SHARED_BY_CHUNKS = ("id", "object", "created", "model", "system_fingerprint", "service_tier")
_ARGUMENTS = re.compile(rb'(?<="arguments":)\s*("(?:[^"\\]|\\.)*")')
_MAX_KEPT_BYTES = 1 << 20
"""Of one choice's text; an answer beyond that is counted by its bytes."""
_BYTES_PER_TOKEN = 5
"""Below the average of every common tokenizer for prose, so that text in large pieces is not billed for less than it is."""


class ChatStream:
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
            return b"" if passed is None else _framed([passed])
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
        return data if is_same else _framed(kept)

    def _feed_odd(self, data: bytes) -> bytes:
        kept: list[bytes] = []
        try:
            for name, payload in self._framer.events(data):
                if (passed := self._judged(name, payload)) is not None:
                    kept.append(passed)
        except (BadAnswer, UpstreamSaidError) as failure:
            return self._kept_before(failure, kept)
        return _framed(kept)

    def _kept_before(self, failure: BadAnswer | UpstreamSaidError, kept: list[bytes]) -> bytes:
        self._failure = failure
        if not kept:
            raise failure
        return _framed(kept)

    def end(self) -> bytes:
        if self._failure is not None:
            raise self._failure
        last = b"" if self._is_done else self._rest()
        if not self.has_begun:
            raise BadAnswer("empty_stream")
        if not self.is_complete:
            self._failure = BadAnswer("truncated")
            raise self._failure
        return last if self._is_done else last + _DONE

    def cut(self, delivered_tokens: int, prompt_tokens: int) -> bytes:
        ended: list[object] = [
            {"index": index, "delta": {}, "logprobs": None, "finish_reason": "length"}
            for index in range(max([self._choices, *(index + 1 for index in self._said)]))
            if index not in self._finished
        ]
        base = {
            name: value for name, value in _members.decode(self._head or b"{}").items() if name in _SHARED_BY_CHUNKS
        }
        events = [encode({**base, "choices": ended})]
        if self._shows_usage:
            usage = _usage_shown(self.usage or Usage(prompt_tokens, delivered_tokens))
            events.append(encode({**base, "choices": [], "usage": usage}))
        self._is_done = True
        self.finish_reason, self.delivered_tokens = "length", delivered_tokens
        return _framed([*events, b"[DONE]"])

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
        return b"" if passed is None else _framed([passed])

    def _judged(self, name: bytes, payload: bytes) -> bytes | None:
        """The data to hand on: the very same where it needs no change, None for what is not handed on."""
        if self._is_done:
            return None
        try:
            chunk = _chunk(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self._judged_odd(name, payload)
        if name and name != b"message" and (name == b"error" or not chunk.choices):
            if name == b"error":
                raise UpstreamSaidError(read_problem(payload))
            return None
        if chunk.error and _is_given(chunk.error):
            raise UpstreamSaidError(read_problem(payload))
        if not payload.isascii() and not is_utf8(payload):
            raise BadAnswer("bad_event")
        has_usage = len(chunk.usage) > 4
        if has_usage:
            self.usage = read_usage(chunk.usage, chunk.service_tier)
        if chunk.choices:
            if not self._head:
                self._head = payload
            self._count(chunk.choices, payload)
        elif chunk.choices is None:
            _raise_if_error(payload)
            return None
        elif has_usage and not self._shows_usage:
            return None
        return payload if b"\n" not in payload else payload.replace(b"\n", b" ")

    def _count(self, choices: list[_Choice], payload: bytes) -> None:
        """Note what the choices of one chunk carried."""
        for choice in choices:
            delta = choice.delta
            if delta is not None:
                size = len(delta.content) - 2
                if size == 2 and bytes(delta.content) == b"null":
                    size = 0
                if size > 0:
                    said = self._said.get(choice.index or 0)
                    if said is None:
                        self._keep(choice.index or 0, bytes(delta.content))
                    elif len(said) < _MAX_KEPT_BYTES:
                        said += bytes(delta.content)[1:-1]
                else:
                    size = self._rest_of(choice.index or 0, delta)
                if size > 0:
                    self.pieces += 1
                    self.piece_bytes += size
                    self.delivered_tokens = max(self.pieces, self.piece_bytes // _BYTES_PER_TOKEN)
                    self.has_begun = True
            if choice.finish_reason:
                self._finish(choice)
        if not self.has_begun:
            self.has_begun = _says_anything(payload)

    def _rest_of(self, index: int, delta: _Spoken) -> int:
        """Bytes of what a delta carries beside content; of that too the words are kept."""
        size = delta.rest()
        if size > 0:
            for raw in (delta.reasoning_content or delta.reasoning, delta.refusal):
                self._keep(index, bytes(raw))
            for raw in (delta.tool_calls, delta.function_call):
                for said in _ARGUMENTS.findall(raw):
                    self._keep(index, said)
        return size

    def _keep(self, index: int, quoted: bytes) -> None:
        if quoted[:1] != b'"':
            return
        said = self._said.get(index)
        if said is None:
            said = self._said[index] = bytearray()
        if len(said) < _MAX_KEPT_BYTES:
            said += quoted[1:-1]

    def _finish(self, choice: _Choice) -> None:
        self.has_begun = True
        self.finish_reason = choice.finish_reason
        self._finished.add(choice.index or 0)
        self.is_complete = self.is_complete or len(self._finished) >= self._choices

    def _judged_odd(self, name: bytes, payload: bytes) -> bytes | None:
        """What is no chunk: the done marker, blank data, a named event in a format of its own, or an error without a JSON shape."""
        if name == b"error":
            raise UpstreamSaidError(read_problem(payload))
        if name and name != b"message":
            return None
        marker = payload.strip()
        if marker == b"[DONE]":
            return self._done(payload)
        if not marker:
            return None
        repaired = _without_nan(payload)
        if repaired is not None:
            return self._judged(name, repaired)
        _raise_if_error(payload)
        raise BadAnswer("bad_event")

    def _done(self, payload: bytes) -> bytes:
        """Raises: BadAnswer when the stream is over before it began."""
        if not self.has_begun:
            raise BadAnswer("empty_stream")
        self._is_done = self.is_complete = True
        return payload if payload == b"[DONE]" else b"[DONE]"


def _usage_shown(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _text_in(quoted: bytes) -> str:
    """What a JSON string says; pieces of one that do not fit together are taken as they are."""
    try:
        return _as_text(quoted)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return quoted.decode("utf-8", "replace")


_as_text = msgspec.json.Decoder(str).decode


def _framed(payloads: list[bytes]) -> bytes:
    return b"".join([b"data: " + payload + b"\n\n" for payload in payloads])


def _says_anything(payload: bytes) -> bool:
    """Does a delta hold more than its role and empty values? Only asked until the stream has begun, for deltas of unknown kinds."""
    try:
        chunk = _bare_chunk(payload)
    except msgspec.DecodeError:
        return True
    return any(
        name != "role" and _is_filled(value) for choice in chunk.choices for name, value in (choice.delta or {}).items()
    )


def _events_of(body: bytes) -> bytes:
    """A complete answer as a stream: what each choice said, why it ended, the usage, the done marker."""
    answer = _members.decode(body)
    usage = answer.pop("usage", _NONE)
    choices = _choice_members.decode(answer.pop("choices"))
    base: dict[str, object] = {**answer, "object": "chat.completion.chunk"}
    events: list[bytes] = []
    for number, choice in enumerate(choices):
        index = choice.get("index", Raw(b"%d" % number))
        reason = choice.get("finish_reason", _NONE)
        if not _is_given(reason):
            reason = Raw(b'"stop"')  # a whole body has ended, whether or not it says so
        said = {"index": index, "delta": _as_delta(choice.get("message", _NONE)), "finish_reason": None}
        ended = {"index": index, "delta": {}, "finish_reason": reason}
        if "logprobs" in choice:
            said["logprobs"] = choice["logprobs"]
        events += [encode({**base, "choices": [said]}), encode({**base, "choices": [ended]})]
    if _is_given(usage):
        events.append(encode({**base, "choices": [], "usage": usage}))
    return _framed([*events, b"[DONE]"])


_choice_members = msgspec.json.Decoder(list[dict[str, Raw]])


def _as_delta(message: Raw) -> dict[str, object]:
    """A message as one delta; its tool calls get the index that only deltas have."""
    delta: dict[str, object] = dict(_members.decode(message))
    calls = delta.get("tool_calls")
    if isinstance(calls, Raw) and _is_filled(calls):
        delta["tool_calls"] = [{"index": index, **call} for index, call in enumerate(_choice_members.decode(calls))]
    return delta
