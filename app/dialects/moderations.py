"""OpenAI's moderations: `POST /v1/moderations`."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Raw, Struct

from app.dialects.base import AnswerFacts, BadAnswer
from app.dialects.envelope import RequestReader
from app.dialects.forwarded import Forwarded, read_unstreamed
from app.dialects.openai_answer import WholeAnswer, read_whole
from app.dialects.openai_errors import raise_if_error
from app.dialects.openai_usage import read_input_usage
from app.domain.call import Call
from app.exceptions import InvalidRequest


class _Request(Struct):
    model: Annotated[str, Meta(min_length=1)]
    input: str | Annotated[list[Raw], Meta(min_length=1, max_length=2048)]


class _Moderation(WholeAnswer):
    results: list[Raw] | None = None


_request = RequestReader(_Request, "model", "input")
_moderation = msgspec.json.Decoder(_Moderation)


class Moderations(Forwarded):
    name = "moderations"
    upstream_path = "/moderations"

    def read(self, body: bytes) -> Call:
        members, request = read_unstreamed(_request, body)
        if not request.input:
            raise InvalidRequest("Invalid value for 'input': there is nothing to judge.", param="input")
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
            inputs=len(request.input) if isinstance(request.input, list) else 1,
        )

    def read_answer(self, body: bytes) -> AnswerFacts:
        answer, mended = read_whole(_moderation, body)
        if not answer.results:
            raise_if_error(body)
            raise BadAnswer("no_results")
        return AnswerFacts(read_input_usage(answer.usage), None, 0, mended=None if mended is body else mended)
