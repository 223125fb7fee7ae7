"""Credentials that the gateway issues: keys of users, secrets of apps, tokens of administrators.

One form for all three: a prefix that names the product and the kind, 32 random bytes in base 62, and a checksum of six
characters. The checksum refuses a mistyped or truncated credential without a look-up; the database holds only an HMAC of
it under a pepper that is not in the database, so a copy of the database opens nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_PREFIX: Final = "sk-ag-"
APP_SECRET_PREFIX: Final = "ag-app-"  # noqa: S105 - the part that is no secret
ADMIN_TOKEN_PREFIX: Final = "ag-admin-"  # noqa: S105 - the part that is no secret

SECRET_BYTES: Final = 32
BODY_LENGTH: Final = 43
"""62⁴³ > 2²⁵⁶: so many characters hold 32 bytes."""
CHECKSUM_LENGTH: Final = 6
"""62⁶ > 2³²: so many characters hold a CRC-32."""
SHOWN_LENGTH: Final = 4
"""Characters of the body that are shown in lists beside the prefix, to tell credentials apart: 24 of its 256 bits."""

_IMPORTED: Final = re.compile(r"sk-[!-~]{5,200}\Z")

_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_PAIRS: Final = tuple(first + second for first in _ALPHABET for second in _ALPHABET)
"""All numbers below 62² as two digits, so that a checksum is written with three look-ups."""
_PAIR: Final = 62 * 62


Redigest = Callable[[bytes, bytes], Awaitable[None]]
"""Store the second digest in place of the first: the same credential, under the present pepper."""


@dataclass(frozen=True, slots=True)
class NewKey:
    """A credential just made. `secret` is shown to its owner once; only the rest is stored."""

    secret: str = field(repr=False)
    digest: bytes = field(repr=False)
    prefix: str
    last4: str


def pepper_of(secret_key: str) -> bytes:
    """The pepper of all digests, derived from `SECRET_KEY`. Another `SECRET_KEY` makes every issued credential unknown."""
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=b"antigravity credential digests v1").derive(
        secret_key.encode()
    )


def fingerprint_of(secret_key: str) -> bytes:
    """Tells one `SECRET_KEY` from another, and nothing about either; stored beside what belongs to it."""
    return HKDF(algorithm=SHA256(), length=16, salt=None, info=b"antigravity secret key fingerprint v1").derive(
        secret_key.encode()
    )


def new_key(pepper: bytes, prefix: str = KEY_PREFIX) -> NewKey:
    """Make a credential of 256 random bits."""
    unsigned = prefix + _base62(int.from_bytes(secrets.token_bytes(SECRET_BYTES), "big"), BODY_LENGTH)
    secret = unsigned + _checksum(unsigned.encode("ascii"))
    return NewKey(
        secret=secret,
        digest=hmac.digest(pepper, secret.encode("ascii"), "sha256"),
        prefix=secret[: len(prefix) + SHOWN_LENGTH],
        last4=secret[-SHOWN_LENGTH:],
    )


def digest_of(secret: str, pepper: bytes, prefix: str = KEY_PREFIX) -> bytes | None:
    """The digest to look a credential up by; None when its form or checksum is wrong, and no look-up can succeed.

    Called for every request of the data plane, so without any I/O and with one hash: 2 to 3 microseconds.
    """
    if len(secret) != len(prefix) + BODY_LENGTH + CHECKSUM_LENGTH or not secret.startswith(prefix):
        return None
    try:
        packed = secret.encode("ascii")
    except UnicodeEncodeError:
        return None
    # The checksum is no secret (whoever holds the text can compute it), so how long this comparison takes tells nothing.
    if _checksum(packed[:-CHECKSUM_LENGTH]) != secret[-CHECKSUM_LENGTH:]:
        return None
    return hmac.digest(pepper, packed, "sha256")


def imported_digest_of(secret: str, pepper: bytes) -> bytes | None:
    """The digest of a key that another gateway (LiteLLM) has issued; None for what can be none of its keys.

    That gateway stored SHA-256 of its keys, and that is all an import gets to see: so this is the pepper over that.
    """
    if not _IMPORTED.match(secret) or secret.startswith(KEY_PREFIX):
        return None
    return imported_digest(hashlib.sha256(secret.encode("ascii")).digest(), pepper)


def imported_digest(sha256: bytes, pepper: bytes) -> bytes:
    return hmac.digest(pepper, b"imported sha-256\n" + sha256, "sha256")


def is_same_secret(given: str, expected: str) -> bool:
    """Compare two secrets in constant time; as bytes, because `compare_digest` refuses text beyond ASCII."""
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), expected.encode("utf-8", "surrogatepass"))


def _checksum(unsigned: bytes) -> str:
    """CRC-32 finds every change of up to 32 neighbouring bits, so every single flipped character."""
    rest, low = divmod(zlib.crc32(unsigned), _PAIR)
    high, middle = divmod(rest, _PAIR)
    return _PAIRS[high] + _PAIRS[middle] + _PAIRS[low]


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
