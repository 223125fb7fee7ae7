"""Ids: UUIDv7 (RFC 9562, section 5.7), so that they sort by time and carry it.

The 74 random bits are drawn by the caller; nothing here reads a clock or a random source.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from uuid import UUID

RANDOM_BYTES = 10

CLIENT_ID_PATTERN = re.compile(r"[\w.-]{1,64}", re.ASCII)
"""A caller's own request id is kept only in this form; anything else is dropped, never echoed."""


def uuid7(unix_ms: int, random: bytes) -> str:
    """The canonical text form. `random` is `RANDOM_BYTES` long."""
    bits = int.from_bytes(random, "big")
    value = (
        (unix_ms & 0xFFFF_FFFF_FFFF) << 80
        | 0x7 << 76
        | (bits >> 62 & 0xFFF) << 64
        | 0b10 << 62
        | bits & 0x3FFF_FFFF_FFFF_FFFF
    )
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def unix_ms_of(request_id: str) -> int:
    """The time inside a UUIDv7. Raises ValueError on anything else."""
    value = UUID(request_id)
    if value.version != 7:
        raise ValueError("not a UUIDv7")
    return value.int >> 80


def time_of(request_id: str) -> datetime:
    """Of an id that `uuid7` made; of anything else it says nothing sensible."""
    return datetime.fromtimestamp(int(request_id[:8] + request_id[9:13], 16) / 1000, UTC)
