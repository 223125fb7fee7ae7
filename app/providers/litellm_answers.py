"""What LiteLLM hands out, as OpenAI's answers and events: without its notes, and without what it made up."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec.structs import replace

from app.dialects.base import BadAnswer
from app.dialects.openai_usage import read_usage
from app.domain.pricing import Usage

_NOISE: Final = frozenset({"provider_specific_fields", "citations", "system_fingerprint", "service_tier"})
_EMPTY_NOTES: Final = "vertex_ai_"
"""How the names of its lists about Gemini's grounding and safety begin, which no client of OpenAI's expects."""


def plain_answer(raw: Any) -> dict[str, object]:
    """LiteLLM's answer in OpenAI's shape: without its notes, and without a usage of zeros that stands for none."""
    answer = _cleaned(raw.model_dump(exclude_none=True))
    for choice in answer.get("choices", ()):
        choice.get("message", {}).setdefault("content", None)
    if not usage_of(raw):
        answer.pop("usage", None)
    return answer


def plain_event(chunk: Any, stream: Any) -> bytes:
    """A chunk as an event; nothing for one that says nothing. Raises: BadAnswer("truncated") for an ending that no provider sent."""
    dump = _cleaned(chunk.model_dump(exclude_none=True))
    for choice in dump["choices"]:
        if choice.setdefault("finish_reason", None) and not (
            getattr(stream, "received_finish_reason", None) or getattr(stream, "intermittent_finish_reason", None)
        ):
            raise BadAnswer("truncated")
    if dump.get("usage"):
        # OpenAI's last chunk has no choices; LiteLLM's has one with nothing in it, and the figures may be its own.
        if not usages_in(stream):
            return b""
        dump["choices"] = []
    return b"data: " + msgspec.json.encode(dump) + b"\n\n"


def usages_in(stream: Any) -> list[Usage]:
    """What the provider has said about usage so far, in order."""
    return [usage for chunk in getattr(stream, "chunks", ()) if (usage := usage_of(chunk))]


def _cleaned(dump: dict[str, Any]) -> dict[str, Any]:
    """Without the members that only LiteLLM knows, at the three levels where it puts them."""
    answer = {name: value for name, value in dump.items() if name not in _NOISE and not name.startswith(_EMPTY_NOTES)}
    for choice in answer.get("choices", ()):
        for holder in (choice, choice.get("message"), choice.get("delta")):
            for name in _NOISE & (holder or {}).keys():
                del holder[name]
    return answer


def usage_of(raw: Any) -> Usage | None:
    """The usage on an answer or chunk as ours; None where there is none, or only the zeros that LiteLLM starts with."""
    given = getattr(raw, "usage", None)
    if given is None:
        return None
    usage = read_usage(msgspec.json.encode(given.model_dump(exclude_none=True)))
    if usage is None or not (usage.prompt_tokens or usage.completion_tokens):
        return None
    details = getattr(getattr(given, "prompt_tokens_details", None), "cache_creation_token_details", None)
    one_hour = getattr(details, "ephemeral_1h_input_tokens", None) or 0
    return replace(
        usage,
        cache_write_5m_tokens=max(0, usage.cache_write_5m_tokens - one_hour),
        cache_write_1h_tokens=one_hour,
        service_tier=_served_as(raw, given) or usage.service_tier,
    )


def _served_as(raw: Any, usage: Any) -> str | None:
    """The service tier as the price map names it, from where each provider puts it."""
    said = (getattr(usage, "speed", None), getattr(usage, "inference_geo", None), getattr(raw, "service_tier", None))
    named = [name.lower() for name in said if isinstance(name, str) and len(name) <= _MAX_TIER_NAME]
    return next((name for name in named if name not in _ORDINARY), None)


_MAX_TIER_NAME = 40
_ORDINARY = frozenset({"", "auto", "default", "standard", "global", "not_available"})
"""Ways of being served that cost what the model costs."""
