"""Pictures and files in a request of OpenAI's Responses: how many, and how many bytes they are of what the model reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from msgspec import Raw, Struct

from app.dialects.envelope import NONE, is_given
from app.dialects.pictures import size_in
from app.domain.media import NO_MEDIA, Media, Picture

_PICTURE_HEAD_BYTES = 66 << 10
_BYTES_PER_FILE_PIECE = 128 << 10


class _Part(Struct, gc=False):
    image_url: Raw = NONE
    file_data: Raw = NONE
    file_url: Raw = NONE
    file_id: Raw = NONE
    detail: str | None = None
    type: str = ""


class _Item(Struct, gc=False):
    content: Raw = NONE
    output: Raw = NONE


class Found(NamedTuple):
    pieces: int = 0
    payload_bytes: int = 0
    media: Media = NO_MEDIA


_item = msgspec.json.Decoder(_Item)
_parts = msgspec.json.Decoder(list[_Part])


def media_in(items: Sequence[Raw]) -> Found:
    parts = [part for item in items for part in _parts_of(item)]
    images = [part for part in parts if part.type == "input_image"]
    files = [part for part in parts if part.type == "input_file"]
    if not images and not files:
        return Found()
    given = [len(part.file_data) for part in files if is_given(part.file_data)]
    return Found(
        pieces=len(images) + sum(1 + size // _BYTES_PER_FILE_PIECE for size in given) + len(files) - len(given),
        payload_bytes=sum(len(part.image_url) for part in images) + sum(given),
        media=Media(pictures=tuple(map(_picture, images)), document_bytes=sum(given), unseen=len(files) - len(given)),
    )


def _parts_of(raw: Raw) -> list[_Part]:
    try:
        item = _item.decode(raw)
        lists = [each for each in (item.content, item.output) if bytes(memoryview(each)[:1]) == b"["]
        return [part for each in lists for part in _parts.decode(each)]
    except msgspec.ValidationError:
        return []  # a shape of its own: the translation judges it, its bytes stay in the estimate


def _picture(part: _Part) -> Picture:
    head = bytes(memoryview(part.image_url)[:_PICTURE_HEAD_BYTES]).strip(b'"').replace(b"\\/", b"/")
    width, height = size_in(head) or (None, None)
    return Picture(part.detail if part.detail in ("low", "high") else "auto", width, height)
