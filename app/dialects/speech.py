"""OpenAI's speech from text: `POST /v1/audio/speech`. The answer is sound, or an error in JSON."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from app.dialects.base import AnswerFacts, BadAnswer
from app.dialects.envelope import RequestReader
from app.dialects.forwarded import Forwarded, read_unstreamed
from app.dialects.openai_errors import raise_if_error
from app.domain.call import Call
from app.exceptions import InvalidRequest


class _Request(Struct):
    model: Annotated[str, Meta(min_length=1)]
    input: Annotated[str, Meta(min_length=1)]
    response_format: Annotated[str, Meta(max_length=40)] | None = None
    stream_format: Annotated[str, Meta(max_length=40)] | None = None
    speed: Annotated[float, Meta(ge=0.1, le=10)] | None = None


_request = RequestReader(_Request, "model", "input")
_NO_SOUND = (b"<", b"{", b"[")
"""How pages, objects and lists begin. No format of sound begins so."""


class Speech(Forwarded):
    name = "speech"
    upstream_path = "/audio/speech"
    answer_types = ("audio/", "application/octet-stream")

    def read(self, body: bytes) -> Call:
        members, request = read_unstreamed(_request, body)
        if request.stream_format == "sse":
            raise InvalidRequest(
                "Speech comes as sound in one piece: 'stream_format' may be 'audio'.", param="stream_format"
            )
        return Call(
            dialect=self.name,
            model=request.model,
            is_stream=False,
            wants_usage=False,
            max_tokens=0,
            choices=1,
            prompt_bytes=len(members["input"]),
            images=0,
            body=body,
            fields=members,
        )

    def read_answer(self, body: bytes) -> AnswerFacts:
        if not body:
            raise BadAnswer("empty_body")
        if body.lstrip()[:1] in _NO_SOUND:
            raise_if_error(body)
            raise BadAnswer("no_sound")
        return AnswerFacts(None, None, 0)
