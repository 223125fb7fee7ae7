"""The size of a picture, read from the first bytes of its data: PNG, JPEG, GIF and WebP, which are all that models take."""

from __future__ import annotations

import binascii
import re

_DATA = re.compile(rb"data:image/[a-z.+-]{1,20};base64,", re.IGNORECASE)
_HEAD_CHARS = 64 << 10
"""A JPEG may carry that much of camera notes before it says how large it is; behind that its size is taken for unknown."""


def size_in(url: bytes) -> tuple[int, int] | None:
    """(width, height) of the picture in a data URL; None for an address, and for what is no picture we know."""
    start = _DATA.match(url)
    if start is None:
        return None
    chars = url[start.end() : start.end() + _HEAD_CHARS]
    try:
        head = binascii.a2b_base64(chars[: len(chars) // 4 * 4])
    except binascii.Error:
        return None
    return _size(head)


def _size(head: bytes) -> tuple[int, int] | None:
    if head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) >= 24:
        return _big(head[16:20]), _big(head[20:24])
    if head[:4] == b"GIF8" and len(head) >= 10:
        return _little(head[6:8]), _little(head[8:10])
    if head[:2] == b"\xff\xd8":
        return _size_of_jpeg(head)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP" and len(head) >= 30:
        return _size_of_webp(head)
    return None


def _size_of_jpeg(head: bytes) -> tuple[int, int] | None:
    """Walk the segments to the frame's header (SOF0 to SOF15, without the three that mean something else)."""
    position = 2
    while position + 9 <= len(head) and head[position] == 0xFF:
        marker = head[position + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return _big(head[position + 7 : position + 9]), _big(head[position + 5 : position + 7])
        position += 2 + max(2, _big(head[position + 2 : position + 4]))
    return None


def _size_of_webp(head: bytes) -> tuple[int, int] | None:
    match head[12:16]:
        case b"VP8X":
            return _little(head[24:27]) + 1, _little(head[27:30]) + 1
        case b"VP8 ":
            return _little(head[26:28]) & 0x3FFF, _little(head[28:30]) & 0x3FFF
        case b"VP8L":
            bits = _little(head[21:25])
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case _:
            return None


def _big(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _little(data: bytes) -> int:
    return int.from_bytes(data, "little")
