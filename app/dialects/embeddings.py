"""OpenAI's embeddings: `POST /v1/embeddings`. Nothing is streamed and nothing is written, so only the input costs."""

from __future__ import annotations

from typing import Annotated, NoReturn

import msgspec
from msgspec import Meta, Raw, Struct

from app.dialects.base import AnswerFacts, BadAnswer, UpstreamProblem
from app.dialects.completions import MAX_PROMPTS, Prompts, read_prompts
from app.dialects.envelope import (
    NONE,
    RequestReader,
    encode,
    is_filled,
)
from app.dialects.openai_answer import WholeAnswer, read_whole
from app.dialects.openai_errors import error_body, raise_if_error, read_problem
from app.dialects.openai_usage import read_input_usage
from app.domain.call import Call
from app.domain.catalog import ProviderKind
from app.exceptions import GatewayError, InvalidRequest


class _Request(Struct):
    model: Annotated[str, Meta(min_length=1)]
    input: Raw
    dimensions: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    encoding_format: Annotated[str, Meta(max_length=40)] | None = None


_request = RequestReader(_Request, "model", "input")
_objects = msgspec.json.Decoder(Annotated[list[Raw], Meta(min_length=1, max_length=MAX_PROMPTS)])


class Embeddings:
    """`POST /v1/embeddings`."""

    name = "embeddings"
    upstream_path = "/embeddings"
    passes_headers: tuple[bytes, ...] = ()

    def read(self, body: bytes) -> Call:
        """Raises: InvalidJson, InvalidRequest, MissingParameter, ParamNotAllowed."""
        members, request = _request.read(body)
        inputs = _inputs_in(request.input)
        return Call(
            dialect=self.name,
            model=request.model,
            is_stream=False,
            wants_usage=False,
            max_tokens=0,
            choices=1,
            prompt_bytes=inputs.size_bytes,
            images=0,
            body=body,
            fields=members,
            inputs=inputs.number,
        )

    def towards(self, provider: ProviderKind, call: Call) -> tuple[Embeddings, Call]:
        return self, call

    def ends_stream(self, chunk: bytes) -> bool:
        return False  # there are none

    def upstream_body(self, call: Call, *, upstream_model: str, max_tokens: int | None) -> bytes:
        return call.body if upstream_model == call.model else encode({**call.fields, "model": upstream_model})

    def read_answer(self, body: bytes) -> AnswerFacts:
        answer, mended = read_whole(_embeddings, body)
        if not answer.data:
            raise_if_error(body)
            raise BadAnswer("no_embeddings")
        if not all(is_filled(item.embedding) for item in answer.data):
            raise BadAnswer("no_content")
        return AnswerFacts(
            usage=read_input_usage(answer.usage),
            finish_reason=None,
            output_bytes=0,
            mended=None if mended is body else mended,
        )

    def texts_of(self, body: bytes) -> list[str]:
        return []

    def read_problem(self, body: bytes) -> UpstreamProblem:
        return read_problem(body)

    def stream_reader(self, call: Call) -> NoReturn:
        raise TypeError("embeddings are not streamed")

    def error_body(self, error: GatewayError, request_id: str) -> bytes:
        return error_body(error, request_id)

    def error_event(self, error: GatewayError, request_id: str) -> bytes:
        return b"data: " + error_body(error, request_id) + b"\n\n"


class _Item(Struct, gc=False):
    embedding: Raw = NONE


class _Embeddings(WholeAnswer):
    data: list[_Item] | None = None


_embeddings = msgspec.json.Decoder(_Embeddings)


def _inputs_in(raw: Raw) -> Prompts:
    """Texts or tokens as OpenAI takes them, or objects (pictures, documents) as some others do: those are for the upstream to judge.

    Raises: InvalidRequest.
    """
    if bytes(raw) in (b'""', b"null", b"[]"):
        raise InvalidRequest("Invalid value for 'input': there is nothing to embed.", param="input")
    try:
        return read_prompts(raw, "input")
    except InvalidRequest:
        try:
            items = _objects.decode(raw)
        except msgspec.ValidationError:
            items = []
        if not items or not all(bytes(item).lstrip()[:1] == b"{" for item in items):
            raise
        return Prompts(len(items), len(raw))
