"""Provider credentials at rest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.storage.sealing import CannotUnseal, SealBroken, Sealer, UnknownSealingKey, host_of

SEALER = Sealer("the secret key")


@given(st.text(), st.text(st.characters(codec="utf-8")))
def test_what_was_sealed_opens(plain: str, host: str) -> None:
    sealed = SEALER.seal(plain.encode("utf-8", "replace").decode(), endpoint_id="e", host=host)
    assert SEALER.open(sealed, endpoint_id="e", host=host) == plain.encode("utf-8", "replace").decode()


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_one_changed_byte_anywhere_is_noticed(position: int, change: int) -> None:
    sealed = bytearray(SEALER.seal("sk-123456789", endpoint_id="e", host="h"))
    sealed[position % len(sealed)] ^= change
    with pytest.raises(CannotUnseal):
        SEALER.open(bytes(sealed), endpoint_id="e", host="h")


@given(st.binary(max_size=60))
def test_bytes_that_were_never_sealed_do_not_open(sealed: bytes) -> None:
    with pytest.raises(CannotUnseal):
        SEALER.open(sealed, endpoint_id="e", host="h")


@pytest.mark.parametrize(("endpoint_id", "host"), [("other", "h"), ("e", "other"), ("", "e\nh")])
def test_it_opens_for_no_other_endpoint_and_no_other_host(endpoint_id: str, host: str) -> None:
    sealed = SEALER.seal("sk", endpoint_id="e", host="h")
    with pytest.raises(SealBroken):
        SEALER.open(sealed, endpoint_id=endpoint_id, host=host)


def test_a_wrong_secret_key_is_named_as_such() -> None:
    sealed = SEALER.seal("sk", endpoint_id="e", host="h")
    with pytest.raises(UnknownSealingKey, match="another SECRET_KEY"):
        Sealer("a wrong one").open(sealed, endpoint_id="e", host="h")


def test_two_secret_keys_can_be_in_use_and_the_first_one_seals() -> None:
    both = Sealer("new", "the secret key")
    assert both.open(SEALER.seal("old", endpoint_id="e", host="h"), endpoint_id="e", host="h") == "old"
    sealed = both.seal("sk", endpoint_id="e", host="h")
    assert Sealer("new").open(sealed, endpoint_id="e", host="h") == "sk"
    with pytest.raises(UnknownSealingKey):
        SEALER.open(sealed, endpoint_id="e", host="h")


def test_the_same_credential_never_looks_the_same() -> None:
    assert len({SEALER.seal("sk", endpoint_id="e", host="h") for _ in range(50)}) == 50


@pytest.mark.parametrize(
    ("api_base", "host"),
    [
        ("https://API.Example.com:8443/v1?x=1", "api.example.com"),
        ("http://[2001:db8::1]:80/", "2001:db8::1"),
        ("https://user@evil.example\\@api.example.com/", "api.example.com"),
        ("", ""),
        ("http://[broken", ""),
    ],
)
def test_the_host_is_the_one_that_will_be_called(api_base: str, host: str) -> None:
    assert host_of(api_base) == host
