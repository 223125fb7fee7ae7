"""What an upstream calls itself and its answer: text of sane length, or it is not handed on as it is.

Clients' types say that `id`, `object`, `model` and `system_fingerprint` are text. They end up in logs, headers and pages, so a
number becomes text, what is neither becomes empty, and what is longer than any name is cut.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Raw

from app.dialects.envelope import as_members, encode

MAX_NAME_CHARS = 512
"""Model names with a path of directories before them (`transformers serve`) are the longest seen, some 200."""
Name = Annotated[str, Meta(max_length=MAX_NAME_CHARS)] | None
NAMES = ("id", "object", "model", "system_fingerprint")

_name = msgspec.json.Decoder(Name)
_text = msgspec.json.Decoder(str | int | float)


def with_plain_names(body: bytes) -> bytes | None:
    """The JSON object with its names mended; None when they need no mending or it is no such object."""
    try:
        members = as_members(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    changes = {name: _mended(members[name]) for name in NAMES if name in members and not _is_name(members[name])}
    return encode({**members, **changes}) if changes else None


def _is_name(raw: Raw) -> bool:
    try:
        _name.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


def _mended(raw: Raw) -> str:
    try:
        return str(_text.decode(raw))[:MAX_NAME_CHARS]
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
