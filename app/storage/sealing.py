"""Provider credentials at rest: AES-256-GCM under a key derived from `SECRET_KEY`.

A sealed credential is bound to its endpoint and to the host it is for: copied to another endpoint's row, or left in a row
whose address was changed to somebody else's host, it cannot be opened.

    blob = format (1 byte) ‖ key id (4) ‖ nonce (12) ‖ ciphertext and tag

The key id says which `SECRET_KEY` sealed it, so that a new one can be put in front while the old one still opens.
"""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

FORMAT = b"\x01"
KEY_ID_BYTES = 4
NONCE_BYTES = 12
"""Random, 96 bits: safe for 2³² seals under one key (NIST SP 800-38D, 8.3); endpoints number hundreds."""


class CannotUnseal(Exception):
    """A stored credential cannot be opened; the message names the reason and never the credential."""


class UnknownSealingKey(CannotUnseal):
    def __init__(self) -> None:
        super().__init__("it was sealed under another SECRET_KEY")


class SealBroken(CannotUnseal):
    def __init__(self) -> None:
        super().__init__("it was changed, or it belongs to another endpoint or another host")


class Sealer:
    """Seals and opens credentials. The first `SECRET_KEY` seals, all of them open."""

    def __init__(self, secret_key: str, *older_secret_keys: str) -> None:
        keys = [_derive(secret) for secret in (secret_key, *older_secret_keys)]
        self._key_id = keys[0][0]
        self._ciphers = {key_id: AESGCM(key) for key_id, key in reversed(keys)}

    def seal(self, plain: str, *, endpoint_id: str, host: str) -> bytes:
        """`host` is `host_of(api_base)`."""
        nonce = os.urandom(NONCE_BYTES)
        sealed = self._ciphers[self._key_id].encrypt(nonce, plain.encode(), _bound_to(endpoint_id, host))
        return FORMAT + self._key_id + nonce + sealed

    def open(self, sealed: bytes, *, endpoint_id: str, host: str) -> str:
        """Raises: UnknownSealingKey, SealBroken."""
        key_at, nonce_at = len(FORMAT), len(FORMAT) + KEY_ID_BYTES
        text_at = nonce_at + NONCE_BYTES
        if sealed[:key_at] != FORMAT or len(sealed) <= text_at:
            raise SealBroken
        cipher = self._ciphers.get(sealed[key_at:nonce_at])
        if cipher is None:
            raise UnknownSealingKey
        try:
            return cipher.decrypt(sealed[nonce_at:text_at], sealed[text_at:], _bound_to(endpoint_id, host)).decode()
        except InvalidTag:
            raise SealBroken from None


def host_of(api_base: str) -> str:
    """The host that a credential is for; empty for endpoints that have no address of their own."""
    try:
        return (urlsplit(api_base).hostname or "").lower()
    except ValueError:
        return ""


def _derive(secret_key: str) -> tuple[bytes, bytes]:
    """A key's id and the key; the id is derived beside it and tells nothing about it."""
    derived = HKDF(
        algorithm=SHA256(), length=KEY_ID_BYTES + 32, salt=None, info=b"antigravity provider credentials v1"
    ).derive(secret_key.encode())
    return derived[:KEY_ID_BYTES], derived[KEY_ID_BYTES:]


def _bound_to(endpoint_id: str, host: str) -> bytes:
    return f"{endpoint_id.lower()}\n{host}".encode()
