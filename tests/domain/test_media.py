"""Tokens of pictures, sounds and documents, by the rules that providers publish."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.media import Media, Picture, picture_tokens, tokens_of

sizes = st.integers(1, 20_000)


@pytest.mark.parametrize(
    ("picture", "tokens"),
    [
        (Picture("low", 4096, 8192), 85),
        (Picture("high", 1024, 1024), 765),
        (Picture("high", 2048, 4096), 1105),
        (Picture("auto", 512, 512), 255),
        (Picture("high", 100, 100), 255),
        (Picture("high", 513, 512), 425),
        (Picture("auto"), 765),
    ],
)
def test_pictures_count_as_openai_documents_it(picture: Picture, tokens: int) -> None:
    """1024 × 1024, 2048 × 4096 and 4096 × 8192 in low detail are the examples of OpenAI's own documentation."""
    assert picture_tokens(picture) == tokens


@given(sizes, sizes, st.sampled_from(["auto", "high", "low"]), st.sampled_from(["gpt-4o", "gpt-4o-mini", "o1", "x"]))
def test_no_picture_counts_more_than_the_most(width: int, height: int, detail: str, model: str) -> None:
    tokens = tokens_of(Media(pictures=(Picture(detail, width, height),)), (model,))
    assert 0 < tokens.likely <= tokens.most


@given(sizes, sizes)
def test_a_picture_lying_on_its_side_counts_the_same(width: int, height: int) -> None:
    assert picture_tokens(Picture("high", width, height)) == picture_tokens(Picture("high", height, width))


def test_the_dearest_model_that_may_read_it_decides() -> None:
    media = Media(pictures=(Picture("high", 1024, 1024),))
    assert tokens_of(media, ("gpt-4o", "openai/gpt-4o-mini")).likely == 2833 + 4 * 5667


def test_sounds_and_documents_grow_with_their_length() -> None:
    short, long = Media(audio_bytes=32_000, document_bytes=1), Media(audio_bytes=64_000, document_bytes=1 << 20)
    assert tokens_of(short, ()).likely < tokens_of(long, ()).likely
    assert tokens_of(short, ()).likely == 10 + 1105


def test_a_prompt_of_text_alone_has_no_tokens_of_media() -> None:
    assert tokens_of(Media(), ("gpt-4o",)) == (0, 0)
