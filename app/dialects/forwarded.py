"""One request, one answer, both passed on as they are: what the families of this kind have in common.

Nothing of them is translated, so only endpoints that are spoken to natively offer them. The gateway reads the model's name, what
limits and prices need, and whether the answer is one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NoReturn, TypeVar

from msgspec import Raw, Struct

from app.dialects.base import AnswerFacts, Dialect, UpstreamProblem
from app.dialects.envelope import RequestReader, encode
from app.dialects.openai_errors import error_body, read_problem
from app.domain.call import Call
from app.domain.catalog import ProviderKind
from app.exceptions import GatewayError, InvalidRequest

JSON_TYPE = "application/json"
S = TypeVar("S", bound=Struct)


class Forwarded(ABC):
    """A `Dialect` without streams."""

    name: str
    upstream_path: str
    answer_types: tuple[str, ...] = ()
    """How media types of answers may begin, besides JSON's."""
    passes_headers: tuple[bytes, ...] = ()

    @abstractmethod
    def read(self, body: bytes) -> Call: ...

    @abstractmethod
    def read_answer(self, body: bytes) -> AnswerFacts: ...

    def headers_of(self, call: Call) -> Mapping[str, str]:
        """What the upstream is told of the request's body and of what may come back."""
        return {
            "Accept": ", ".join(
                (JSON_TYPE, *(f"{kind}*" if kind.endswith("/") else kind for kind in self.answer_types))
            )
        }

    def towards(self, provider: ProviderKind, call: Call) -> tuple[Dialect, Call]:
        return self, call

    def ends_stream(self, chunk: bytes) -> bool:
        return False  # there are none

    def upstream_body(self, call: Call, *, upstream_model: str, max_tokens: int | None) -> bytes:
        return call.body if upstream_model == call.model else encode({**call.fields, "model": upstream_model})

    def texts_of(self, body: bytes) -> list[str]:
        return []

    def read_problem(self, body: bytes) -> UpstreamProblem:
        return read_problem(body)

    def stream_reader(self, call: Call) -> NoReturn:
        raise TypeError(f"{self.name} is not streamed")

    def error_body(self, error: GatewayError, request_id: str) -> bytes:
        return error_body(error, request_id)

    def error_event(self, error: GatewayError, request_id: str) -> bytes:
        return b"data: " + error_body(error, request_id) + b"\n\n"


def read_unstreamed(reader: RequestReader[S], body: bytes) -> tuple[dict[str, Raw], S]:
    """As the reader reads it, and not to be streamed. Raises: InvalidJson, InvalidRequest, MissingParameter, ParamNotAllowed."""
    members, request = reader.read(body)
    if bytes(members.get("stream", b"")) == b"true":
        raise InvalidRequest("Answers of this kind come in one piece: leave out 'stream'.", param="stream")
    return members, request
