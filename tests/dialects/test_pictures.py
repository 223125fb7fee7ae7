"""The size of a picture is read from the first bytes of its data."""

from __future__ import annotations

import base64
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.dialects.openai_chat import OpenAIChat
from app.dialects.pictures import size_in
from app.domain.media import Picture

PNG = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 640, 480)
GIF = b"GIF89a" + struct.pack("<HH", 640, 480)
JPEG = (
    b"\xff\xd8"
    + b"\xff\xe0"
    + struct.pack(">H", 16)
    + bytes(14)
    + b"\xff\xc2"
    + struct.pack(">HBHH", 17, 8, 480, 640)
    + bytes(10)
)
WEBP = b"RIFF\0\0\0\0WEBP"
VP8X = WEBP + b"VP8X" + bytes(8) + (639).to_bytes(3, "little") + (479).to_bytes(3, "little")
VP8 = WEBP + b"VP8 " + bytes(10) + struct.pack("<HH", 640, 480)
VP8L = WEBP + b"VP8L" + bytes(5) + (639 | 479 << 14).to_bytes(4, "little") + bytes(5)


def data_url(data: bytes) -> bytes:
    return b"data:image/png;base64," + base64.b64encode(data)


@pytest.mark.parametrize("data", [PNG, GIF, JPEG, VP8X, VP8, VP8L], ids=["png", "gif", "jpeg", "vp8x", "vp8", "vp8l"])
def test_every_kind_that_models_take_says_its_size(data: bytes) -> None:
    assert size_in(data_url(data)) == (640, 480)


@pytest.mark.parametrize("url", [b"https://example.com/a.png", b"data:image/png;base64,?", b"data:,x", b""])
def test_what_is_no_picture_has_no_size(url: bytes) -> None:
    assert size_in(url) is None


@given(st.binary(max_size=200), st.sampled_from([b"", PNG[:8], JPEG[:4], VP8X[:16], GIF[:4]]))
def test_broken_pictures_are_no_reason_to_fail(data: bytes, head: bytes) -> None:
    size = size_in(data_url(head + data))
    assert size is None or min(size) >= 0


def test_a_call_knows_its_pictures() -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": data_url(PNG).decode(), "detail": "high"}},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        {"type": "input_audio", "input_audio": {"data": "A" * 5_000, "format": "mp3"}},
        {"type": "file", "file": {"file_id": "file-1"}},
    ]
    call = OpenAIChat().read(json.dumps({"model": "m", "messages": [{"role": "user", "content": parts}]}).encode())
    assert call.media.pictures == (Picture("high", 640, 480), Picture("auto"))
    assert call.media.audio_bytes > 5_000
    assert call.media.unseen == 1
    assert call.images == 4
