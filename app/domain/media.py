"""What pictures, sounds and documents in a prompt count in tokens, by the rules their providers publish.

Each rule gives two figures: what is likely, and what it never exceeds (for reservations, where nothing may turn out dearer).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of a prompt. The size is known where its bytes came along, not where only its address did."""

    detail: str = "auto"
    """`low`, `high` or `auto`, as OpenAI calls it; `auto` is counted as `high`."""
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True, slots=True)
class Media:
    """Everything in a prompt that is not text."""

    pictures: tuple[Picture, ...] = ()
    audio_bytes: int = 0
    """Of base64."""
    document_bytes: int = 0
    """Of base64: documents and films."""
    unseen: int = 0
    """Documents and films given by address or id: nothing is known of their length."""

    @property
    def is_empty(self) -> bool:
        return not (self.pictures or self.audio_bytes or self.document_bytes or self.unseen)


NO_MEDIA = Media()


class Tokens(NamedTuple):
    likely: int
    most: int


class _Tiles(NamedTuple):
    """OpenAI's rule: a base, and so much for each tile of 512 by 512 that the scaled picture touches."""

    base: int
    tile: int


_TILES = (
    ("gpt-4o-mini", _Tiles(2833, 5667)),
    ("gpt-5", _Tiles(70, 140)),
    ("o1", _Tiles(75, 150)),
    ("o3", _Tiles(75, 150)),
)
"""platform.openai.com/docs/guides/images-vision, "Calculating costs"; the first prefix that fits the model's name."""
_USUAL_TILES = _Tiles(85, 170)
"""gpt-4o, gpt-4.1 and gpt-4.5. Claude (width × height / 750, at most about 1,600) and Gemini (258 a tile) stay near or below it."""
_PATCHES = ("gpt-4.1-mini", "gpt-4.1-nano", "gpt-5-mini", "gpt-5-nano", "o4-mini")
_MOST_BY_PATCHES = Tokens(likely=1_659, most=3_779)
"""These cut a picture into at most 1,536 patches of 32 by 32 and multiply by 1.62 to 2.46; 1,024 patches are 1024 by 1024."""

_USUAL_SIZE = (1024, 1024)
_MOST_TILES = 8
"""Scaled into 2048 by 2048 and to 768 on the shorter side, a picture is at most 2048 by 768: four tiles by two."""

_AUDIO_BYTES_PER_TOKEN = Tokens(likely=3_200, most=100)
"""A tenth of a second is one token (OpenAI). As base64 that is 4,267 bytes of 16-bit WAV at 16 kHz, 1,067 of MP3 at 64 kbit/s; no
format carries speech in fewer than 8 kbit/s."""
_DOCUMENT_BYTES_PER_PAGE = 128 << 10
_TOKENS_PER_PAGE = 1_105
"""A page is read as its text and its picture."""
_UNSEEN = Tokens(likely=5_000, most=131_072)
"""A document of which only the address is known: a few pages, or all that a common window holds."""


def tokens_of(media: Media, upstream_models: tuple[str, ...]) -> Tokens:
    """Tokens of everything that is not text, for the dearest of the models that may read it."""
    if media.is_empty:
        return Tokens(0, 0)
    pictures = [max(_picture(picture, name) for name in upstream_models or ("",)) for picture in media.pictures]
    pages = -(-media.document_bytes // _DOCUMENT_BYTES_PER_PAGE)
    likely = (
        sum(tokens.likely for tokens in pictures)
        + -(-media.audio_bytes // _AUDIO_BYTES_PER_TOKEN.likely)
        + pages * _TOKENS_PER_PAGE
        + media.unseen * _UNSEEN.likely
    )
    most = (
        sum(tokens.most for tokens in pictures)
        + -(-media.audio_bytes // _AUDIO_BYTES_PER_TOKEN.most)
        + max(media.document_bytes, pages * _TOKENS_PER_PAGE)
        + media.unseen * _UNSEEN.most
    )
    return Tokens(likely, most)


def picture_tokens(picture: Picture, *, base: int = 85, tile: int = 170) -> int:
    """OpenAI's tiles: fit into 2048 by 2048, then the shorter side to 768, then count tiles of 512 by 512."""
    if picture.detail == "low":
        return base
    width, height = (picture.width, picture.height) if picture.width and picture.height else _USUAL_SIZE
    return base + tile * _tiles_in(width, height)


def _tiles_in(width: int, height: int) -> int:
    longer, shorter = max(width, height), min(width, height)
    # Integers: scaled by a fraction and rounded up, the way a partly touched tile counts.
    numerator, denominator = (2048, longer) if longer > 2048 else (1, 1)
    if shorter * numerator > 768 * denominator:
        numerator, denominator = 768, shorter
    across = -(-longer * numerator // (512 * denominator))
    down = -(-shorter * numerator // (512 * denominator))
    return min(_MOST_TILES, max(1, across) * max(1, down))


def _picture(picture: Picture, upstream_model: str) -> Tokens:
    name = upstream_model.rpartition("/")[2]
    if name.startswith(_PATCHES):
        return _MOST_BY_PATCHES
    base, tile = next((tiles for prefix, tiles in _TILES if name.startswith(prefix)), _USUAL_TILES)
    most = base + tile * _MOST_TILES
    # Only OpenAI knows `detail`, and what a picture says of its own size is for its reader to believe.
    is_low = picture.detail == "low" and name.startswith(("gpt-", "o1", "o3", "chatgpt-"))
    return Tokens(picture_tokens(picture, base=base, tile=tile), base if is_low else max(most, 1_600))
