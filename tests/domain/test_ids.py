"""Request ids: UUIDv7 that carry their time, and the callers' own ids that are kept."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.ids import CLIENT_ID_PATTERN, RANDOM_BYTES, time_of, unix_ms_of, uuid7

TIMES = st.integers(min_value=0, max_value=2**48 - 1)
RANDOM = st.binary(min_size=RANDOM_BYTES, max_size=RANDOM_BYTES)


@given(TIMES, RANDOM)
def test_an_id_is_a_uuid_of_version_7_that_gives_its_time_back(unix_ms: int, random: bytes) -> None:
    made = uuid7(unix_ms, random)

    assert str(UUID(made)) == made
    assert (UUID(made).version, UUID(made).variant) == (7, "specified in RFC 4122")
    assert unix_ms_of(made) == unix_ms


def test_the_example_of_the_rfc_is_made_from_its_parts() -> None:
    """RFC 9562, A.6: 017F22E2-79B0-7CC3-98C4-DC0C0C07398F."""
    random = (0xCC3 << 62 | 0x18C4DC0C0C07398F).to_bytes(RANDOM_BYTES, "big")

    assert uuid7(0x017F22E279B0, random) == "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"


@given(TIMES, TIMES, RANDOM, RANDOM)
def test_ids_sort_by_their_time(one_ms: int, other_ms: int, one: bytes, other: bytes) -> None:
    if one_ms < other_ms:
        assert uuid7(one_ms, one) < uuid7(other_ms, other)


@given(TIMES, RANDOM, RANDOM)
def test_all_74_random_bits_are_in_the_id(unix_ms: int, one: bytes, other: bytes) -> None:
    bits = 2**74 - 1
    is_same = int.from_bytes(one, "big") & bits == int.from_bytes(other, "big") & bits

    assert (uuid7(unix_ms, one) == uuid7(unix_ms, other)) is is_same


def test_the_time_of_an_id_is_aware_and_exact_to_the_millisecond() -> None:
    at = datetime(2026, 1, 15, 12, 0, 0, 123_000, tzinfo=UTC)

    assert time_of(uuid7(round(at.timestamp() * 1000), bytes(RANDOM_BYTES))) == at


@pytest.mark.parametrize(
    "text",
    ["", "x", "af6186c6-299d-4eee-84ae-2c6252dadb8f", "00000000-0000-0000-0000-000000000000", "017f22e2-79b0-7cc3"],
)
def test_what_is_no_uuid_of_version_7_has_no_time(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        unix_ms_of(text)


@pytest.mark.parametrize("own", ["a", "trace-1", "A_b.c-9", "x" * 64])
def test_a_plain_id_of_the_caller_is_kept(own: str) -> None:
    assert CLIENT_ID_PATTERN.fullmatch(own)


@pytest.mark.parametrize("own", ["", "x" * 65, "a b", "a\n", "a\r\nx: y", "é", "a/b", "a;b", '"', "\x00", "½"])
def test_any_other_id_of_the_caller_is_not(own: str) -> None:
    assert CLIENT_ID_PATTERN.fullmatch(own) is None
