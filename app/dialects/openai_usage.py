"""Usage as OpenAI's dialects report it, read with suspicion."""

from __future__ import annotations

import re
from typing import Annotated

import msgspec
from msgspec import Meta, Raw, Struct

from app.dialects.envelope import NONE
from app.domain.pricing import Usage

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
    service_tier: Raw = NONE  # Anthropic's place


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


class _InputUsage(Struct):
    prompt_tokens: _Tokens | None = None
    total_tokens: _Tokens | None = None
    prompt_tokens_details: _PromptDetails | None = None


_input_usage = msgspec.json.Decoder(_InputUsage)


def read_input_usage(raw: bytes) -> Usage | None:
    """The usage of an answer in which nothing was written; some providers give nothing but a total. None as for `read_usage`."""
    try:
        seen = _input_usage.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return None
    tokens = seen.total_tokens if seen.prompt_tokens is None else seen.prompt_tokens
    if tokens is None:
        return None
    details = seen.prompt_tokens_details or _PromptDetails()
    return Usage(
        prompt_tokens=tokens,
        cached_tokens=details.cached_tokens or 0,
        audio_input_tokens=details.audio_tokens or 0,
        image_input_tokens=details.image_tokens or 0,
    )


def _tier_in(raw: bytes | Raw) -> str | None:
    if len(raw) < 3:
        return None
    try:
        return _tier.decode(raw)[:_MAX_TIER_CHARS]
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None  # Not a name: no reason to disbelieve the figures.


def usage_shown(usage: Usage) -> dict[str, int]:
    """Figures of ours in the shape of a provider's."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


_USAGE_NAN = re.compile(rb"(?<=[:,\[ ])-?(?:NaN|Infinity)(?=[,}\] \r\n])")


def without_nan(data: bytes) -> bytes | None:
    """The JSON with null for NaN in its usage object, which is all that some providers get wrong; None when that does not help."""
    head, mark, tail = data.rpartition(b'"usage"')
    if not mark or (b"NaN" not in tail and b"Infinity" not in tail):
        return None
    repaired = head + mark + _USAGE_NAN.sub(b"null", tail)
    if repaired == data:
        return None
    try:
        msgspec.json.decode(repaired, type=Raw)
    except (msgspec.DecodeError, RecursionError):
        return None
    return repaired
