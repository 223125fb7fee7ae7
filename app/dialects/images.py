"""OpenAI's pictures from text: `POST /v1/images/generations`."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Raw, Struct

from app.dialects.base import AnswerFacts, BadAnswer
from app.dialects.envelope import NONE, RequestReader, is_filled
from app.dialects.forwarded import Forwarded, read_unstreamed
from app.dialects.openai_answer import WholeAnswer, read_whole
from app.dialects.openai_errors import raise_if_error
from app.domain.call import Call
from app.domain.pricing import Usage

TOKENS_OF_QUALITY = {"low": 408, "medium": 1_584, "standard": 0, "hd": 0}
MOST_TOKENS = 6_240
"""Of one picture, at the largest size and the best quality (platform.openai.com/docs/guides/image-generation, "Cost"). The two qualities
of the models before are paid by the picture, not by tokens."""


class _Request(Struct):
    model: Annotated[str, Meta(min_length=1)]
    prompt: Annotated[str, Meta(min_length=1)]
    n: Annotated[int, Meta(ge=1, le=100)] | None = None
    quality: Annotated[str, Meta(max_length=40)] | None = None
    size: Annotated[str, Meta(max_length=40)] | None = None


class _Picture(Struct, gc=False):
    url: Raw = NONE
    b64_json: Raw = NONE


class _Pictures(WholeAnswer):
    data: list[_Picture] | None = None


_Tokens = Annotated[int, Meta(ge=0, le=1 << 40)]


class _Details(Struct):
    image_tokens: _Tokens = 0


class _Usage(Struct):
    input_tokens: _Tokens
    output_tokens: _Tokens
    input_tokens_details: _Details | None = None


_request = RequestReader(_Request, "model", "prompt")
_pictures = msgspec.json.Decoder(_Pictures)
_usage = msgspec.json.Decoder(_Usage)


class Images(Forwarded):
    name = "images"
    upstream_path = "/images/generations"

    def read(self, body: bytes) -> Call:
        members, request = read_unstreamed(_request, body)
        pictures = request.n or 1
        return Call(
            dialect=self.name,
            model=request.model,
            is_stream=False,
            wants_usage=False,
            max_tokens=TOKENS_OF_QUALITY.get(request.quality or "", MOST_TOKENS),
            choices=pictures,
            prompt_bytes=len(members["prompt"]),
            images=pictures,
            body=body,
            fields=members,
        )

    def read_answer(self, body: bytes) -> AnswerFacts:
        answer, mended = read_whole(_pictures, body)
        if not answer.data:
            raise_if_error(body)
            raise BadAnswer("no_pictures")
        if not any(is_filled(picture.url) or is_filled(picture.b64_json) for picture in answer.data):
            raise BadAnswer("no_content")
        return AnswerFacts(_read_usage(answer.usage), None, 0, mended=None if mended is body else mended)


def _read_usage(raw: Raw) -> Usage | None:
    try:
        seen = _usage.decode(raw)
    except msgspec.DecodeError:
        return None
    details = seen.input_tokens_details or _Details()
    return Usage(
        prompt_tokens=seen.input_tokens,
        completion_tokens=seen.output_tokens,
        image_input_tokens=details.image_tokens,
        image_output_tokens=seen.output_tokens,
    )
