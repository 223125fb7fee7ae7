"""Reranking, as Cohere, Jina, Voyage, vLLM and llama.cpp have it: `POST /v1/rerank`."""

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

MAX_DOCUMENTS = 10_000
"""Cohere's own limit, the highest published."""


class _Request(Struct):
    model: Annotated[str, Meta(min_length=1)]
    query: Raw
    documents: Annotated[list[Raw], Meta(min_length=1, max_length=MAX_DOCUMENTS)]
    top_n: Annotated[int, Meta(ge=1, le=MAX_DOCUMENTS)] | None = None


class _Ranking(WholeAnswer):
    results: list[Raw] | None = None
    data: list[Raw] | None = None
    """Voyage's word for the results."""


_request = RequestReader(_Request, "model", "query", "documents")
_ranking = msgspec.json.Decoder(_Ranking)


class Rerank(Forwarded):
    name = "rerank"
    upstream_path = "/rerank"

    def read(self, body: bytes) -> Call:
        members, request = read_unstreamed(_request, body)
        documents = len(request.documents)
        return Call(
            dialect=self.name,
            model=request.model,
            is_stream=False,
            wants_usage=False,
            max_tokens=0,
            choices=1,
            # Every document is read together with the query.
            prompt_bytes=len(members["documents"]) + len(members["query"]) * documents,
            images=0,
            body=body,
            fields=members,
            inputs=documents,
        )

    def read_answer(self, body: bytes) -> AnswerFacts:
        answer, mended = read_whole(_ranking, body)
        if answer.results is None and answer.data is None:
            raise_if_error(body)
            raise BadAnswer("no_results")
        return AnswerFacts(read_input_usage(answer.usage), None, 0, mended=None if mended is body else mended)
