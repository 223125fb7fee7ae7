"""Credentials: unguessable, told apart by kind, refused without a look-up when mistyped, useless from a database dump."""

# ruff: noqa: F811 - fixtures are imported by name and asked for by name

from __future__ import annotations

import hashlib
import string
import timeit

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.services.api_key import (
    ADMIN_TOKEN_PREFIX,
    APP_SECRET_PREFIX,
    BODY_LENGTH,
    CHECKSUM_LENGTH,
    KEY_PREFIX,
    digest_of,
    is_same_secret,
    new_key,
    pepper_of,
)
from tests.admin_fixtures import Gateway, api, database, engine, gateway, postgres_url, template  # noqa: F401

PEPPER = pepper_of("a-secret-key-that-only-these-tests-know")
BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase


def test_a_new_key_is_recognised_by_its_digest() -> None:
    made = new_key(PEPPER)

    assert digest_of(made.secret, PEPPER) == made.digest


def test_a_key_has_the_products_prefix_256_random_bits_and_a_checksum() -> None:
    made = new_key(PEPPER)

    assert made.secret.startswith("sk-ag-")
    assert len(made.secret) == len(KEY_PREFIX) + BODY_LENGTH + CHECKSUM_LENGTH
    assert 62**BODY_LENGTH > 2**256
    assert set(made.secret.removeprefix(KEY_PREFIX)) <= set(BASE62)


def test_what_is_shown_of_a_key_is_its_beginning_and_its_last_four_characters() -> None:
    made = new_key(PEPPER)

    assert made.secret.startswith(made.prefix)
    assert len(made.prefix) == len(KEY_PREFIX) + 4
    assert made.secret.endswith(made.last4)
    assert len(made.last4) == 4


def test_100_000_keys_hold_no_duplicate_and_each_is_refused_with_one_character_flipped() -> None:
    """T005."""
    secrets = [new_key(PEPPER).secret for _ in range(100_000)]

    assert len(set(secrets)) == len(secrets)
    for number, secret in enumerate(secrets):
        at = number % len(secret)
        flipped = "A" if secret[at] != "A" else "B"
        assert digest_of(secret[:at] + flipped + secret[at + 1 :], PEPPER) is None


@given(st.text(max_size=200))
def test_text_that_is_no_key_is_refused_without_an_error(text: str) -> None:
    assert digest_of(text, PEPPER) is None
    assert digest_of(KEY_PREFIX + text, PEPPER) is None


@pytest.mark.parametrize(
    "spoil", [str.lower, str.swapcase, lambda key: key[:-1], lambda key: key + "0", lambda key: " " + key]
)
def test_a_truncated_lengthened_or_recased_key_is_refused(spoil: object) -> None:
    assert callable(spoil)
    assert digest_of(spoil(new_key(PEPPER).secret), PEPPER) is None


def test_text_beyond_ascii_of_the_right_length_is_refused_without_an_error() -> None:
    secret = new_key(PEPPER).secret

    assert digest_of(secret[:-1] + "é", PEPPER) is None
    assert digest_of(secret[:-1] + "\ud800", PEPPER) is None


def test_a_credential_of_one_kind_is_not_taken_for_another() -> None:
    for prefix in (APP_SECRET_PREFIX, ADMIN_TOKEN_PREFIX):
        made = new_key(PEPPER, prefix)
        assert digest_of(made.secret, PEPPER) is None
        assert digest_of(made.secret, PEPPER, prefix) == made.digest


def test_another_secret_key_knows_none_of_the_credentials() -> None:
    made = new_key(PEPPER)

    assert digest_of(made.secret, pepper_of("another secret key")) != made.digest


def test_a_digest_is_not_a_plain_hash_of_the_key() -> None:
    made = new_key(PEPPER)

    assert made.digest != hashlib.sha256(made.secret.encode()).digest()
    assert len(made.digest) == 32


def test_the_secret_is_not_in_the_repr() -> None:
    made = new_key(PEPPER)

    assert made.secret not in repr(made)
    assert made.digest.hex() not in repr(made)


def test_secrets_are_compared_also_beyond_ascii() -> None:
    assert is_same_secret("schlüssel", "schlüssel")
    assert not is_same_secret("schlüssel", "schluessel")
    assert not is_same_secret("\ud800", "schlüssel")


def test_recognising_a_key_costs_microseconds() -> None:
    secret = new_key(PEPPER).secret

    best_s = min(timeit.repeat(lambda: digest_of(secret, PEPPER), number=2_000, repeat=10)) / 2_000

    assert best_s < 20e-6  # measured: 3 µs; the margin is for a busy machine


async def test_a_database_dump_holds_neither_the_key_nor_anything_that_opens_the_gateway(
    api: httpx2.AsyncClient, gateway: Gateway
) -> None:
    """T004."""
    await api.post("/users", json={"user_oid": "u"})
    key = (await api.post("/keys", json={"user_oid": "u"})).json()["key"]

    (row,) = await gateway.rows("SELECT * FROM keys")

    assert row["digest"] == digest_of(key, gateway.pepper)
    stored = [str(value) for value in row.values()]
    assert not any(key in value or key[10:-4] in value for value in stored)
    assert all(digest_of(value, gateway.pepper) is None for value in stored)
    assert digest_of(KEY_PREFIX + row["digest"].hex(), gateway.pepper) is None


async def test_the_admin_api_shows_a_key_once(api: httpx2.AsyncClient) -> None:
    """T004."""
    await api.post("/users", json={"user_oid": "u"})
    made = (await api.post("/keys", json={"user_oid": "u", "name": "ci"})).json()

    later = (await api.get(f"/keys/{made['id']}")).json()

    assert made["key"].startswith(made["key_prefix"])
    assert made["key"].endswith(made["last4"])
    assert {name: value for name, value in made.items() if name != "key"} == later
