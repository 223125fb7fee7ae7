"""What a caller says about how the provider shall serve the call, as far as it changes the price."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

_MEMBERS = ("service_tier", "speed", "inference_geo")
"""OpenAI's and Gemini's word, and Anthropic's two."""
_text = msgspec.json.Decoder(str)


def asked_tiers(fields: Mapping[str, msgspec.Raw]) -> frozenset[str]:
    """The names that stand in a request's top-level members; empty where it asks for nothing."""
    return frozenset(name for member in _MEMBERS if member in fields and (name := _name_in(fields[member])))


def _name_in(raw: msgspec.Raw) -> str:
    try:
        return _text.decode(raw).lower()
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""  # null, or a shape the upstream will refuse
