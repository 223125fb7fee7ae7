"""Errors as OpenAI's dialects write them: theirs, wherever an upstream put them, and ours."""

from __future__ import annotations

import re

import msgspec
from msgspec import Raw, Struct

from app.dialects.base import UpstreamProblem, UpstreamSaidError
from app.dialects.envelope import NONE, as_members, encode, is_given
from app.exceptions import GatewayError

BOM = b"\xef\xbb\xbf"
"""Some servers write one before their JSON; no client reads it."""

_Word = str | int | float | bool | None


class _Error(Struct):
    """One error object, as loosely as upstreams write them."""

    message: Raw = NONE
    code: Raw = NONE
    type: Raw = NONE
    param: Raw = NONE
    status: Raw = NONE
    detail: Raw = NONE
    metadata: Raw = NONE
    details: Raw = NONE


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
_RETRY_DELAY = re.compile(rb'"retryDelay"\s*:\s*"(\d{1,6}(?:\.\d{1,9})?)s"')
NO_PROBLEM = UpstreamProblem(message=None, code=None, type=None, param=None)


def read_problem(body: bytes) -> UpstreamProblem:
    """Find the error object, wherever the upstream put it; nothing found is an empty problem, never an exception."""
    try:
        return _problem_in(body.removeprefix(BOM), depth=0)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return NO_PROBLEM


def _problem_in(body: bytes, *, depth: int) -> UpstreamProblem:
    start = body.lstrip()[:1]
    if start == b"[" and depth == 0:  # Google's compatible API wraps its error into a list.
        items = _objects.decode(body)
        return _problem_in(bytes(items[0]), depth=1) if items else NO_PROBLEM
    if start != b"{":
        return UpstreamProblem(message=text_of(Raw(body)), code=None, type=None, param=None)
    members = as_members(body)
    inner = members.get("error", NONE)
    if is_given(inner) and depth < 2:
        return _problem_in(bytes(inner), depth=2)
    error = _error.decode(body)
    code, kind = text_of(error.code), text_of(error.type)
    if b'"flagged_input"' in bytes(error.metadata):
        code = "content_filter"  # OpenRouter says so with 403 where its moderation refused the prompt
    return UpstreamProblem(
        message=text_of(error.message) or text_of(error.detail),
        code=code,
        type=kind,
        param=text_of(error.param),
        status=_status_of(error.status, error.code, code, kind),
        retry_after_s=_retry_delay_s(error.details),
    )


def _retry_delay_s(details: Raw) -> float | None:
    """Google's way to say when to come back: `"retryDelay": "34s"` somewhere in the details."""
    found = _RETRY_DELAY.search(details) if details else None
    return float(found[1]) if found else None


def text_of(raw: Raw) -> str | None:
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
        text = text_of(word) if isinstance(word, Raw) else word
        if text is None:
            continue
        if text.isdecimal() and len(text) == 3 and 400 <= int(text) <= 599:
            return int(text)
        status = _STATUS_OF_WORD.get(text.lower())
        if status is not None:
            return status
    return None


def raise_if_error(body: bytes) -> None:
    """Raise what an object without choices says, if it is an error: `error`, or Mistral's and vLLM's `object: "error"`."""
    problem = read_problem(body)
    try:
        members = as_members(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
    kinds = (text_of(members.get("object", NONE)), text_of(members.get("type", NONE)))
    if is_given(members.get("error", NONE)) or "error" in kinds:
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
