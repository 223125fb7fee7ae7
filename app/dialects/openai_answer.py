"""A whole answer of one of OpenAI's dialects, decoded with the same suspicion for all of them."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from msgspec import Raw, Struct

from app.dialects.base import BadAnswer, UpstreamSaidError
from app.dialects.envelope import NONE, is_given, is_utf8
from app.dialects.openai_errors import BOM, raise_if_error, read_problem
from app.dialects.openai_names import Name, with_plain_names
from app.dialects.openai_usage import without_nan


class WholeAnswer(Struct):
    """What every such answer may hold beside what it is about."""

    usage: Raw = NONE
    service_tier: Raw = NONE
    error: Raw = NONE
    id: Name = None
    object: Name = None
    model: Name = None
    system_fingerprint: Name = None


A = TypeVar("A", bound=WholeAnswer)


def read_whole(decoder: msgspec.json.Decoder[A], body: bytes) -> tuple[A, bytes]:
    """The answer, and its body as it may be handed on: the very same, unless a BOM, a name or a NaN in it had to be mended.

    Raises: BadAnswer, UpstreamSaidError.
    """
    if not body.strip():
        raise BadAnswer("empty_body")
    try:
        answer = decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        mended = body.removeprefix(BOM) if body.startswith(BOM) else without_nan(body) or with_plain_names(body)
        if mended is not None:
            return read_whole(decoder, mended)
        if not isinstance(fault, msgspec.ValidationError):
            raise BadAnswer("not_json") from None
        raise_if_error(body)
        raise BadAnswer("not_a_completion") from None
    if not is_utf8(body):
        raise BadAnswer("not_utf8")
    if is_given(answer.error):
        raise UpstreamSaidError(read_problem(body))
    return answer, body
