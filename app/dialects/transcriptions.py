"""OpenAI's text from speech: `POST /v1/audio/transcriptions` and `/v1/audio/translations`, forms with a file of sound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta, Raw, Struct

from app.dialects.base import AnswerFacts, BadAnswer
from app.dialects.envelope import NONE, encode, require_own_business
from app.dialects.forwarded import Forwarded
from app.dialects.multipart import Part, boundary_in, form_type, read_form, replaced
from app.dialects.openai_answer import WholeAnswer, read_whole
from app.dialects.openai_errors import raise_if_error
from app.domain.call import Call
from app.domain.media import Media
from app.domain.pricing import Usage
from app.exceptions import InvalidRequest, MissingParameter

MAX_FIELD_BYTES = 64 << 10
"""Of every field but the file."""
_BYTES_PER_WRITTEN_TOKEN = 256
_LEAST_WRITTEN_TOKENS = 256
"""Four tokens a second are fast speech, and a second of speech is seldom below a kilobyte: what is reserved for the text."""


class _Transcript(WholeAnswer):
    text: Raw = NONE


_Tokens = Annotated[int, Meta(ge=0, le=1 << 40)]


class _Details(Struct):
    audio_tokens: _Tokens = 0


class _Usage(Struct):
    input_tokens: _Tokens
    output_tokens: _Tokens
    input_token_details: _Details | None = None


_transcript = msgspec.json.Decoder(_Transcript)
_usage = msgspec.json.Decoder(_Usage)
_string = msgspec.json.Decoder(str)


class Transcriptions(Forwarded):
    name = "transcriptions"
    upstream_path = "/audio/transcriptions"
    answer_types = ("text/plain", "text/vtt", "text/srt", "application/x-subrip")

    def read(self, body: bytes) -> Call:
        raise TypeError("a form is read by read_form")

    def read_form(self, body: bytes, content_type: bytes) -> Call:
        """Raises: InvalidRequest, MissingParameter, ParamNotAllowed."""
        boundary = boundary_in(content_type)
        parts = read_form(body, boundary)
        require_own_business(part.name for part in parts)
        fields = _fields_in(body, parts)
        sound = [part for part in parts if part.name == "file"]
        if not sound:
            raise MissingParameter("file")
        if len(sound) > 1 or not sound[0].is_file or not sound[0].size:
            raise InvalidRequest("Invalid value for 'file': it must be one file of sound.", param="file")
        model = fields.get("model", "")
        if not model:
            raise MissingParameter("model")
        if fields.get("stream") == "true":
            raise InvalidRequest("Answers of this kind come in one piece: leave out 'stream'.", param="stream")
        shown = {**fields, "file": f"{sound[0].size} bytes"}
        return Call(
            dialect=self.name,
            model=model,
            is_stream=False,
            wants_usage=False,
            max_tokens=_LEAST_WRITTEN_TOKENS + sound[0].size // _BYTES_PER_WRITTEN_TOKEN,
            choices=1,
            prompt_bytes=len(fields.get("prompt", "").encode()),
            images=0,
            body=encode(shown),
            fields={name: Raw(encode(value)) for name, value in shown.items()},
            media=Media(audio_bytes=sound[0].size * 4 // 3),
            form=(boundary, body),
        )

    def headers_of(self, call: Call) -> Mapping[str, str]:
        boundary, _ = _form_of(call)
        return {**super().headers_of(call), "Content-Type": form_type(boundary)}

    def upstream_body(self, call: Call, *, upstream_model: str, max_tokens: int | None) -> bytes:
        boundary, body = _form_of(call)
        if upstream_model == call.model:
            return body
        model = next(part for part in read_form(body, boundary) if part.name == "model")
        return replaced(body, model, upstream_model.encode())

    def read_answer(self, body: bytes) -> AnswerFacts:
        """A text alone, subtitles, or an object with the text in it."""
        start = body.lstrip()[:1]
        if not start or start == b"<":
            raise BadAnswer("not_a_transcript" if start else "empty_body")
        if start != b"{":
            return AnswerFacts(None, None, len(body))
        answer, mended = read_whole(_transcript, body)
        if not answer.text:
            raise_if_error(body)
            raise BadAnswer("no_content")
        usage = _read_usage(answer.usage)
        return AnswerFacts(usage, None, len(answer.text) - 2, mended=None if mended is body else mended)

    def texts_of(self, body: bytes) -> list[str]:
        if body.lstrip()[:1] != b"{":
            return [body.decode("utf-8", "replace")]
        text = msgspec.json.decode(body, type=dict[str, Raw]).get("text", NONE)
        try:
            return [_string.decode(text)]
        except msgspec.DecodeError:
            return []


class Translations(Transcriptions):
    name = "translations"
    upstream_path = "/audio/translations"


def _fields_in(body: bytes, parts: list[Part]) -> dict[str, str]:
    """Every field but files, as text. Raises: InvalidRequest."""
    fields: dict[str, str] = {}
    for part in parts:
        if part.name == "file":
            continue
        if part.is_file or part.size > MAX_FIELD_BYTES:
            raise InvalidRequest(f"Invalid value for '{part.name}': it must be a short text.", param=part.name)
        if part.name in fields and not part.name.endswith("[]"):
            raise InvalidRequest(f"The form names '{part.name}' twice.", param=part.name)
        try:
            fields[part.name] = body[part.start : part.end].decode()
        except UnicodeDecodeError:
            raise InvalidRequest(f"Invalid value for '{part.name}': it is not UTF-8.", param=part.name) from None
    return fields


def _form_of(call: Call) -> tuple[bytes, bytes]:
    if call.form is None:
        raise TypeError("not a call of a form")
    return call.form


def _read_usage(raw: Raw) -> Usage | None:
    """Tokens where the provider counts them; the older model counts seconds, which no price of ours knows."""
    try:
        seen = _usage.decode(raw)
    except msgspec.DecodeError:
        return None
    details = seen.input_token_details or _Details()
    return Usage(seen.input_tokens, seen.output_tokens, audio_input_tokens=details.audio_tokens)
